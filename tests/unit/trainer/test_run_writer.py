"""Curves do not fold back after a restart; TensorBoard shows scalars, pictures and hyperparameters."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib import colormaps
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.util.tensor_util import make_ndarray

from tests.doubles import run_writer
from tl_dist.runs.directory import RunDir
from tl_dist.runs.records import records
from tl_dist.scores.evaluation import Evaluation
from tl_dist.scores.pictures import confusion_picture, grid_picture
from tl_dist.scores.predictions import Predictions
from tl_dist.trainer.board import Board
from tl_dist.training.state import Report


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    run_dir = RunDir(tmp_path / "run")
    run_dir.path.mkdir()
    return run_dir


def report(step: int, **changes: Any) -> Report:
    values: dict[str, Any] = {
        "step": step,
        "steps": 10,
        "mean_loss": 1.0 / step,
        "accuracy": 0.5,
        "learning_rate": 0.1,
        "gradient_norm": 2.0,
        "num_examples": 320,
        "num_skipped": 1,
        "loss_scale": 4.0,
        "elapsed_s": 2.0,
        "data_wait_s": [0.1, 0.4],
        "reduction_s": 0.2,
    }
    return Report(**(values | changes))


def lines(run: RunDir) -> list[dict[str, Any]]:
    return [json.loads(line) for line in run.metrics_file.read_text().splitlines()]


def test_a_report_becomes_rates_and_shares(run: RunDir) -> None:
    writer = run_writer(run, tensorboard=True)
    writer.report(report(10))
    writer.report(report(20))
    writer.close()
    first, line = lines(run)
    assert first["eta_s"] is None  # it has compiled
    assert line["event"] == "train"
    assert line["examples_per_s"] == 160
    assert line["data_wait_share"] == pytest.approx(0.2)  # of the slowest worker
    assert line["reduction_share"] == pytest.approx(0.1)
    assert (line["epoch"], line["eta_s"]) == (1.0, 16.0)


def test_steps_that_are_done_again_are_written_once(run: RunDir) -> None:
    first = run_writer(run, tensorboard=True)
    for step in (10, 20, 30):
        first.report(report(step))
    first.note("something")
    first.close()
    with run.metrics_file.open("a") as file:
        file.write('{"event": "train", "st')  # torn by a kill
    before = run.metrics_file.read_bytes()
    second = run_writer(run, 20, tensorboard=True)
    second.report(report(30, mean_loss=9.0))
    second.close()
    events = [(record["event"], record.get("step")) for record in records(run.metrics_file)]
    assert events == [("train", 10), ("train", 20), ("note", None), ("resumed", 20), ("train", 30)]
    assert run.metrics_file.read_bytes().startswith(before)
    board = EventAccumulator(str(run.tensorboard)).Reload()
    scalars = board.Scalars("train/loss")
    assert [event.step for event in scalars] == [10, 20, 30]
    assert scalars[-1].value == 9.0


def test_an_attempt_that_ended_before_its_first_checkpoint_is_done_again(run: RunDir) -> None:
    for loss in (1.0, 2.0):
        writer = run_writer(run)
        writer.report(report(10, mean_loss=loss))
        writer.close()
    assert [(record["event"], record.get("loss")) for record in records(run.metrics_file)] == [
        ("resumed", None),
        ("train", 2.0),
    ]


def test_tensorboard_has_every_page(run: RunDir) -> None:
    writer = run_writer(run, tensorboard=True)
    writer.images(np.zeros((3, 8, 8, 3), np.uint8), ["dog", "cat", "dog"])
    writer.report(report(10))
    writer.evaluated(10, Evaluation("validation", 4, 3, 0.5, np.array([[2, 0], [1, 1]])))
    scores = np.array([0.1, 0.6, 0.4, 0.9])
    labels, ids = np.array([0, 0, 1, 1]), np.array(list("abcd"))
    both = np.stack([1 - scores, scores], axis=1)
    final = Predictions(ids, labels, both, np.array(["cat", "dog"]), 10, np.full(4, ""))
    assert isinstance(writer._board, Board)
    writer._board.predicted("test", final)
    writer.close()
    board = EventAccumulator(str(run.tensorboard)).Reload()
    assert {
        "train/loss", "train/accuracy", "optimizer/learning_rate", "optimizer/loss_scale", "optimizer/skipped_steps",
        "speed/images_per_s", "step_time/data_wait_s", "step_time/compute_s", "step_time/reduction_s",
        "validation/loss", "validation/accuracy", "validation_recall/cat", "validation_f1/dog",
    } <= set(board.Tags()["scalars"])  # fmt: skip
    assert {"train/augmented_images", "validation/confusion"} <= set(board.Tags()["images"])
    recall, precision = (board.Scalars(f"validation_{key}/dog")[0].value for key in ("recall", "precision"))
    assert (recall, precision) == (0.5, 1.0)
    (config,) = make_ndarray(board.Tensors("config")[0].tensor_proto).reshape(-1)
    assert b"| model.backbone | `tiny` |" in config
    curve = make_ndarray(board.Tensors("test_precision_recall/dog")[0].tensor_proto)
    np.testing.assert_allclose(curve[:, 100], [1, 1, 1, 1, 0.5, 0.5])  # at 0.5 it says so of one of each
    np.testing.assert_allclose(curve[:, 140], [1, 0, 2, 1, 1, 0.5])  # at 0.7 of one dog alone
    assert "test_precision_recall/cat" not in board.Tags()["tensors"]
    assert board.summary_metadata["_hparams_/session_start_info"].plugin_data.plugin_name == "hparams"


def test_pictures_are_png() -> None:
    for png in (
        confusion_picture(np.array([[5, 1], [0, 3]]), ["functional", "defective"]),
        confusion_picture(np.eye(100, dtype=int), [str(k) for k in range(100)]),
        grid_picture(np.zeros((20, 8, 8, 3), np.uint8), ["a"] * 20),
    ):
        picture = Image.open(io.BytesIO(png))
        assert picture.format == "PNG"
        assert min(picture.size) > 100


def test_a_class_is_shaded_by_the_share_of_its_own_examples_however_few_they_are() -> None:
    """Forty classes of 1 to 40 examples, all right: the diagonal is as dark as the colour scale goes."""
    counts = np.diag(np.arange(1, 41))
    picture = np.asarray(Image.open(io.BytesIO(confusion_picture(counts, [str(k) for k in range(40)]))))
    side = len(picture) // 40
    squares = picture[side // 2 :: side, side // 2 :: side]
    darkest = (np.array(colormaps["Blues"](1.0)[:3]) * 255).astype(int)
    assert np.abs(squares[np.eye(40, dtype=bool)].astype(int) - darkest).max() <= 1
    assert squares[~np.eye(40, dtype=bool)].min() > 240


def test_records_reach_the_listener(run: RunDir) -> None:
    heard: list[Any] = []
    writer = run_writer(run, listen=heard.append)
    writer.tell({"event": "checkpoint", "step": 10})
    writer.close()
    assert heard == [{"event": "checkpoint", "step": 10}]
    assert not run.tensorboard.exists()
