"""An evaluation of ImageNet's size: rank 0 keeps its logits once, nobody else does, and its picture stays small."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from tests.doubles import run_writer
from tests.peak_memory import taken_by
from tl_dist.parallel import rows_of
from tl_dist.runs.directory import RunDir
from tl_dist.scores import predictions
from tl_dist.scores.evaluation import Evaluation
from tl_dist.scores.pictures import MAX_SIDE, confusion_picture, grid_picture
from tl_dist.terminal.progress import confusion_table
from tl_dist.trainer.run_writer import evaluation_record
from tl_dist.training import evaluation
from tl_dist.training.evaluation import example_hash

NUM, CLASSES, BATCH = 20_000, 500, 250
LOGITS_MB = NUM * CLASSES * 4 / 2**20  # 38

EVALUATE = """
from tests.unit.training.test_large_evaluation import *
import sklearn.metrics, scipy.special, scipy.stats

def evaluated(rank, num, out):
    result = evaluate(FakeWorker(rank, 2), num, CLASSES, BATCH)
    if rank == 0:
        assert result.logits.shape == (num, CLASSES)
        labels = (np.arange(num) % CLASSES).astype(np.int32)
        result = predictions.with_figures(
            result, Path(out), step=1, ids=["x"] * num, truth=labels, class_names=["c"] * CLASSES
        )
        assert result.figures["roc_auc"] is not None
    return result

evaluated(0, 2 * CLASSES, "{out}")  # what libraries take when they are first used
"""


class FakeWorker:
    """A worker of a run whose peers say what it says."""

    def __init__(self, rank: int, world_size: int) -> None:
        self.rank, self.world_size = rank, world_size

    def total(self, values: dict[str, Any]) -> dict[str, Any]:
        return {key: np.asarray(value, np.float64) for key, value in values.items()}

    def gather(self, text: bytes) -> list[bytes]:
        return [text] * self.world_size


def evaluate(parallel: Any, num: int, classes: int, batch: int) -> Evaluation:
    """An evaluation of random logits; `batch` is divided by the number of workers."""
    rng = np.random.default_rng(0)
    places = iter(range(0, num, batch))

    def evaluate_batch(batches: Any) -> dict[str, Any]:
        index = np.arange(start := next(places), min(start + batch, num))
        return {
            "loss": tf.constant(1.0, tf.float64),
            "examples": tf.constant(float(len(index)), tf.float64),
            "confusion": tf.zeros([classes, classes], tf.float64),
            "seen": tf.constant(float(example_hash(index).sum()), tf.float64),
            "logits": tf.constant(rng.normal(size=(batch, classes)).astype(np.float32)),
        }

    result = evaluation.evaluate(
        "test", num, -(-num // batch), iter(()), evaluate_batch, parallel, stop_requested=lambda: False
    )
    assert result is not None
    return result


def test_rank_0_keeps_the_logits_once_and_the_predictions_take_their_place(tmp_path: Path) -> None:
    setup = EVALUATE.format(out=tmp_path)
    taken = taken_by(f"evaluated(0, NUM, {str(tmp_path)!r})", setup=setup)
    assert taken.grown_mb < 2.5 * LOGITS_MB
    assert predictions.load(predictions.file_of(tmp_path, "test")).probabilities.shape == (NUM, CLASSES)


def test_no_other_rank_keeps_any(tmp_path: Path) -> None:
    assert taken_by("evaluated(1, NUM, '')", setup=EVALUATE.format(out=tmp_path)).grown_mb < LOGITS_MB


@pytest.mark.parametrize("pieces", [1, 3, 100])
@pytest.mark.parametrize("world_size", [1, 2, 3, 5])
def test_any_number_of_workers_and_pieces_gathers_the_same_bits(
    world_size: int, pieces: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    num, classes, batch = 37, 3, 4  # the last batch is padded, and five workers are more than its rows
    monkeypatch.setattr(evaluation, "PIECE_BYTES", 4 * batch * classes * pieces)
    every = np.random.default_rng(1).normal(size=(40, classes)).astype(np.float32)
    every[5] = [np.nan, -0.0, np.inf]
    every[num:] = 0
    texts: list[list[bytes]] = []  # by exchange: what each rank gives
    for rank in reversed(range(world_size)):  # rank 0 last, when all that the others give is known
        exchanges = iter(range(100))

        def gather(text: bytes, rank: int = rank, exchanges: Any = exchanges) -> list[bytes]:
            number = next(exchanges)
            if len(texts) <= number:
                texts.append([b""] * world_size)
            texts[number][rank] = text
            return texts[number]

        worker = FakeWorker(rank, world_size)
        worker.gather = gather  # type: ignore[method-assign]
        rows = rows_of(rank, world_size, batch)
        held = evaluation._Logits(worker, 10, batch, classes)  # type: ignore[arg-type]
        for k in range(10):
            of_batch = np.zeros((batch, classes), np.float32)
            of_batch[rows.start : rows.stop] = every[k * batch :][rows.start : rows.stop]
            held.add(of_batch)
        found = held.of_all(num)
        assert (found is None) == (rank > 0)
    assert found is not None and found.tobytes() == every[:num].tobytes()


def test_the_picture_of_1000_classes_takes_2_seconds_and_300_mb() -> None:
    taken = taken_by(
        "png = confusion_picture(counts, [str(k) for k in range(1000)])",
        setup="import numpy as np\nfrom tl_dist.scores.pictures import confusion_picture\n"
        "counts = np.random.default_rng(0).integers(0, 50, (1000, 1000))",
    )
    assert taken.seconds < 2 and taken.peak_mb < 300


DRAW = """
import numpy as np
from tl_dist.scores.pictures import confusion_picture
for classes in {sizes}:
    counts = np.eye(classes, dtype=np.int64)
    counts[0, classes - 1] = 1  # half of the first row
    open(f"{out}/{{classes}}.png", "wb").write(confusion_picture(counts, [str(k) for k in range(classes)]))
"""
SIDES = {31: 1023, 300: 900, 1000: 1000, 1500: 750}


def test_a_large_picture_has_whole_pixels_for_each_class(tmp_path: Path) -> None:
    taken_by(DRAW.format(sizes=list(SIDES), out=tmp_path))
    for classes, side in SIDES.items():
        picture = Image.open(tmp_path / f"{classes}.png")
        assert picture.size == (side, side) and side <= MAX_SIDE
        shade = np.asarray(picture.convert("L")).astype(int)
        unit = side // (classes if classes <= MAX_SIDE else -(-classes // 2))
        cells = shade[::unit, ::unit]
        assert (cells[np.eye(len(cells), dtype=bool)][1:] == cells.min()).all()
        assert cells.min() < cells[0, -1] < cells.max() == cells[-1, 0]


def test_names_are_no_formulas_in_any_picture() -> None:
    names = [r"$\frac$", "$x_1$", "a$b", "$$"]
    assert confusion_picture(np.eye(4, dtype=np.int64), names)
    assert grid_picture(np.zeros((4, 8, 8, 3), np.uint8), names)


@pytest.mark.timeout(60)
def test_any_name_can_be_drawn() -> None:
    """Bytes that are not UTF-8 are no text for matplotlib, and a long name took it five minutes."""
    names = ["caf\udce9", "\x1b]0;title\x07", "x" * 1_000_000, "Kätzchen"]
    assert confusion_picture(np.eye(4, dtype=np.int64), names)
    assert grid_picture(np.zeros((4, 8, 8, 3), np.uint8), names)


def test_a_picture_that_fails_is_a_note(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any) -> bytes:
        raise MemoryError("none left")

    monkeypatch.setattr("tl_dist.trainer.board.confusion_picture", fails)
    monkeypatch.setattr("tl_dist.trainer.board.grid_picture", fails)
    run = RunDir(tmp_path)
    writer = run_writer(run, tensorboard=True)
    writer.images(np.zeros((2, 8, 8, 3), np.uint8), [0, 1])
    writer.evaluated(2, Evaluation("test", 2, 2, 0.5, np.eye(2, dtype=np.int64)))
    writer.close()
    notes = [json.loads(line) for line in run.metrics_file.read_text().splitlines()]
    assert [note["event"] for note in notes] == ["note", "evaluation", "note"]
    assert notes[-1]["text"] == "no picture test/confusion of step 2: MemoryError: none left"


def test_a_matrix_of_1000_classes_lies_beside_the_predictions_and_not_in_the_record(tmp_path: Path) -> None:
    names = [f"n{k:08d}" for k in range(1000)]
    counts = np.zeros((1000, 1000), np.int64)
    np.fill_diagonal(counts, 40)
    counts[3, 7], counts[999, 0] = 9, 4
    result = predictions.with_figures(
        Evaluation("test", 40_013, 40_000, 0.5, counts),
        tmp_path, step=6, ids=[], truth=np.zeros(0, np.int32), class_names=names,
    )  # fmt: skip
    record = evaluation_record(6, result, names)
    assert len(json.dumps(record)) < 100_000
    assert record["largest_errors"] == [(names[3], names[7], 9), (names[999], names[0], 4)]
    with np.load(predictions.confusion_file_of(tmp_path, "test")) as found:
        np.testing.assert_array_equal(found["confusion"], counts)
        assert found["class_names"].tolist() == names and found["step"] == 6
    table = confusion_table(record)
    assert table is not None and table.row_count == 2 and "13 errors" in str(table.columns[2].header)  # type: ignore[union-attr]
    small = evaluation_record(1, Evaluation("test", 4, 2, 0.5, np.array([[1, 1], [1, 1]])), ["a", "b"])
    assert (small["confusion"], small["class_names"]) == ([[1, 1], [1, 1]], ["a", "b"])
