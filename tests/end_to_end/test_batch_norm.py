"""Batch statistics belong to the state of a run, agree on all workers, and the report says what became of them."""

import json
import subprocess

import pytest

from tests.end_to_end.harness import TL_DIST, Workspace, bits, records

SETTINGS = (
    "steps=6",
    "data.name=synthetic",
    "data.num_examples=32",
    "model.backbone=tests.normalised:NORMALISED",
    "model.train_from=two",
    "model.batch_norm=train",
    "model.batch_norm_momentum=0.999",
    "checkpoint.every_steps=2",
    "safety.max_restarts=0",
    "--strategy=horovod",
    "-n2",
)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    made = Workspace(tmp_path_factory.mktemp("batch-norm"))
    made.train("whole", *SETTINGS)
    return made


def test_the_report_names_each_layer_and_the_workers_agree(workspace: Workspace) -> None:
    (record,) = records(workspace.run("whole"), "batch_norm")
    layers = record["layers"]
    trained = [layer for layer in layers if layer["trainable"]]
    assert 0 < len(trained) < len(layers)
    for layer in layers:
        assert layer["mode"] == ("train" if layer["trainable"] else "inference"), layer
        assert layer["statistics_moved"] == layer["trainable"], layer
        assert layer["spread"] == 0.0, layer


def test_the_checkpoint_holds_the_statistics_that_the_figures_are_of(workspace: Workspace) -> None:
    """Six steps of momentum 0.999 move nothing: they are recomputed at the end, and `tl-dist eval` finds them."""
    run = workspace.run("whole")
    assert any("by statistics recomputed over 45 training images" in note["text"] for note in records(run, "note"))
    (judged,) = [record for record in records(run, "evaluation") if record["split"] == "test"]
    subprocess.run([TL_DIST, "eval", str(run.path), "--split", "test"], check=True)
    again = json.loads((run.path / "evaluations" / "test.json").read_text())
    assert again["loss"] == pytest.approx(judged["loss"], rel=1e-5)


def test_killed_it_goes_on_with_the_same_rows_alone_to_the_same_statistics(workspace: Workspace) -> None:
    """The one setting by which the worker count is visible: another count is refused, not hidden."""
    process = workspace.start(
        workspace.argv("killed", *SETTINGS), TL_FAILPOINT="train.chunk_done:5=kill", TL_ALLOW_FAILPOINTS="1"
    )
    process.communicate(timeout=240)
    assert process.returncode != 0
    said = workspace.train("killed", *SETTINGS[:-1], "-n1", expect=78)
    assert "batch_statistics_of" in said and "Fix:" in said
    workspace.train("killed", *SETTINGS)
    assert records(workspace.run("killed"), "resumed")
    assert bits(workspace.run("killed")) == bits(workspace.run("whole"))
