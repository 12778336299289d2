"""`prefix_cache: auto`: on where it saves time by what was measured, off where it cannot or would not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tests.doubles import PARALLEL, MemorySource
from tl_dist import transfer
from tl_dist.config import (
    AugmentConfig,
    ClassifierConfig,
    Config,
    DataConfig,
    EvaluationConfig,
    ModelConfig,
    OptimizerConfig,
)
from tl_dist.data.order import Order
from tl_dist.datasets import Subset
from tl_dist.features import extraction
from tl_dist.features.cache_cost import Measured, choose
from tl_dist.stages import plan

VGG_ON_TWO_CORES = Measured(0.04, 50_000, 200e6, 10**10)


def test_many_epochs_pay_and_a_fraction_does_not() -> None:
    many = choose(VGG_ON_TWO_CORES, passes=8 * 2000, missing=2000)
    assert many.on
    assert many.text == "prefix cache: on: saves about 9.3 min of 10.7 min; 100.0 MB to write"
    assert not choose(VGG_ON_TWO_CORES, passes=500, missing=2000).on
    assert choose(VGG_ON_TWO_CORES, passes=500, missing=0).on


def test_reading_the_rows_again_and_again_counts_and_an_even_bargain_is_none() -> None:
    large_rows = Measured(0.001, 10**6, 1e8, 10**12)
    assert not choose(large_rows, passes=1000, missing=10).on
    assert choose(replace(large_rows, row_bytes=10**4), passes=1000, missing=10).on
    assert not choose(Measured(1.0, 0, 1e8, 10**12), passes=5, missing=5).on


def test_writing_the_rows_counts() -> None:
    tenth = Measured(1.0, 10**6, 1e7, 10**12)  # a row takes a tenth of the time of its forward pass
    assert choose(tenth, passes=20, missing=16).on
    assert not choose(tenth, passes=20, missing=17).on


def test_a_slow_or_full_disk_turns_it_off() -> None:
    assert not choose(replace(VGG_ON_TWO_CORES, disk_bytes_per_s=1e5), passes=16000, missing=2000).on
    full = choose(replace(VGG_ON_TWO_CORES, free_bytes=10**7), passes=16000, missing=2000)
    assert not full.on and "100.0 MB do not fit into 10.0 MB" in full.text


def session(epochs: float, **data: Any) -> Any:
    """What the choice looks at, of a session that trains `epochs` from block3 on."""
    cfg = Config(
        name="x",
        epochs=epochs,
        global_batch=10,
        data=DataConfig(name="digits", **data),
        model=ModelConfig(backbone="tiny", train_from="block3"),
        optimizer=OptimizerConfig(learning_rate=0.1),
        evaluation=EvaluationConfig(views=("flip",)),
    )
    stages = plan(cfg, Order(0, 100, 10).steps)
    return SimpleNamespace(
        cfg=cfg,
        parallel=PARALLEL,
        stages=stages,
        stage=stages[0],
        state=SimpleNamespace(step=0),
        steps_per_epoch=10.0,
        num_evaluation_views=2,
        splits={name: MemorySource(n) for name, n in (("train", 100), ("validation", 20), ("test", 30))},
        model=SimpleNamespace(has_prefix=True),
    )


@pytest.mark.parametrize(
    ("epochs", "data", "on", "why"),
    [
        (20, {}, True, "saves about"),
        (0.3, {}, False, "would take"),
        (20, {"augment": ("pad_crop",)}, False, "pad_crop makes images that cannot be cached"),
    ],
)
def test_the_choice_counts_training_and_evaluation(
    monkeypatch: pytest.MonkeyPatch, epochs: float, data: dict[str, Any], on: bool, why: str
) -> None:
    monkeypatch.setattr(transfer, "_measured", lambda session: VGG_ON_TWO_CORES)
    monkeypatch.setattr(transfer, "_missing", lambda session: 400)
    said: list[Any] = []
    assert transfer.prefix_cache_pays(session(epochs, **data), said.append) == on
    assert len(said) == 1 and why in said[0]["text"]


def test_passes_are_those_of_what_is_left() -> None:
    whole = session(2)
    evaluations = 2 * 20 + 20 + 30
    assert transfer._passes(whole) == 200 + 2 * evaluations
    whole.state.step = 10
    assert transfer._passes(whole) == 100 + 2 * (20 + 20 + 30)


def test_the_choice_is_told_once_and_mixtures_are_not_cached(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "_measured", lambda session: VGG_ON_TWO_CORES)
    monkeypatch.setattr(transfer, "_missing", lambda session: 400)
    said: list[Any] = []
    second = session(20)
    second.parallel = SimpleNamespace(rank=1)
    assert transfer.prefix_cache_pays(second, said.append) and not said
    mixed = session(20, augmentation=AugmentConfig(mixup=0.2))
    assert not transfer.prefix_cache_pays(mixed, said.append)
    assert "mixing makes images that cannot be cached" in said[0]["text"]


def test_what_is_missing_counts_every_view_and_not_what_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: set[int] = set()
    monkeypatch.setattr(transfer, "_prefix", lambda session, compute: None)
    monkeypatch.setattr(extraction, "is_kept", lambda source, *more: source.num_examples in kept)
    made = session(2)
    made.bad, made.run, made.model.prefix = [], SimpleNamespace(path=Path("runs/x")), None
    assert transfer._missing(made) == 100 + 2 * 20 + 2 * 30  # training is plain, evaluation has two views
    kept.add(30)
    assert transfer._missing(made) == 100 + 2 * 20


@pytest.mark.parametrize(
    ("augment", "judged", "computed", "bad", "shared"),
    [
        ((), (), False, [], True),
        (("flip",), ("flip",), False, [], True),
        (("flip",), (), False, [], False),
        (("flip",), (), True, [], True),
        ((), ("flip",), True, [], False),
        ((), (), False, ["x.png"], False),
    ],
)
def test_splits_of_one_pool_share_their_features_where_they_need_the_same_views(
    augment: tuple[str, ...], judged: tuple[str, ...], computed: bool, bad: list[str], shared: bool
) -> None:
    made = session(2, augment=augment)
    classifier = ClassifierConfig(name="logistic" if computed else "head")
    evaluation = EvaluationConfig(views=judged)  # type: ignore[arg-type]
    made.cfg = made.cfg.model_copy(update={"classifier": classifier, "evaluation": evaluation})
    pool = MemorySource(50)
    made.bad = bad
    made.splits = {"train": Subset(pool, np.arange(30)), "test": Subset(pool, np.arange(30, 50))}
    found = list(transfer._sets(made))
    assert [names for names, _ in found] == ([["train", "test"]] if shared else [["train"], ["test"]])
    assert [source.num_examples for _, source in found] == ([50] if shared else [30, 20])


def test_passes_of_a_stage_are_its_own_and_the_last_evaluation_is_of_the_last_stage() -> None:
    made = session(2)
    evaluation = EvaluationConfig(views=("flip",), every_epochs=0.25)  # 2.5 steps: every second one
    made.cfg = made.cfg.model_copy(update={"evaluation": evaluation})
    made.stage = replace(made.stages[0], number=1, first_step=10, end=20)
    made.stages = [made.stages[0], made.stage, replace(made.stage, number=2, first_step=20, end=30)]
    assert transfer._passes(made) == 10 * 10 + 2 * 5 * 20
