"""`tl-dist predict` and `eval --data`: the bits of the run's own evaluation, on any files, beside whoever trains."""

import csv
import json
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

import tl_dist as tl
from tests.damaged_images import wrong_checksum
from tests.doubles import build
from tests.end_to_end.harness import SMALL, TL_DIST, Workspace, wait_for
from tl_dist.runs.directory import RunDir
from tl_dist.runs.lock import Lock
from tl_dist.scores import predictions
from tl_dist.trainer.evaluate import evaluate_checkpoint
from tl_dist.trainer.load_model import process_as_it_was
from tl_dist.trainer.setup import setup

CLASSES = ("cat", "dog", "owl")
CONFIG = (
    SMALL
    + """\
global_batch: 8
data: {name: image_folder, path: images, image_size: 32, resize: crop, validation_fraction: 0.2}
model: {backbone: tiny, weights: tiny.safetensors, pooling: both, normalize: true}
evaluation: {batch: 7}
"""
)
RUNS = {
    # Two stages with averaged weights, evaluated in two views.
    "trained": (
        "stages=[{train_from: head, steps: 4}, {train_from: all, steps: 6}]",
        "optimizer.name=adam",
        "optimizer.learning_rate=0.01",
        "optimizer.ema=0.8",
        "evaluation.views=[flip]",
    ),
    # Ends with weights that are not the last.
    "best": (
        "model.train_from=all",
        "steps=20",
        "optimizer.name=adam",
        "optimizer.learning_rate=0.01",
        "evaluation.every_epochs=0.5",
        "checkpoint.best.metric=accuracy",
    ),
    "computed": ("classifier.name=logistic", "data.resize=stretch"),
}


def write(folder: Path, size: tuple[int, int], number: int, seed: int) -> Path:
    """A noisy picture whose colour tells its class."""
    folder.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng((seed, number)).integers(0, 160, (*size, 3))
    noise[..., CLASSES.index(folder.name) if folder.name in CLASSES else 0] += 60
    Image.fromarray(noise.astype(np.uint8)).save(folder / f"{number:02d}.png")
    return folder / f"{number:02d}.png"


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workspace]:
    """Trained runs, in the working directory."""
    made = Workspace(tmp_path_factory.mktemp("predict"), CONFIG)
    for k in range(60):
        # Of the owls none is resized.
        write(made.directory / "images" / CLASSES[k % 3], (32, 32) if k % 3 == 2 else (40 + k, 70), k, 0)
    network = build("tiny")
    start = {path: v.numpy() for path, v in {**network.trainable, **network.frozen}.items()}
    backbone = {path.removeprefix("backbone/"): v for path, v in start.items() if path.startswith("backbone/")}
    save_file(backbone, made.directory / "tiny.safetensors")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(made.directory)
        for name, overrides in RUNS.items():
            tl.train(tl.load_config("trial.yaml", f"name={name}", *overrides), here=True)
        yield made


def evaluated(name: str) -> predictions.Predictions:
    """What the evaluation of the run says of its test split, from images."""
    with process_as_it_was():
        evaluate_checkpoint(setup(RunDir(f"runs/{name}"), cores=None), "test")
    return tl.Run(f"runs/{name}").predictions("test")


def files_of(kept: predictions.Predictions) -> list[str]:
    return [f"images/{name}" for name in kept.ids]


def tl_dist(workspace: Workspace, *arguments: str) -> str:
    process = workspace.start([TL_DIST, *arguments])
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 0, said
    return said


def rows(file: str) -> tuple[list[str], np.ndarray, list[str]]:
    """The files of a CSV, float32 [N, classes] in the order of CLASSES (nan: none), and the errors."""
    with open(file, newline="") as lines:
        found = list(csv.DictReader(lines))
    values = np.full((len(found), len(CLASSES)), np.nan, np.float32)
    for row, value in zip(found, values, strict=True):
        for k in ("", "_2", "_3"):
            if row[f"class{k}"]:
                value[CLASSES.index(row[f"class{k}"])] = np.float32(row[f"probability{k}"])
    return [row["path"] for row in found], values, [row["error"] for row in found]


@pytest.mark.parametrize("name", RUNS)
def test_the_bits_are_those_of_the_evaluation(workspace: Workspace, name: str) -> None:
    kept = evaluated(name)
    found = tl.Run(f"runs/{name}").predict(files_of(kept))
    assert found.ids.tolist() == files_of(kept) and not found.errors
    assert found.step == kept.step
    assert name != "best" or found.step < 20
    assert len(np.unique(found.probabilities)) > len(kept.ids)
    assert found.probabilities.tobytes() == kept.probabilities.tobytes()


@pytest.mark.full
def test_so_they_are_on_three_workers(workspace: Workspace) -> None:
    tl_dist(workspace, "eval", "runs/trained", "-n", "3")
    kept = tl.Run("runs/trained").predictions("test")
    Path("list.txt").write_text("\n".join(files_of(kept)))
    command = f"{TL_DIST} predict runs/trained - --top 3 --out three.csv -n 3 < list.txt"
    said, _ = workspace.start(["bash", "-ec", command]).communicate(timeout=120)
    paths, values, _ = rows("three.csv")
    assert paths == files_of(kept), said
    assert values.tobytes() == kept.probabilities.tobytes()


def test_they_are_those_of_keras_on_images_that_pillow_decodes(workspace: Workspace) -> None:
    """The computed classifier, whose evaluation has one view; images that need no resizing."""
    run = tl.Run("runs/computed")
    found = run.predict("images/owl")
    images = np.stack([np.asarray(Image.open(path).convert("RGB")) for path in found.ids])
    expected = run.keras_model().predict(images, verbose=0)
    assert images.shape == (20, 32, 32, 3)
    np.testing.assert_allclose(found.probabilities, expected, atol=1e-5)


def state_of_the_run() -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in Path("runs/trained").rglob("*") if p.is_file() and "lock" not in str(p)}


def test_whatever_cannot_be_decoded_has_a_row_and_changes_no_other(workspace: Workspace) -> None:
    """Without the data set, and while somebody else has the run."""
    new = Path("new")
    good = [str(write(new, (50, 30 + k), k, seed=1)) for k in range(20)]
    expected = tl.Run("runs/trained").predict(good).probabilities
    bad = {
        "flipped.png": "cannot be decoded: ",
        "cut.png": "PNG is cut off",
        "gone.png": "cannot be read: No such",
    }
    (new / "flipped.png").write_bytes(wrong_checksum())
    (new / "cut.png").write_bytes(Path(good[0]).read_bytes()[:-20])
    asked = [good[0], "new/gone.png", *good[1:11], "new/flipped.png", *good[11:], "new/cut.png"]
    Path("list").write_bytes("\0".join(asked).encode())
    shutil.move("images", "elsewhere")
    before = state_of_the_run()
    try:
        with Lock.acquire(RunDir("runs/trained")):
            command = f"{TL_DIST} predict runs/trained -0 - --max-bad 2 --top 3 --out all.csv < list"
            process = workspace.start(["bash", "-ec", command])
            said, _ = process.communicate(timeout=120)
    finally:
        shutil.move("elsewhere", "images")
    assert process.returncode == 65 and "3 of 23 files cannot be decoded, more than 2" in said, said
    assert "Traceback" not in said and state_of_the_run() == before
    paths, values, errors = rows("all.csv")
    assert paths == asked
    assert values[[not error for error in errors]].tobytes() == expected.tobytes()
    for path, error in zip(paths, errors, strict=True):
        assert error.startswith(bad.get(Path(path).name, "")) and bool(error) == (Path(path).name in bad)


def test_ctrl_c_leaves_nothing(workspace: Workspace, tmp_path: Path) -> None:
    argv = [TL_DIST, "predict", "runs/trained", "images", "--out", str(tmp_path / "rows.csv")]
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    process = workspace.start(argv, TMPDIR=str(scratch))
    wait_for(lambda: list(scratch.glob("tl-dist-*/logs/*")), "the start of a worker")
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 75, said
    assert "was stopped after" in said and "rows.csv was not written" in said and "Fix: " in said
    assert os.listdir(tmp_path) == ["scratch"] and not os.listdir(scratch)


def test_another_data_set_is_matched_by_the_names_of_its_classes(workspace: Workspace) -> None:
    """One class that the run does not know, one that is missing, and so another number for each."""
    for k in range(4):
        for name in ("ant", "dog", "owl"):
            write(Path("other") / name, (32, 32), k, seed=2)
    said = tl_dist(workspace, "eval", "runs/computed", "--data", "other")
    assert "does not know these classes: ant (4)" in said and "without an example: cat" in said
    again = tl_dist(workspace, "eval", "runs/computed", "--data", "other")
    assert "look 2 at these images" in again
    (file,) = Path("runs/computed/evaluations").glob("other-all-*.json")
    record = json.loads(file.read_text())
    found = tl.Run("runs/computed").predict(["other/dog", "other/owl"])
    right = [Path(name).parts[1] for name in found.ids] == found.class_names[found.probabilities.argmax(1)]
    assert record["num_correct"] == right.sum() and record["num_examples"] == 8
    assert [row["num_examples"] for row in record["classes"]] == [0, 4, 4]
    kept = tl.Run("runs/computed").predictions(file.stem)
    assert kept.labels.tolist() == [1] * 4 + [2] * 4


def test_its_own_data_as_another_set_on_two_workers_gives_its_own_figures_and_bits(
    workspace: Workspace,
) -> None:
    for data in ((), ("--data", "runs/trained/config.yaml")):
        tl_dist(workspace, "eval", "runs/trained", "-n", "2", *data)
    (file,) = Path("runs/trained/evaluations").glob("config-test-*.json")
    expected, found = (json.loads(f.read_text()) for f in (file.with_name("test.json"), file))
    compared = ("num_correct", "num_examples", "confusion", "classes")
    assert {key: found[key] for key in compared} == {key: expected[key] for key in compared}
    assert found["figures"] == expected["figures"]
    assert found["loss"] == pytest.approx(expected["loss"], abs=1e-6)
    bits = [tl.Run("runs/trained").predictions(name).probabilities for name in ("test", file.stem)]
    assert bits[0].tobytes() == bits[1].tobytes()
