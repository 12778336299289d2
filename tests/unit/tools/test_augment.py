"""The preview shows the pixels that training would see, and the command line writes it without TensorFlow."""

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests import forks
from tl_dist.cli.main import main
from tl_dist.config import file as config_file
from tl_dist.data.augment import augment
from tl_dist.datasets.division import open_splits
from tl_dist.tools.augment.work import COLUMNS, preview

CONFIG = """\
epochs: 1
seed: 3
data: {name: digits, image_size: 32, augment: [flip, pad_crop]}
model: {backbone: tiny, weights: random, train_from: all}
optimizer: {learning_rate: 0.1}
"""


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(sys, "executable", forks.program("python"))  # the command's child
    path = tmp_path / "run.yaml"
    path.write_text(CONFIG)
    return path


def test_each_row_is_an_image_and_what_training_makes_of_it(file: Path) -> None:
    cfg = config_file.load(file)
    picture = preview(cfg, 2)
    assert picture.shape == (2 * 36 - 4, (COLUMNS + 1) * 36 - 4, 3)
    tiles = picture[36:, :].copy()
    tiles = np.stack([tiles[:32, k * 36 : k * 36 + 32] for k in range(COLUMNS + 1)])
    positions = np.arange(COLUMNS, 2 * COLUMNS, dtype=np.int64)
    expected = augment(np.repeat(tiles[:1], COLUMNS, 0), cfg.data.augment, cfg.data.augmentation, cfg.seed, positions)
    np.testing.assert_array_equal(tiles[1:], expected)
    assert len(open_splits(cfg.data)[0]["train"].ids) > 2
    assert len({tile.tobytes() for tile in tiles}) > COLUMNS // 2


def test_mixtures_are_shown(file: Path) -> None:
    plain = preview(config_file.load(file), 1)
    mixed = preview(config_file.load(file, ["data.augmentation.mixup=1.0"]), 1)
    assert (plain[:, :32] == mixed[:, :32]).all() and (plain[:, 36:] != mixed[:, 36:]).any()


def test_the_command_writes_a_png(file: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "grid.png"
    assert main(["augment", "preview", str(file), "--out", str(out), "--rows", "3"]) == 0
    with Image.open(out) as image:
        assert image.format == "PNG" and image.size == ((COLUMNS + 1) * 36 - 4, 3 * 36 - 4)
    assert "grid.png" in capfd.readouterr().out.replace("\n", "")


def test_mistakes_are_one_line(file: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    nowhere = tmp_path / "missing" / "grid.png"
    assert main(["augment", "preview", str(file), "--out", str(nowhere)]) == 73
    assert "Fix: name another file" in " ".join(capfd.readouterr().err.split())
    assert main(["augment", "preview", str(file), "data.augment=[]"]) == 64
    assert "augments nothing" in " ".join(capfd.readouterr().err.split())
