"""What predictions are written to was named and is no file of others; sorted images are private; no name is obeyed."""

import os
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tests.hostile.arena import Arena, Case, Cases
from tl_dist.config import file as config_file
from tl_dist.files.npz import save_npz
from tl_dist.refusal import ExitCode, Refusal
from tl_dist.runs.directory import RunDir
from tl_dist.scores import explanations, neighbours
from tl_dist.tools.predict import sorting, work
from tl_dist.tools.predict.sorting import Folders
from tl_dist.tools.predict.table import Row, columns, written

CASES = Cases()
CONFIG = """\
name: run
strategy: single
steps: 1
data: {name: synthetic}
model: {backbone: tiny, weights: random}
optimizer: {learning_rate: 0.1}
"""


def began(arena: Arena) -> RunDir:
    """A run that has not come to its first step."""
    cfg = config_file.load(arena.file("run.yaml", CONFIG))
    return RunDir.create(arena.folder / "runs", cfg)


def test_predictions(case: Case, arena: Arena) -> None:
    arena.check(case)


for name, text in (
    ("no classes", "{}"),
    ("classes that are numbers", '{"class_names": [1, 2], "precision": "float32", "data": {}}'),
    ("classes of half characters", '{"class_names": ["\\ud800"], "precision": "float32", "data": {}}'),
    ("classes that are one", '{"class_names": ["a", "a"], "precision": "float32", "data": {}}'),
    ("a precision that is none", '{"class_names": ["a"], "precision": "x", "data": {}}'),
    ("a rule that is none", '{"class_names": ["a"], "precision": "float32", "data": {}, "decoding": [1]}'),
):

    @CASES.add(name, code=78, says="run.json (is damaged|holds no class_names)")
    def _(arena: Arena, text: str = text) -> Any:
        began(arena).identity_file.write_text(text)
        arena.file("a.png", b"x")
        return "predict", "runs/run", "a.png", "--sort-into", "sorted"


OURS = {
    "csv": [
        "path,class,probability,error\n",
        "path,class,probability,class_2,probability_2,set,p_known,unknown,error\n",
    ],
    "jsonl": [
        '{"path": "a", "class": "b", "probability": 0.5}\n', '{"path": "a", "error": "x"}\n',
        '{"path": "a", "class": "b", "probability": 0.5, "class_2": "c", "probability_2": 0.1, "unknown": true}\n',
    ],
}  # fmt: skip
OTHERS = {
    "csv": [
        "path,class,probability\n", "path,class,probability,error,my_notes\n", "path,class,probability,right,error\n",
        "path,class,probability,class_2,probability_3,error\n", "path,class\n",
    ],
    "jsonl": [
        '{"path": "a", "label": "cat"}\n', '{"path": "a"}\n', '{"path": "a", "class": "b"}\n', '{"path": \n',
        '{"path": "a", "class": "b", "probability": 1, "note": "x"}\n', '["path"]\n',
    ],
}  # fmt: skip


@pytest.mark.parametrize(("kind", "text"), [(kind, text) for kind in OURS for text in OURS[kind]])
def test_a_file_of_predictions_is_replaced(tmp_path: Path, kind: str, text: str) -> None:
    file = tmp_path / f"p.{kind}"
    file.write_text(text)
    with written(file, columns(1)) as write:
        write([Row("a", ["b"], [np.float32(0.5)])])
    assert file.read_text().count("b")


@pytest.mark.parametrize(("kind", "text"), [(kind, text) for kind in OTHERS for text in OTHERS[kind]])
def test_a_file_that_only_begins_so_is_not(tmp_path: Path, kind: str, text: str) -> None:
    """A list of labelled images, and predictions to which a user has added a column."""
    file = tmp_path / f"p.{kind}"
    file.write_text(text)
    with pytest.raises(Refusal, match="is not a file of predictions") as caught, written(file, columns(1)):
        pass
    assert caught.value.code == ExitCode.CANNOT_CREATE and file.read_text() == text


def sorted_into(root: Path, image: Path, name: str = "cat") -> Folders:
    folders = Folders(root, [name])
    folders.take([Row(str(image), [name], [1.0])])
    return folders


def test_sorted_images_are_private_whatever_the_umask(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("image")
    before = os.umask(0)
    try:
        sorted_into(tmp_path / "s", tmp_path / "a.png")
    finally:
        os.umask(before)
    modes = [path.stat().st_mode & 0o777 for path in (tmp_path / "s", tmp_path / "s/cat", tmp_path / "s/cat/a.png")]
    assert modes == [0o700, 0o700, 0o600]


@pytest.mark.parametrize("moment", ["open_regular", "temporary_name", "link_exclusively"])
def test_a_link_that_comes_between_the_look_and_the_copy_leads_nowhere(
    tmp_path: Path, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who can write in the root swaps the folder for a link at each moment that the copy has."""
    outside, root, image = tmp_path / "outside", tmp_path / "s", tmp_path / "a.png"
    outside.mkdir()
    (root / "cat").mkdir(parents=True)
    image.write_text("image")
    real = getattr(sorting, moment)

    def attacked(*given: Any, **how: Any) -> Any:
        if not (root / "cat").is_symlink():
            (root / "cat").rename(root / "away")
            (root / "cat").symlink_to(outside)
        return real(*given, **how)

    monkeypatch.setattr(sorting, moment, attacked)
    with suppress(Refusal):
        sorted_into(root, image)
    assert (root / "cat").is_symlink() and not list(outside.iterdir())


def test_neighbours_of_another_network_are_refused(tmp_path: Path) -> None:
    bank = neighbours.Neighbours("x", np.ones((10, 3), np.float32), np.ones(5, np.float32))
    save_npz(tmp_path / "run" / neighbours.FILE, **bank.arrays())
    model: Any = SimpleNamespace(
        run=SimpleNamespace(path=tmp_path / "run", name="run"), sha256="x", calibration=object(), step=1,
        model=SimpleNamespace(num_features=16),
    )  # fmt: skip
    with pytest.raises(Refusal, match="holds 3 features an image, and the network has 16") as caught:
        work._known(model, 0.2)
    assert caught.value.code == ExitCode.DATA


@pytest.mark.parametrize("name", ["two\nlines", "x" * 200_000, "\x1b]0;x\x07", "", "\u202e" * 5_000])
def test_a_caption_of_any_class_fits_its_panel(name: str) -> None:
    panel = np.zeros((8, 8, 3), np.uint8)
    sheet = explanations.side_by_side([(name, panel), ("b", panel)])
    assert explanations.is_side_by_side(*sheet.size)
