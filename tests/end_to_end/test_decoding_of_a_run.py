"""What is asked of a run reads images by the run's own rule: heat maps of files and splits are of what is predicted."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import tl_dist as tl
from tests.end_to_end.harness import SMALL, Workspace
from tl_dist.datasets.division import open_splits
from tl_dist.runs.directory import RunDir
from tl_dist.scores.explanations import Explained
from tl_dist.scores.figures import softmax
from tl_dist.tools.explain import Request
from tl_dist.tools.explain.work import explain
from tl_dist.trainer.load_model import loaded, process_as_it_was

CONFIG = (
    SMALL
    + """\
global_batch: 8
steps: 12
data: {name: image_folder, path: images, image_size: 32, validation_fraction: 0.2, test_fraction: 0.3}
model: {backbone: tiny, weights: random, train_from: all}
optimizer: {name: adam, learning_rate: 0.01}
"""
)


def hidden(number: int) -> Image.Image:
    """Colours under an alpha of 0: the first version of the rule shows them, the second is white."""
    pixels = np.random.default_rng(number).integers(0, 120, (32, 32, 4)).astype(np.uint8)
    pixels[..., number % 3] += 100
    pixels[..., 3] = 0
    return Image.fromarray(pixels)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[int, RunDir]]:
    """By version of the rule: a run, and a copy that says that it is an older one."""
    made = Workspace(tmp_path_factory.mktemp("decoding"), CONFIG)
    for k in range(45):
        folder = made.directory / "images" / "abc"[k % 3]
        folder.mkdir(parents=True, exist_ok=True)
        # One in two is opaque, so that there is something to learn by either rule.
        picture = hidden(k)
        (picture.convert("RGB") if k % 2 else picture).save(folder / f"{k:02d}.png")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(made.directory)
        new = made.train_here("new")
        old = RunDir(shutil.copytree(new.path, new.path.with_name("old")))
        identity = json.loads((old.path / "run.json").read_text())
        (old.path / "run.json").write_text(json.dumps(identity | {"decoding": 1}))
        yield {2: new, 1: old}


def explained(run: RunDir, request: Request, directory: Path) -> Explained:
    directory.mkdir()
    with process_as_it_was():
        explain(loaded(run, cores=None), replace(request, into=str(directory)))
    return Explained.load(directory)


@pytest.mark.parametrize("version", [1, 2])
def test_an_explanation_is_of_what_is_predicted(
    runs: dict[int, RunDir], version: int, tmp_path: Path
) -> None:
    run = runs[version]
    test = open_splits(tl.Run(run.path).config.data)[0]["test"]
    files = [f"images/{name}" for name in test.ids]
    predicted = tl.Run(run.path).predict(files).probabilities
    asked = {"files": Request(files=files)}
    asked["split"] = Request(split="test", examples=range(test.num_examples))
    shown = []
    for name in files:
        with Image.open(name) as picture:
            pixels = np.asarray(picture.convert("RGBA"))
        white = version == 2 and not pixels[..., 3].any()
        shown.append(np.full((32, 32, 3), 255, np.uint8) if white else pixels[..., :3])
    for kind, request in asked.items():
        answer = explained(run, request, tmp_path / kind)
        np.testing.assert_array_equal(answer.images, np.stack(shown), err_msg=kind)
        np.testing.assert_allclose(softmax(answer.logits.astype(np.float64)), predicted, atol=1e-5)
        np.testing.assert_array_equal(answer.classes, predicted.argmax(axis=1))


def test_the_versions_differ(runs: dict[int, RunDir]) -> None:
    """Else equal answers would say nothing."""
    files = [str(path) for path in sorted(Path("images/a").glob("*.png"))]
    new, old = (tl.Run(runs[version].path).predict(files).probabilities for version in (2, 1))
    assert np.abs(new - old).max() > 1e-2


def test_a_run_on_such_images_is_calibrated(runs: dict[int, RunDir]) -> None:
    """Its data are those that it was trained on, by its own rule."""
    assert tl.Run(runs[2].path).calibrate().temperature > 0
