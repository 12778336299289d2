"""A report of anything is a page of bounded size in bounded memory, and replaces no page of others."""

import resource
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from tests.hostile.arena import Arena, Case, Cases
from tl_dist.config import file as config_file
from tl_dist.files.npz import save_npz
from tl_dist.runs.directory import RunDir
from tl_dist.scores import figures, label_errors, predictions
from tl_dist.tools.report import examples, facts

CASES = Cases()
CONFIG = """\
name: run
strategy: single
steps: 1
data: {name: synthetic}
model: {backbone: tiny, weights: random}
optimizer: {learning_rate: 0.1}
"""
CLASSES, ROWS = 20_000, 1_000


def began(arena: Arena) -> RunDir:
    """A run that has not come to its first step."""
    cfg = config_file.load(arena.file("run.yaml", CONFIG))
    return RunDir.create(arena.folder / "runs", cfg)


def test_a_report(case: Case, arena: Arena) -> None:
    arena.check(case)


def of_many_classes(arena: Arena) -> Path:
    path = predictions.file_of(began(arena).path, "test")
    draws = np.random.default_rng(0)
    said = draws.random((ROWS, CLASSES), np.float32)
    labels = draws.integers(0, CLASSES, ROWS).astype(np.int32)
    said[np.arange(ROWS), np.where(np.arange(ROWS) % 3, labels, labels // 2)] = 3
    save_npz(
        path, ids=np.array([f"i{k}" for k in range(ROWS)]), labels=labels, probabilities=said / said.sum(1)[:, None],
        class_names=np.array([f"class {k}" for k in range(CLASSES)]), step=1, types=np.array([], np.str_),
        groups=np.array([], np.str_),
    )  # fmt: skip
    return path


def small(arena: Arena) -> None:
    assert (arena.folder / "runs/run/report.html").stat().st_size < 5_000_000


@CASES.add("many classes", code=0, says="report.html", after=small)  # in the 2 GiB of each command
def _(arena: Arena) -> tuple[str, ...]:
    of_many_classes(arena)
    return "report", "runs/run"


@CASES.add("a page of others", code=73, says="report.html exists already, and is not a report")
def _(arena: Arena) -> tuple[str, ...]:
    began(arena)
    arena.file("runs/run/report.html", "<html>my thesis").chmod(0o600)
    return "report", "runs/run"


def test_its_figures_of_many_classes_are_those_of_scikit_learn(arena: Arena) -> None:
    from sklearn.metrics import precision_recall_fscore_support

    found = facts.gather(of_many_classes(arena).parents[1], None)
    made = examples.examples_of(found)
    labels = found.predictions.labels
    (table,) = examples.class_tables(made)
    numbers = [int(row.name.split()[1]) for row in table.rows]
    precision, recall, f1, support = precision_recall_fscore_support(
        labels, made.predicted, labels=numbers, zero_division=0
    )
    assert support is not None and len(numbers) == examples.MAX_CLASSES and table.num == CLASSES
    for k, row in enumerate(table.rows):
        told = [row.share or 0, row.more[0] or 0, row.more[1] or 0]
        assert told == pytest.approx([recall[k], precision[k], f1[k]]) and row.num_examples == support[k]
    wrong = labels != made.predicted
    counts = Counter(zip(labels[wrong].tolist(), made.predicted[wrong].tolist(), strict=True))
    best = sorted(counts, key=lambda pair: (-counts[pair], pair))[: examples.MAX_PAIRS]
    assert [(label, predicted) for label, predicted, _ in examples.pairs(made)] == best


def test_suspects_are_the_same_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    draws = np.random.default_rng(1)
    said = draws.dirichlet(np.full(5, 0.4), 400).astype(np.float32)
    labels = np.where(draws.random(400) < 0.8, said.argmax(axis=1), draws.integers(0, 5, 400)).astype(np.int32)
    whole = label_errors.label_errors(labels, said)
    assert len(whole.examples) > 10
    monkeypatch.setattr(figures, "BLOCK", 50)
    for one, other in zip(whole, label_errors.label_errors(labels, said), strict=True):
        np.testing.assert_array_equal(one, other)


def test_its_memory_is_that_of_the_predictions(arena: Arena) -> None:
    found = facts.gather(of_many_classes(arena).parents[1], None)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    examples.confusions(examples.examples_of(found))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 600_000  # KiB; a matrix would be 3 GiB
