"""Workers that differ are found before step 0; replicas that drift are found while training."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tests.doubles import CONFIG, OPTIMIZER, build, memory_source, setup_of
from tl_dist.config import Config, DataConfig, ModelConfig
from tl_dist.data import order
from tl_dist.datasets import Source
from tl_dist.datasets.division import open_splits
from tl_dist.refusal import ExitCode, Refusal
from tl_dist.runs.directory import RunDir
from tl_dist.trainer import agreement


class ThreeRanks:
    """A gather of what three workers say, of which this is rank 0."""

    def __init__(self, *others: dict[str, Any]) -> None:
        self._others = [json.dumps(facts).encode() for facts in others]

    def gather(self, text: bytes) -> list[bytes]:
        return [text, *self._others]


FACTS = {"precision": "float32", "data": "abc", "versions": {"keras": "3.15.1"}}


def test_equal_workers_agree() -> None:
    agreement.agree(ThreeRanks(FACTS, FACTS), FACTS)  # type: ignore[arg-type]


@pytest.mark.parametrize("key", list(FACTS))
def test_the_first_rank_and_key_that_differ_are_named(key: str) -> None:
    with pytest.raises(Refusal, match=f"rank 2 and rank 0 disagree on {key}") as caught:
        agreement.agree(ThreeRanks(FACTS, {**FACTS, key: "other"}), FACTS)  # type: ignore[arg-type]
    assert caught.value.code == ExitCode.UNSAFE


def test_plan_depends_on_names_order_types_and_shapes() -> None:
    a, b = tf.Variable([1.0]), tf.Variable([1.0, 2.0])
    plans = [{"a": a, "b": b}, {"b": b, "a": a}, {"a": b, "b": b}, {"c": a, "b": b}]
    assert len({agreement.plan(variables) for variables in plans}) == len(plans)


def test_the_split_is_written_again_only_where_it_has_changed(tmp_path: Path) -> None:
    """That of ImageNet is 49 MB at each start; a torn one of the same split is none."""
    path, few, more = tmp_path / "split.json", memory_source(12), memory_source(13)

    def written(source: Source) -> tuple[int, int]:
        agreement._write_split(path, {"train": source})
        assert json.loads(path.read_text())["splits"]["train"]["ids"] == list(source.ids)
        assert path.stat().st_mode & 0o777 == 0o600
        return path.stat().st_ino, path.stat().st_mtime_ns

    first = written(few)
    assert written(few) == first
    changed = written(more)
    assert changed != first
    path.write_bytes(path.read_bytes()[:-9])
    assert written(more) != changed


class ThreeReplicas:
    """Three processes of one replica each, of which this is the first: what their checksums are."""

    num_replicas = 3

    def __init__(self, checksums: np.ndarray) -> None:
        self._checksums = checksums

    def total(self, values: dict[str, Any]) -> dict[str, Any]:
        low, high = self._checksums % 2**20, self._checksums // 2**20
        sums = {"low": low, "high": high, "low2": low**2, "high2": high**2}
        assert sums.keys() == values.keys()
        return {key: value.sum(0) for key, value in sums.items()}

    def gather(self, text: bytes) -> list[bytes]:
        return [row.tobytes() for row in self._checksums]


def test_equal_weights_pass() -> None:
    equal = np.full((3, 2), 2.0**40 - 1)
    agreement.compare_weights(ThreeReplicas(equal), equal[:1], ["kernel", "bias"], 100)  # type: ignore[arg-type]


def test_drifted_weights_name_replica_and_variable() -> None:
    """Also where their mean is that of equal ones. tests/scale has a thousand, and single bits."""
    checksums = np.ones((3, 2))
    checksums[:, 1] = 7, 6, 8
    with pytest.raises(Refusal, match=r"after step 100 the weights of replica 1 .* first in bias") as caught:
        agreement.compare_weights(ThreeReplicas(checksums), checksums[:1], ["kernel", "bias"], 100)  # type: ignore[arg-type]
    assert caught.value.code == ExitCode.PEER_LOST


def test_versions_name_the_code_itself() -> None:
    facts = agreement.versions(CONFIG)
    assert len(facts["code"]) == 16
    assert facts["keras"].startswith("3.")


def test_the_order_and_the_split_are_part_of_what_a_run_is(tmp_path: Path) -> None:
    """A run made in another order, or with other examples held out, is refused before its first step."""
    net = build()
    cfg = Config(
        name="x",
        steps=1,
        data=DataConfig(name="digits", validation_fraction=0.1),
        model=ModelConfig(backbone="tiny"),
        optimizer=OPTIMIZER,
    )
    run = RunDir(tmp_path)

    def start(data: DataConfig = cfg.data) -> None:
        splits, digest = open_splits(data)
        agreement.prove(setup_of(cfg, splits, net, run=run, digest=digest))

    start()
    identity = json.loads(run.identity_file.read_text())
    assert identity["order"] == order.VERSION == 2
    start()
    with pytest.raises(Refusal, match=r"data\.train: .*data\.validation: "):
        start(cfg.data.model_copy(update={"validation_fraction": 0.075}))  # 0.1 of what test leaves, as it was
    identity["order"] = 1
    run.identity_file.write_text(json.dumps(identity))
    with pytest.raises(Refusal, match=r"version 1 of the order .* this is version 2\. Fix: start a new run") as caught:
        start()
    assert caught.value.code == ExitCode.UNSAFE


class TwoRanks:
    """A total over this rank and one that reads `others`."""

    def __init__(self, others: range, global_batch: int) -> None:
        self._readers = np.zeros(global_batch)
        self._readers[others.start : others.stop] = 1
        self._rows = len(others)

    def total(self, values: dict[str, Any]) -> dict[str, Any]:
        return {"readers": values["readers"] + self._readers, "rows": np.float64(values["rows"] + self._rows)}


def test_rows_that_are_shared_out_pass() -> None:
    agreement.prove_rows(TwoRanks(range(4, 7), 7), range(4), 7)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("others", "message"),
    [
        (range(3, 7), "row 3 of each batch of 7 is read by 2 workers"),
        (range(5, 7), "row 4 of each batch of 7 is read by 0 workers"),
        (range(4, 9), "workers read 9 rows of each batch of 7"),
    ],
)
def test_rows_that_overlap_or_are_left_out_are_refused(others: range, message: str) -> None:
    with pytest.raises(Refusal, match=message):
        agreement.prove_rows(TwoRanks(others, 7), range(4), 7)  # type: ignore[arg-type]
