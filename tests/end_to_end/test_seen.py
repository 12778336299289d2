"""No run is judged by labels that its start has seen: refused for a source, a chain, a teacher and a file of weights.

The labels are by coin, so nothing can be learnt of one image from the others: whatever is right in more than half has
been seen.
"""

import csv
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import tl_dist as tl
from tests.end_to_end.harness import SMALL, TL_DIST, Workspace
from tl_dist.datasets import seen
from tl_dist.refusal import ExitCode
from tl_dist.runs.directory import RunDir
from tl_dist.runs.records import flattered
from tl_dist.tools.prune.command import pruned

NUM = 120
HELD_OUT = 30
CONFIG = (
    SMALL
    + """\
global_batch: 30
steps: 150
data: {name: csv, path: coin.csv, image_size: 12}
model: {backbone: tiny, weights: random, train_from: all}
optimizer: {name: adam, learning_rate: 0.005}
"""
)
COMPUTED = "classifier: {name: logistic}\n"
SHORT = "steps=1"
OTHER = "data.split_seed=1"
FROM = "source.run=runs/coin"


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workspace]:
    made = Workspace(tmp_path_factory.mktemp("seen"), CONFIG)
    rng = np.random.default_rng(7)
    coins = rng.permutation(NUM) % 2
    for name in ("coin", "strange"):
        (made.directory / name).mkdir()
        rows = ["path,label"]
        for k in range(NUM):
            pixels = rng.integers(0, 256, (12, 12, 3), np.uint8)
            Image.fromarray(pixels).save(made.directory / name / f"{k:03d}.png")
            rows.append(f"{name}/{k:03d}.png,{'ht'[coins[k]]}")
        (made.directory / f"{name}.csv").write_text("\n".join(rows) + "\n")
    settings = CONFIG.replace("steps: 150\n", "").replace(", train_from: all", "")
    settings = settings.replace("optimizer: {name: adam, learning_rate: 0.005}\n", COMPUTED)
    (made.directory / "features.yaml").write_text(settings)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(made.directory)
        made.train_here("coin")
        yield made


def tl_dist(workspace: Workspace, *arguments: str, expect: int = 0) -> str:
    process = workspace.start([TL_DIST, *arguments])
    said, _ = process.communicate(timeout=300)
    assert process.returncode == expect, said
    return said


def refused(workspace: Workspace, name: str, *overrides: str) -> str:
    with pytest.raises(tl.Refusal) as caught:
        workspace.train_here(name, SHORT, *overrides)
    assert caught.value.code == ExitCode.USAGE
    assert "\n" not in str(caught.value) and " Fix: " in str(caught.value)
    assert workspace.run(name).read_identity() is None  # it has not begun, and may begin otherwise
    return caught.value.what


def number_seen(data: str = "coin.csv", *overrides: str) -> int:
    """How many test images of this division runs/coin was trained on, by the names of their files alone."""
    cfg = tl.load_config("trial.yaml", f"data.path={data}", *overrides)
    trained = {Path(name).stem for name in tl.open_dataset(tl.Run("runs/coin").config)["train"].ids}
    return sum(Path(name).stem in trained for name in tl.open_dataset(cfg)["test"].ids)


def notes(run: RunDir) -> str:
    return " ".join(str(record["text"]) for record in tl.Run(run.path).history("note"))


@pytest.mark.parametrize("command", ["cv", "cv --by", "cv by training", "tune"])
def test_cv_and_tune_refuse_a_source_that_has_seen_what_they_hold_out(workspace: Workspace, command: str) -> None:
    ask = {
        "cv": ["cv", "features.yaml", "--folds=3", "--seeds=1"],
        "cv --by": ["cv", "features.yaml", "--by", "^coin/(.)"],
        "cv by training": ["cv", "trial.yaml", "--folds=3", "--seeds=1", SHORT],
        "tune": ["tune", "features.yaml", "--folds=3"],
    }[command]
    said = tl_dist(workspace, *ask, FROM, "source.allow_seen=true", expect=ExitCode.USAGE)
    assert said.count("\n") == 1 and f"by which {command.split()[0]} would judge it. Fix: " in said
    of = NUM - HELD_OUT if command == "tune" else NUM
    assert f"runs/coin has seen {NUM - HELD_OUT} of the {of} held-out images with their labels" in said


def test_cv_and_tune_refuse_a_source_task_before_it_is_trained(workspace: Workspace) -> None:
    task = ("source.data.name=csv", "source.data.path=coin.csv", "source.steps=1", "name=first")
    rate = "optimizer.learning_rate=0.01"
    for ask in (["cv", "features.yaml", "--folds=3", "--seeds=1", rate], ["tune", "features.yaml", rate]):
        said = tl_dist(workspace, *ask, *task, "source.data.image_size=12", expect=ExitCode.USAGE)
        assert "source.data" in said and "has seen" in said
    assert not Path("runs/first-source").exists()


def test_train_refuses_it_and_says_how_many_where_it_is_allowed(workspace: Workspace) -> None:
    number = number_seen("coin.csv", OTHER)
    assert 0 < number < HELD_OUT
    what = f"runs/coin has seen {number} of the {HELD_OUT} test images with their labels"
    assert what in refused(workspace, "other", FROM, OTHER)
    run = workspace.train_here("other", FROM, OTHER, SHORT, "source.allow_seen=true")
    assert what in notes(run)
    said = tl_dist(workspace, "eval", "runs/other")
    assert f"{what}: figures of test flatter" in said
    said = tl_dist(workspace, "compare", "runs/other", "runs/other")
    assert f"{what}: figures of test flatter" in said
    tl_dist(workspace, "report", "runs/other", "--heat-maps=0")
    assert f"{what}: figures of test flatter" in Path("runs/other/report.html").read_text()


def test_the_same_division_and_other_images_are_as_welcome_as_ever(workspace: Workspace) -> None:
    workspace.train_here("same", FROM, SHORT)
    workspace.train_here("strange", FROM, SHORT, OTHER, "data.path=strange.csv")
    for name in ("same", "strange"):
        assert not flattered(workspace.run(name).path) and "has seen" not in notes(workspace.run(name))
    tl_dist(workspace, "cv", "features.yaml", "--folds=3", "--seeds=1", FROM, "data.path=strange.csv")
    tl_dist(workspace, "tune", "features.yaml", "--folds=3", FROM, "data.path=strange.csv")


@pytest.mark.full
def test_a_validation_split_is_seen_by_training_and_may_choose_twice(workspace: Workspace) -> None:
    held = ("data.test_fraction=0.25", "data.validation_fraction=0.25")
    best = ("checkpoint.best.metric=log_loss", "steps=4")
    workspace.train_here("best", *held, *best)
    workspace.train_here("after-best", *held, *best, "source.run=runs/best")
    # As a test image it has chosen the weights that it judges.
    swapped = json.loads(Path("runs/best/split.json").read_text())["splits"]
    rows = {name: split for split, one in swapped.items() for name in one["ids"]}
    other = {"train": "train", "validation": "test", "test": "validation"}
    with open("coin.csv", newline="") as lines:
        table = [f"{row['path']},{row['label']},{other[rows[row['path']]]}" for row in csv.DictReader(lines)]
    Path("swapped.csv").write_text("\n".join(["path,label,split", *table]) + "\n")
    data = ("data.path=swapped.csv", "data.validation_fraction=0")
    said = refused(workspace, "swapped", *data, "source.run=runs/best")
    assert f"runs/best has seen {HELD_OUT} of the {HELD_OUT} test images" in said
    # Nothing was chosen by them here: they are news.
    workspace.train_here("not-best", *held, SHORT)
    workspace.train_here("swapped", *data, SHORT, "source.run=runs/not-best")
    # What is trained on may not choose either.
    said = refused(workspace, "chooses", FROM, *held, OTHER)
    assert "test images" in said or "validation images" in said
    # A classifier is tuned on the images that chose the backbone: they have reached it.
    ask = ["tune", "features.yaml", *held, "name=by-validation"]
    assert "has seen 30 of the 30" in tl_dist(workspace, *ask, "source.run=runs/best", expect=ExitCode.USAGE)


def as_folder() -> tuple[str, ...]:
    """The same pictures by class, under other names, and in another format without loss."""
    with open("coin.csv", newline="") as lines:
        for k, row in enumerate(csv.DictReader(lines)):
            place = Path("folder", row["label"])
            place.mkdir(parents=True, exist_ok=True)
            Image.open(row["path"]).save(place / f"renamed{k * 37 % NUM}.bmp")
    return "data.name=image_folder", "data.path=folder"


def as_packed() -> tuple[str, ...]:
    """Packed by the command, from copies in another place."""
    shutil.copytree("coin", "copies/coin")
    shutil.copy("coin.csv", "copies/coin.csv")
    return "data.name=packed", "data.path=packed"


def as_relabelled() -> tuple[str, ...]:
    """The same files under labels that were corrected in the meantime."""
    text = Path("coin.csv").read_text()
    Path("relabelled.csv").write_text(text.replace(",h", ",x").replace(",t", ",h").replace(",x", ",t"))
    return ("data.path=relabelled.csv",)


@pytest.mark.parametrize("again", [as_folder, as_packed, as_relabelled])
def test_images_are_told_by_their_pixels(workspace: Workspace, again: Callable[[], tuple[str, ...]]) -> None:
    data = again()
    if again is as_packed:
        tl_dist(workspace, "data", "pack", "copies/coin.csv", "packed")
    for ask in (["cv", "features.yaml", "--folds=3", "--seeds=1"], ["tune", "features.yaml", "--folds=3"]):
        said = tl_dist(workspace, *ask, FROM, *data, expect=ExitCode.USAGE)
        assert "runs/coin has seen" in said
    assert "has seen" in refused(workspace, "again", FROM, *data, OTHER)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of Keras, as it saves
def test_a_chain_a_teacher_and_a_file_of_weights_pass_on_what_they_have_seen(workspace: Workspace) -> None:
    shutil.copytree("runs/coin", "runs/first")
    workspace.train_here("between", "source.run=runs/first", "data.path=strange.csv", SHORT)
    shutil.rmtree("runs/first")  # the last link is enough
    last = refused(workspace, "last", "source.run=runs/between", OTHER)
    assert f"runs/between has seen {number_seen('coin.csv', OTHER)} of the {HELD_OUT} test images" in last
    taught = ("distill.teacher=runs/coin", OTHER)
    assert refused(workspace, "taught", *taught).startswith("distill.teacher")
    run = workspace.train_here("taught", *taught, SHORT, "distill.allow_seen=true")
    assert "figures of test flatter" in notes(run)
    # Whoever was taught knows what the teacher knew.
    assert "runs/taught has seen" in refused(workspace, "pupil", "source.run=runs/taught", "data.split_seed=2")
    cfg = pruned(workspace.run("coin"), 0.5, ["epochs=1", "name=narrow", OTHER])
    with pytest.raises(tl.Refusal, match="has seen"):
        tl.train(cfg, runs="runs", here=True)
    tl.Run("runs/coin").export("keras", "runs/coin/exports/keras")
    (file,) = Path("runs/coin/exports/keras").glob("*.keras")
    said = refused(workspace, "by-file", f"model.weights={file}", OTHER)
    assert said.startswith("model.weights") and "has seen" in said
    ask = ["cv", "features.yaml", "--folds=3", "--seeds=1", f"model.weights={file}"]
    said = tl_dist(workspace, *ask, expect=ExitCode.USAGE)
    assert "model.weights" in said and "has seen 90 of the 120" in said
    ask = ["rank", "features.yaml", "--candidates", "tiny,tiny:block2", f"model.weights={file}"]
    assert "by which rank would judge it" in tl_dist(workspace, *ask, expect=ExitCode.USAGE)


def test_what_a_run_without_a_record_has_seen_is_unknown(workspace: Workspace) -> None:
    shutil.copytree("runs/coin", "runs/unrecorded")
    (Path("runs/unrecorded") / seen.FILE).unlink()
    ask = ["cv", "features.yaml", "--folds=3", "--seeds=1", "source.run=runs/unrecorded"]
    said = tl_dist(workspace, *ask, "data.path=strange.csv", expect=ExitCode.USAGE)
    assert "runs/unrecorded has seen an unknown number of the 120 held-out images" in said
    said = tl_dist(workspace, "eval", "runs/unrecorded", "--data", "strange.csv")
    assert "how many of these images the run has seen with their labels is unknown" in said


def test_an_evaluation_of_other_data_says_how_many_were_trained_on(workspace: Workspace) -> None:
    said = tl_dist(workspace, "eval", "runs/coin", "--data", "coin.csv")
    assert f"has seen {NUM - HELD_OUT} of these images" in said
    said = tl_dist(workspace, "eval", "runs/coin", "--data", "strange.csv")
    assert "has seen" not in said


def test_what_was_fitted_to_the_images_that_are_shown_says_so(workspace: Workspace) -> None:
    workspace.train_here("fitted", "data.validation_fraction=0.25", SHORT)
    tl.Run("runs/fitted").calibrate()
    flatters = f"(fitted to {HELD_OUT} of these very images: it flatters)"
    assert flatters in tl_dist(workspace, "eval", "runs/fitted", "--split", "validation")
    assert "it flatters" not in tl_dist(workspace, "eval", "runs/fitted")
    workspace.directory.joinpath("again.yaml").write_text(CONFIG.replace("image_size: 12", "validation_fraction: 0.25"))
    ask = ["eval", "runs/fitted", "--data", "again.yaml", "--split"]
    assert flatters in tl_dist(workspace, *ask, "validation")
    assert "it flatters" not in tl_dist(workspace, *ask, "test")


def test_a_damaged_record_is_refused(workspace: Workspace) -> None:
    shutil.copytree("runs/coin", "runs/damaged")
    (Path("runs/damaged") / seen.FILE).write_bytes(b"no archive")
    with pytest.raises(tl.Refusal, match=r"seen\.npz holds no record of images .* Fix: restore"):
        workspace.train_here("x", "source.run=runs/damaged", SHORT)
    assert not len(seen.of_run(RunDir("runs/nowhere")).trained)
