"""Heat maps of files and splits are of the images that are predicted, also of transparent ones."""

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
    """Colours under an alpha of 0, which is shown as white."""
    pixels = np.random.default_rng(number).integers(0, 120, (32, 32, 4)).astype(np.uint8)
    pixels[..., number % 3] += 100
    pixels[..., 3] = 0
    return Image.fromarray(pixels)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunDir]:
    made = Workspace(tmp_path_factory.mktemp("decoding"), CONFIG)
    for k in range(45):
        folder = made.directory / "images" / "abc"[k % 3]
        folder.mkdir(parents=True, exist_ok=True)
        # One in two is opaque, so that there is something to learn.
        picture = hidden(k)
        (picture.convert("RGB") if k % 2 else picture).save(folder / f"{k:02d}.png")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(made.directory)
        yield made.train_here("new")


def test_an_explanation_is_of_what_is_predicted(run: RunDir, tmp_path: Path) -> None:
    test = open_splits(tl.Run(run.path).config.data)[0]["test"]
    files = [f"images/{name}" for name in test.ids]
    predicted = tl.Run(run.path).predict(files).probabilities
    shown = []
    for name in files:
        with Image.open(name) as picture:
            pixels = np.asarray(picture.convert("RGBA"))
        shown.append(pixels[..., :3] if pixels[..., 3].any() else np.full((32, 32, 3), 255, np.uint8))
    for request in (Request(files=files), Request(split="test", examples=range(test.num_examples))):
        directory = tmp_path / (request.split if not request.files else "files")
        directory.mkdir()
        with process_as_it_was():
            explain(loaded(run, cores=None), replace(request, into=str(directory)))
        answer = Explained.load(directory)
        np.testing.assert_array_equal(answer.images, np.stack(shown))
        np.testing.assert_allclose(softmax(answer.logits.astype(np.float64)), predicted, atol=1e-5)
        np.testing.assert_array_equal(answer.classes, predicted.argmax(axis=1))


def test_a_run_on_such_images_is_calibrated(run: RunDir) -> None:
    assert tl.Run(run.path).calibrate().temperature > 0
