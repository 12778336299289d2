"""A label that is held out reaches no number: all of them turned around, no bit of a model or of a choice moves.

Each promise is tried twice: with the labels of the split that is only judged by, which may move nothing, and with those
of one that decides, which must: else nothing here could fail.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

import tl_dist as tl
from tests.end_to_end.harness import EVERY_STEP, SMALL, TL_DIST, Workspace, losses, newest
from tl_dist.runs.directory import RunDir
from tl_dist.scores import neighbours
from tl_dist.tools.prune.command import pruned

SITES = ("north", "south")
CONFIG = (
    EVERY_STEP
    + """\
global_batch: 16
steps: 8
data: {name: csv, path: true.csv, image_size: 16, augment: [flip]}
model: {backbone: tiny, weights: random, train_from: all}
optimizer: {name: adam, learning_rate: 0.01}
loss: {class_weights: balanced}
evaluation: {every_epochs: 2}
"""
)
COMPUTED = (
    SMALL
    + """\
global_batch: 16
data: {name: csv, path: true.csv, image_size: 16}
model: {backbone: tiny, weights: tiny.safetensors, layers: [block2, block3]}
classifier: {name: logistic, l2: auto, layers: auto}
loss: {class_weights: balanced}
"""
)
DECIDED = (
    "checkpoint.best.metric=log_loss",
    "checkpoint.average=3",
    "early_stopping.metric=accuracy",
    "early_stopping.patience=4",
    "optimizer.schedule.name=plateau",
    "optimizer.schedule.metric=macro_f1",
    "optimizer.schedule.patience=1",
    "evaluation.every_epochs=0.5",
    "steps=20",
)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workspace]:
    """One set of noisy pictures in a table as it is, and in others whose labels of some rows are turned around."""
    made = Workspace(tmp_path_factory.mktemp("held_out"), CONFIG)
    (made.directory / "computed.yaml").write_text(COMPUTED)
    rng = np.random.default_rng(3)
    kernels = {}
    for name, inputs, filters in (("block1", 3, 16), ("block2", 16, 32), ("block3", 32, 64)):
        shape = (3, 3, inputs, filters)
        kernels[f"{name}_conv1/kernel"] = rng.normal(0, inputs**-0.5 / 3, shape).astype(np.float32)
        kernels[f"{name}_conv1/bias"] = np.zeros(filters, np.float32)
    save_file(kernels, made.directory / "tiny.safetensors")
    rows = []
    for k in range(120):
        label, split = int(rng.integers(2)), ("train", "train", "validation", "test")[k % 4]
        pixels = rng.normal(100 + 4 * label, 60, (16, 16, 3))
        Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(made.directory / f"{k:03d}.png")
        rows.append((f"{k:03d}.png", label, split, SITES[k // 4 % 2]))

    def write(name: str, turned: Callable[[str, str], bool], *, splits: bool = True) -> None:
        lines = ["path,label,split,site" if splits else "path,label,site"]
        for path, label, split, site in rows:
            cells = [path, "ab"[label ^ turned(split, site)], *([split] if splits else []), site]
            lines.append(",".join(cells))
        (made.directory / f"{name}.csv").write_text("\n".join(lines) + "\n")

    write("true", lambda split, site: False)
    write("test", lambda split, site: split == "test")
    write("validation", lambda split, site: split == "validation")
    write("both", lambda split, site: split != "train")
    write("all_sites", lambda split, site: False, splits=False)
    write("south", lambda split, site: site == "south", splits=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(made.directory)
        yield made


def tl_dist(workspace: Workspace, *arguments: str) -> str:
    process = workspace.start([TL_DIST, *arguments])
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 0, said
    return said


def trained(name: str, table: str, *overrides: str, config: str = "trial.yaml") -> tl.Run:
    """A run on one of the tables, trained once."""
    cfg = tl.load_config(config, f"name={name}-{table}", f"data.path={table}.csv", *overrides)
    return tl.train(cfg, here=True)


def of_weights(run: tl.Run) -> dict[str, Any]:
    """All that a run has decided: bits of the state, the history of choices, losses, and what it ends with."""
    directory = RunDir(run.path)
    history = json.loads(newest(directory).with_name("meta.json").read_text())["history"]
    history.pop("best_validation", None)  # a figure to be shown, by which nothing is chosen
    return {
        "bits": [file.read_bytes() for file in sorted(directory.checkpoints.rglob("*.safetensors"))],
        "history": history,
        "losses": losses(directory),
        "best": (directory.done or {}).get("best"),
    }


def test_training_by_steps(workspace: Workspace) -> None:
    """With a validation split that decides nothing, its labels move as little as those of the test split."""
    true = of_weights(trained("steps", "true"))
    assert true == of_weights(trained("steps", "both"))


def test_training_that_validation_decides(workspace: Workspace) -> None:
    """The best, their mean, an early end and the rate: by validation alone, whose labels do move them."""
    true = of_weights(trained("decided", "true", *DECIDED))
    assert true == of_weights(trained("decided", "test", *DECIDED))
    other = of_weights(trained("decided", "validation", *DECIDED))
    assert other["best"] != true["best"] and other["bits"] != true["bits"]


def test_a_computed_classifier_and_what_is_chosen_for_it(workspace: Workspace) -> None:
    """Penalty and layers are chosen by folds of the training split."""
    true, other = (of_weights(trained("fit", table, config="computed.yaml")) for table in ("true", "both"))
    assert true == other and true["history"]["classifier"]["l2"]


def test_thresholds_temperatures_sets_and_alarms(workspace: Workspace) -> None:
    def fitted(table: str) -> dict[str, Any]:
        run = trained("steps", table)
        kept = run.calibrate(unknown=True)
        with np.load(run.path / neighbours.FILE) as arrays:
            alarms = {name: arrays[name].tobytes() for name in arrays}
        tl_dist(
            workspace, "predict", str(run.path), "001.png", "003.png", "--coverage=0.8", "--unknown=0.1",
            "--out", f"{table}.said.csv",
        )  # fmt: skip
        tl_dist(workspace, "eval", str(run.path))
        record = json.loads((run.path / "evaluations" / "test.json").read_text())
        return {
            "calibration": {name: np.asarray(value).tobytes() for name, value in kept.arrays().items()},
            "alarms": alarms,
            "said": Path(f"{table}.said.csv").read_text(),
            "threshold": record["figures"]["threshold"],
            "temperature": record["figures"]["calibration"]["temperature"],
        }

    true = fitted("true")
    assert true == fitted("test")
    other = fitted("validation")
    assert other["calibration"] != true["calibration"] and other["threshold"] != true["threshold"]
    # The weights are the same: only what validation is for has moved.
    assert of_weights(trained("steps", "validation")) == of_weights(trained("steps", "true"))


def test_the_order_of_tuned_classifiers(workspace: Workspace) -> None:
    def tuned(table: str) -> Any:
        tl_dist(workspace, "tune", "computed.yaml", f"data.path={table}.csv", f"name=of-{table}")
        return json.loads(Path(f"runs/of-{table}-tune/tuning.json").read_text())

    true = tuned("true")
    assert true == tuned("test") and true != tuned("validation")


def test_the_scores_of_networks(workspace: Workspace) -> None:
    """By training examples alone."""
    Path("two.yaml").write_text("- tiny:block2\n- tiny\n")

    def ranked(table: str) -> Any:
        ask = ["rank", "computed.yaml", "--candidates", "two.yaml", "--json", f"--out={table}.best.yaml"]
        said = tl_dist(workspace, *ask, f"data.path={table}.csv", "model.layers=[]", "classifier.layers=all")
        found = json.loads(said[said.index("\n{") if not said.startswith("{") else 0 :])
        return [{k: v for k, v in one.items() if k != "data"} for one in found["candidates"]]

    assert ranked("true") == ranked("both")


@pytest.mark.full
def test_a_taught_and_a_pruned_network(workspace: Workspace) -> None:
    """Refitted to training images, and taught by what was trained on the same split."""

    def smaller(table: str) -> dict[str, Any]:
        teacher = trained("steps", table)
        cfg = pruned(workspace.run(teacher.path.name), 0.5, ["steps=3", f"name=narrow-{table}"])
        return of_weights(tl.train(cfg, runs="runs", here=True))

    assert smaller("true") == smaller("both")


@pytest.mark.parametrize("how", ["computed", pytest.param("by training", marks=pytest.mark.full)])
def test_each_part_of_a_cross_validation(workspace: Workspace, how: str) -> None:
    """The models that have not seen a site are the same, whatever its labels are; all others are not."""

    def of_south(table: str) -> Any:
        data = f"data.path={table}.csv"
        name = f"{how[:2]}-{table}"
        if how == "computed":
            tl_dist(workspace, "cv", "computed.yaml", "--by", "site", data, f"name={name}")
        else:
            tl_dist(workspace, "cv", "trial.yaml", "--by", "site", data, f"name={name}", "steps=3")
        with np.load(f"runs/{name}-cv-by-site/predictions/out_of_fold.npz") as kept:
            order = np.argsort(kept["ids"])
            site = np.array([SITES[int(name[:3]) // 4 % 2] for name in kept["ids"][order]])
            probabilities = kept["probabilities"][0][order]
        return probabilities[site == "south"].tobytes(), probabilities[site != "south"].tobytes()

    (own, others), (own_turned, others_turned) = of_south("all_sites"), of_south("south")
    assert own == own_turned and others != others_turned


def test_what_a_recipe_fills_in(workspace: Workspace) -> None:
    text = "recipe: auto\ndata: {name: csv, path: true.csv}\nmodel: {backbone: tiny, weights: random}\n"
    Path("recipe.yaml").write_text(text)
    true, turned = (tl.load_config("recipe.yaml", f"data.path={one}.csv").model_dump() for one in ("true", "both"))
    del true["data"]["path"], turned["data"]["path"]
    assert true == turned
