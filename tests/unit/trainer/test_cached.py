"""`prefix_cache: auto` is on where it saves passes through the frozen part, by a rule, and off where it cannot."""

import shutil
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tests.doubles import PARALLEL, given_to, memory_source, setup_of
from tl_dist.config import (
    AugmentConfig,
    ClassifierConfig,
    Config,
    DataConfig,
    EvaluationConfig,
    ModelConfig,
    OptimizerConfig,
)
from tl_dist.features import extraction
from tl_dist.trainer import cached
from tl_dist.trainer.setup import Setup

NET: Any = SimpleNamespace(has_prefix=True, prefix=None, prefix_shape=(250,))


@pytest.fixture(autouse=True)
def _sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=10**9))
    monkeypatch.setattr(cached, "prefix_of", lambda setup, given: None)


def chosen(**changes: Any) -> tuple[bool, str]:
    """Of VGG16's block 4 at 224 pixels, over 2,000 images, many times."""
    sizes = {"row_bytes": 401_408, "image_bytes": 150_528, "free_bytes": 10**10}
    return cached.choose(**{"passes": 16_000, "missing": 2_000, **sizes, **changes})


def test_many_epochs_pay_and_a_fraction_does_not() -> None:
    on, why = chosen()
    assert on
    assert why == "2,000 images go through the frozen part instead of 16,000; 802.8 MB"
    assert chosen(passes=4_000)[0] and not chosen(passes=3_999)[0]
    assert chosen(passes=500, missing=0)[0]


def test_large_rows_and_a_full_disk_turn_it_off() -> None:
    assert not chosen(row_bytes=9 * 150_528)[0]
    on, why = chosen(free_bytes=10**9)
    assert not on and why == "802.8 MB do not fit into half of the 1,000.0 MB that are free"


def a_setup(
    epochs: float, splits: Mapping[str, Any] | None = None, *, stages: Any = (), rank: int = 0, **data: Any
) -> Setup:
    """A run that trains `epochs` from block3 on."""
    cfg = Config(
        name="x",
        epochs=None if stages else epochs,
        stages=stages,
        global_batch=10,
        data=DataConfig(name="digits", **data),
        model=ModelConfig(backbone="tiny", train_from="block3"),
        optimizer=OptimizerConfig(learning_rate=0.1),
        evaluation=EvaluationConfig(views=("flip",), every_epochs=0.25 if stages else 1.0),
    )
    splits = splits or {name: memory_source(n) for name, n in (("train", 100), ("validation", 20), ("test", 30))}
    parallel = PARALLEL if rank == 0 else SimpleNamespace(rank=rank, total=lambda values: {"free": 1e9})
    return setup_of(cfg, splits, NET, parallel=parallel)


@pytest.mark.parametrize(
    ("epochs", "data", "on", "why"),
    [
        (20, {}, True, "400 images go through the frozen part instead of"),
        (0.3, {}, False, "400 would have to for the cache"),
        (20, {"augment": ("pad_crop",)}, False, "pad_crop makes images that cannot be cached"),
    ],
)
def test_the_choice_counts_training_and_evaluation(
    monkeypatch: pytest.MonkeyPatch, epochs: float, data: dict[str, Any], on: bool, why: str
) -> None:
    monkeypatch.setattr(cached, "_missing", lambda setup, given: 400)
    notes: list[Any] = []
    setup = a_setup(epochs, **data)
    assert cached._pays(setup, given_to(setup), notes.append) == on
    (record,) = notes
    assert why in record["text"]


def test_passes_are_those_of_what_is_left() -> None:
    whole = a_setup(2)
    evaluations = 2 * 20 + 20 + 30
    assert cached._passes(whole, given_to(whole)) == 200 + 2 * evaluations
    whole.state.step = 10
    assert cached._passes(whole, given_to(whole)) == 100 + 2 * (20 + 20 + 30)


def test_the_choice_is_told_once_and_mixtures_are_not_cached(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cached, "_missing", lambda setup, given: 400)
    notes: list[Any] = []
    second = a_setup(20, rank=1)
    assert cached._pays(second, given_to(second), notes.append) and not notes
    mixed = a_setup(20, augmentation=AugmentConfig(mixup=0.2))
    assert not cached._pays(mixed, given_to(mixed), notes.append)
    assert "mixing makes images that cannot be cached" in notes[0]["text"]


def test_what_is_missing_counts_every_view_and_not_what_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    kept_sizes: set[int] = set()
    monkeypatch.setattr(extraction, "is_kept", lambda source, *more: source.num_examples in kept_sizes)
    setup = a_setup(2)
    # Training is plain, evaluation has two views.
    assert cached._missing(setup, given_to(setup)) == 100 + 2 * 20 + 2 * 30
    kept_sizes.add(30)
    assert cached._missing(setup, given_to(setup)) == 100 + 2 * 20


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
    classifier = ClassifierConfig(name="logistic" if computed else "head")
    cfg = a_setup(2, augment=augment).cfg.model_copy(
        update={"classifier": classifier, "evaluation": EvaluationConfig(views=judged)}  # type: ignore[arg-type]
    )
    pool = memory_source(50)
    splits = {"train": pool.subset(np.arange(30)), "test": pool.subset(np.arange(30, 50))}
    sets = list(cached._sets(setup_of(cfg, splits, NET, bad=bad)))
    assert [names for names, *_ in sets] == ([["train", "test"]] if shared else [["train"], ["test"]])
    assert [source.num_examples for _, source, _ in sets] == ([50] if shared else [30, 20])


@pytest.mark.parametrize(
    ("views", "expected"),
    [
        ((), [(["train", "validation", "test"], 50)]),
        (("flip",), [(["train", "validation", "test"], 50)]),
        (("dihedral",), [(["train"], 50), (["validation", "test"], 50)]),
    ],
)
def test_a_fold_reads_sets_of_the_whole_pool(views: tuple[str, ...], expected: Any) -> None:
    cfg = a_setup(2, augment=("flip",), folds=4, fold=0).cfg.model_copy(
        update={"evaluation": EvaluationConfig(views=views)}  # type: ignore[arg-type]
    )
    pool = memory_source(50)
    parts = {"train": range(30), "validation": range(30, 40), "test": range(40, 50)}
    splits = {name: pool.subset(np.array(rows)) for name, rows in parts.items()}
    sets = cached._sets(setup_of(cfg, splits, NET))
    assert [(names, source.num_examples) for names, source, _ in sets] == expected


def test_passes_of_a_stage_are_its_own_and_the_last_evaluation_is_of_the_last_stage() -> None:
    three = [{"train_from": place, "steps": 10} for place in ("head", "block3", "block2")]
    setup = a_setup(2, stages=three)  # evaluated after 2.5 steps: every second one
    given = given_to(setup, stage=setup.stages[1])
    assert cached._passes(setup, given) == 10 * 10 + 2 * 5 * 20
