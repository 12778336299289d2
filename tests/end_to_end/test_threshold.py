"""`tl-dist threshold`: chosen on validation images, obeyed by predict, eval, serve and exports, on any workers."""

import csv
import html
import json
from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image

import tl_dist as tl
from tests.end_to_end.harness import SMALL, TL_DIST, Workspace
from tl_dist.refusal import ExitCode, Refusal
from tl_dist.runs.directory import RunDir
from tl_dist.scores.decision import FILE, Decision
from tl_dist.tools.serve.requests import Answers
from tl_dist.tools.serve.served import of_export, of_run

CONFIG = (
    SMALL
    + """\
global_batch: 16
steps: 20
data: {name: image_folder, path: cells, image_size: 32, validation_fraction: 0.4, test_fraction: 0.3}
model: {backbone: tiny, weights: random, train_from: all}
optimizer: {name: adam, learning_rate: 0.01}
evaluation: {batch: 7}
"""
)


def tl_dist(workspace: Workspace, *arguments: str, expect: int = 0) -> str:
    process = workspace.start([TL_DIST, *arguments])
    said, _ = process.communicate(timeout=240)
    assert process.returncode == expect, said
    return " ".join(said.split())


def rows_of(workspace: Workspace, name: str) -> list[dict[str, str]]:
    return list(csv.DictReader((workspace.directory / name).read_text().splitlines()))


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workspace]:
    made = Workspace(tmp_path_factory.mktemp("threshold"), CONFIG)
    draws = np.random.default_rng(0)
    for k in range(200):
        label = "faulty" if k % 4 == 0 else "fine"
        level = draws.normal(100 if label == "faulty" else 140, 25)  # they overlap
        pixels = np.clip(draws.normal(level, 30, (32, 32, 3)), 0, 255).astype(np.uint8)
        (made.directory / "cells" / label).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(made.directory / "cells" / label / f"{k:03d}.png")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(made.directory)
        made.train_here("cells")
        yield made


def test_it_is_chosen_on_validation_images_and_obeyed(workspace: Workspace) -> None:
    run = tl.Run("runs/cells")
    validation, test = run.predictions("validation"), run.predictions("test")
    place = list(validation.class_names).index("faulty")
    said = tl_dist(workspace, "threshold", "runs/cells", "--recall", "0.9", "--class", "faulty")
    rule = Decision.of_json((run.path / FILE).read_bytes(), 2)
    own = np.sort(validation.probabilities[validation.labels == place, place])
    rank = len(own) + 1 - int(np.ceil(0.9 * (len(own) + 1)))
    assert rule.at_least == pytest.approx(own[rank - 1], rel=1e-4)
    assert run.decision == rule
    tl_dist(workspace, "report", "runs/cells", "--out", "page.html", "--heat-maps", "0")
    page = html.unescape((workspace.directory / "page.html").read_text())
    assert "The rule of tl-dist threshold, recall of 'faulty' at least 0.9: recall 0." in page
    assert f"recall of 'faulty' at least 0.9 is reached from probability {rule.at_least:.4f} on" in said

    # The figures of the test split; its labels have decided nothing.
    chosen = test.probabilities[:, place] >= rule.at_least
    recall = chosen[test.labels == place].mean()
    assert recall > (test.probabilities.argmax(axis=1) == place)[test.labels == place].mean()
    said = tl_dist(workspace, "eval", "runs/cells")
    assert f"recall of 'faulty' at least 0.9: recall {recall:.3f} (95 % interval" in said
    assert "flatters" in tl_dist(workspace, "eval", "runs/cells", "--split", "validation")

    files = {str(name): p for name, p in zip(test.ids, test.probabilities, strict=True)}
    paths = [f"cells/{name}" for name in files]
    expected = ["faulty" if p[place] >= rule.at_least else "fine" for p in files.values()]
    assert expected != [str(test.class_names[p.argmax()]) for p in files.values()]
    tl_dist(workspace, "predict", "runs/cells", *paths, "--out", "said.csv", "--top", "2")
    rows = rows_of(workspace, "said.csv")
    assert [row["class"] for row in rows] == expected
    for row, p in zip(rows, files.values(), strict=True):
        first = list(test.class_names).index(row["class"])
        assert row["class_2"] == test.class_names[1 - first]
        said_of = [float(row["probability"]), float(row["probability_2"])]
        assert said_of == pytest.approx([p[first], p[1 - first]], abs=1e-5)
    said = tl_dist(workspace, "predict", "runs/cells", *paths, "--out", "two.csv", "-n", "2", "--strategy", "horovod")
    assert "chosen by the rule of tl-dist threshold: recall of 'faulty' at least 0.9" in said
    assert [row["class"] for row in rows_of(workspace, "two.csv")] == expected

    tl_dist(workspace, "export", "runs/cells", "--to", "keras", "--check", "none", "--out", "kept")
    assert json.loads((workspace.directory / "kept/classes.json").read_text())["decision"]["aim"] == rule.aim
    assert rule.aim in (workspace.directory / "kept/MODEL_CARD.md").read_text()
    sent = [(path, (workspace.directory / path).read_bytes()) for path in paths]
    for model in (
        of_run(RunDir.open(run.path), "", cores=None),
        of_export(workspace.directory / "kept", cores=1),
    ):
        answers = Answers(model, cores=1).to_files(sent[:64])["predictions"]
        assert [answer["class"] for answer in answers] == expected[:64]


def test_costs_need_calibration_and_a_rule_needs_its_temperature(workspace: Workspace) -> None:
    (workspace.directory / "costs.csv").write_text("true,fine,faulty\nfine,0,1\nfaulty,20,0\n")
    command = "threshold", "runs/cells", "--costs", "costs.csv"
    said = tl_dist(workspace, *command, expect=ExitCode.DATA)
    assert "costs need calibrated probabilities" in said and "Fix: tl-dist calibrate runs/cells" in said
    tl_dist(workspace, "threshold", "runs/cells", "--precision", "0.6", "--class", "faulty")
    run = tl.Run("runs/cells")
    of_command = run.decision
    assert run.threshold(precision=0.6, of_class="faulty") == of_command
    with pytest.raises(Refusal, match="needs one aim"):
        run.threshold(precision=0.6, recall=0.6)
    run.calibrate()
    said = tl_dist(workspace, "predict", "runs/cells", "cells/fine", expect=ExitCode.UNSAFE)
    assert "chosen for probabilities of temperature 1.000" in said and "Fix: choose again" in said
    assert "least cost by costs.csv: accuracy" in tl_dist(workspace, *command)
    p = run.predict(["cells/fine/001.png"]).probabilities[0]
    said = tl_dist(workspace, "predict", "runs/cells", "cells/fine/001.png")
    names = [str(name) for name in run.predictions("test").class_names]
    cost = {"fine": 20 * p[names.index("faulty")], "faulty": p[names.index("fine")]}
    least = min(cost, key=lambda name: cost[name])
    assert f"cells/fine/001.png: {least}" in said
    tl_dist(workspace, "threshold", "runs/cells", "--remove")
    assert f"cells/fine/001.png: {names[p.argmax()]}" in tl_dist(
        workspace, "predict", "runs/cells", "cells/fine/001.png"
    )


def test_what_cannot_be_chosen_is_one_line(workspace: Workspace) -> None:
    for options, why in (
        ([], "threshold needs one aim. Fix: give one of --recall"),
        (["--recall", "0.9", "--precision", "0.9"], "needs one aim"),
        (["--recall", "0.9", "--class", "cow"], "no class 'cow'. Fix: use one of faulty, fine"),
        (["--recall", "0.999"], "too few for this recall"),
        (["--costs", "nothing.csv"], "nothing.csv"),
    ):
        process = workspace.start([TL_DIST, "threshold", "runs/cells", *options])
        said, _ = process.communicate(timeout=60)
        assert process.returncode and why in said and said.count("\n") == 1, said
