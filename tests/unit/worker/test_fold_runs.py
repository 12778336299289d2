"""Runs that are led by another one live and stop with it; folds share the sets of their pool."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tests.doubles import OPTIMIZER, MemorySource, setup_of
from tl_dist.config import Config, DataConfig, EvaluationConfig, ModelConfig
from tl_dist.datasets import Subset
from tl_dist.refusal import ExitCode
from tl_dist.runs.directory import RunDir
from tl_dist.worker import cached, fold_runs


def test_a_led_run_beats_and_stops_as_its_leader(tmp_path: Path) -> None:
    leader, path = RunDir(tmp_path / "all"), tmp_path / "one"
    leader.heartbeats.mkdir(parents=True)
    path.mkdir()
    run = fold_runs.LedRun(path, leader)
    run.beat(0, "stepping", 3)
    assert leader.read_beats()[0].step == 3 and not run.read_beats()
    assert not run.stop_requested()
    leader.request_stop()
    assert run.stop_requested()
    leader.clear_stop()
    RunDir(path).request_stop()  # of the fold alone: nobody asks for that
    assert not run.stop_requested()


def test_another_fold_needs_room_for_twice_the_largest() -> None:
    assert fold_runs.has_room(10, 21) and not fold_runs.has_room(10, 20)


@pytest.mark.parametrize(("available", "trained"), [(1 << 50, ["a", "b"]), (0, ["a"])])
def test_folds_stop_for_a_fresh_process_where_their_memory_runs_short(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, available: int, trained: list[str]
) -> None:
    leader = RunDir(tmp_path / "all")
    leader.heartbeats.mkdir(parents=True)
    done: list[str] = []

    def train(made: Any, listen: Any) -> ExitCode:
        done.append(made.run.path.name)
        return ExitCode.DONE

    monkeypatch.setattr(fold_runs.attempt, "train", train)
    monkeypatch.setattr(fold_runs, "setup", lambda run, cores: SimpleNamespace(run=run))
    monkeypatch.setattr(fold_runs, "available_bytes", lambda: available)
    monkeypatch.setattr(fold_runs.RunDir, "open", lambda path: None)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    assert fold_runs.in_turn(leader, ["a", "b"], cores=1) == ExitCode.DONE
    assert done == trained


TRAIN, REST = ["train"], ["validation", "test"]


@pytest.mark.parametrize(
    ("folds", "augment", "views", "expected"),
    [
        (None, ("flip",), (), [(["train"], 6), (["validation"], 3), (["test"], 2)]),
        (4, ("flip",), (), [([*TRAIN, *REST], 11)]),
        (4, ("flip",), ("flip",), [([*TRAIN, *REST], 11)]),
        (4, ("flip",), ("dihedral",), [(TRAIN, 11), (REST, 11)]),
    ],
)
def test_a_fold_reads_sets_of_the_whole_pool(
    folds: int | None, augment: tuple[str, ...], views: tuple[str, ...], expected: Any
) -> None:
    pool = MemorySource(11, size=8)
    parts = {"train": range(6), "validation": range(6, 9), "test": range(9, 11)}
    splits = {name: Subset(pool, np.array(rows)) for name, rows in parts.items()}
    fold = {} if folds is None else {"folds": folds, "fold": 0}
    cfg = Config(
        name="x",
        steps=1,
        data=DataConfig(name="digits", augment=augment, **fold),  # type: ignore[arg-type]
        model=ModelConfig(backbone="tiny"),
        evaluation=EvaluationConfig(views=views),  # type: ignore[arg-type]
        optimizer=OPTIMIZER,
    )
    found = cached._sets(setup_of(cfg, splits))
    assert [(names, source.num_examples) for names, source in found] == expected
