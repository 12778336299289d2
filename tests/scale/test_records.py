"""What 1,024 workers tell each other, and what is written down of them, is no more than of a few."""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.doubles import CONFIG, run_writer
from tl_dist.refusal import ExitCode, Refusal
from tl_dist.runs import heartbeats
from tl_dist.runs.directory import RunDir
from tl_dist.runs.heartbeats import Heartbeats
from tl_dist.terminal.progress import progress_line
from tl_dist.trainer import agreement
from tl_dist.training import evaluation
from tl_dist.training.state import Report

NUM = 1024
VARIABLES = 320  # of a ResNet-50


class Thousand:
    """The strategy of one worker of 1,024, of which all but `odd` have what this one has; counts what travels."""

    rank, world_size, num_replicas = 0, NUM, NUM

    def __init__(self, odd: int = -1, says: bytes = b"", adds: float = 0.0) -> None:
        self._odd, self._says, self._adds = odd, says, adds
        self.gathered_bytes: list[int] = []
        self.total_bytes: list[int] = []

    def gather(self, text: bytes) -> list[bytes]:
        everyone = [text] * NUM
        if self._odd >= 0:
            everyone[self._odd] = self._says
        self.gathered_bytes.append(sum(map(len, everyone)))
        return everyone

    def total(self, values: Mapping[str, Any]) -> dict[str, Any]:
        arrays = {key: np.asarray(value, np.float64) for key, value in values.items()}
        self.total_bytes.append(sum(array.nbytes for array in arrays.values()))
        return {key: NUM * array for key, array in arrays.items()}


FACTS = {"class_names": [f"n{k:08d}" for k in range(1000)], "versions": agreement.versions(CONFIG)}


def test_workers_that_agree_exchange_32_kilobytes() -> None:
    parallel = Thousand()
    agreement.agree(parallel, FACTS)  # type: ignore[arg-type]
    assert sum(parallel.gathered_bytes) <= 32 * NUM


def test_one_of_them_that_disagrees_is_named() -> None:
    parallel = Thousand(700, json.dumps({**FACTS, "versions": "others"}).encode())
    with pytest.raises(Refusal, match="rank 700 and rank 0 disagree on versions"):
        agreement.agree(parallel, FACTS)  # type: ignore[arg-type]


def test_the_code_is_read_once_on_each_host() -> None:
    """This rank is on the host of rank 0 (all but one), and has its word."""
    parallel = Thousand()
    assert agreement.code_of(parallel) == FACTS["versions"]["code"]  # type: ignore[arg-type]
    other = Thousand()
    other.rank = 5
    assert agreement.code_of(other) == ""  # type: ignore[arg-type]  # what the stub's rank 0 says, as it does


def checksums(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 2**40, (1, VARIABLES)).astype(np.float64)


@pytest.mark.parametrize("rows", [checksums(), np.full((1, VARIABLES), 2.0**40 - 1), np.zeros((1, VARIABLES))])
def test_weights_that_are_equal_take_ten_kilobytes_to_compare(rows: np.ndarray) -> None:
    parallel = Thousand()
    agreement.compare_weights(parallel, rows, ["v"] * VARIABLES, 100)  # type: ignore[arg-type]
    assert parallel.gathered_bytes == [] and sum(parallel.total_bytes) <= 32 * VARIABLES


class OneDrifted(Thousand):
    """Rank 700 differs by one bit of one variable."""

    def __init__(self, rows: np.ndarray, bit: int) -> None:
        self._theirs = rows.copy()
        self._theirs[0, 17] = int(rows[0, 17]) ^ (1 << bit)
        self._own = rows
        super().__init__(700, self._theirs.tobytes())

    def total(self, values: Mapping[str, Any]) -> dict[str, Any]:
        low, high = self._theirs % 2**20, self._theirs // 2**20
        theirs = {"low": low, "high": high, "low2": low**2, "high2": high**2}
        return {key: (NUM - 1) * value + theirs[key].sum(0) for key, value in values.items()}


@pytest.mark.parametrize("bit", [0, 19, 20, 39])
@pytest.mark.parametrize("rows", [checksums(), np.full((1, VARIABLES), 2.0**40 - 1), np.zeros((1, VARIABLES))])
def test_one_bit_of_one_of_them_is_found_and_named(rows: np.ndarray, bit: int) -> None:
    names = [f"variable {k}" for k in range(VARIABLES)]
    match = r"after step 9 the weights of replica 700 .* first in variable 17 \(1 of 320"
    with pytest.raises(Refusal, match=match) as refusal:
        agreement.compare_weights(OneDrifted(rows, bit), rows, names, 9)  # type: ignore[arg-type]
    assert refusal.value.code == ExitCode.PEER_LOST


def test_the_record_of_a_chunk_stays_a_line(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    waits = np.linspace(0.0, 0.5, NUM)
    waits[300] = 1.5
    writer = run_writer(run, num_workers=NUM, class_names=["a"])
    writer.report(
        Report(
            step=10, steps=10, mean_loss=1.0, accuracy=0.5, learning_rate=0.1, gradient_norm=2.0, num_examples=320,
            num_skipped=0, loss_scale=1.0, elapsed_s=2.0, data_wait_s=waits.tolist(), reduction_s=0.2,
        )
    )  # fmt: skip
    writer.close()
    line = run.metrics_file.read_text()
    assert len(line) < 1000
    record = json.loads(line)
    assert (record["data_wait_share"], record["data_wait_rank"]) == (0.75, 300)
    assert record["data_wait_median"] == pytest.approx(0.125, abs=0.001)
    assert "data 75 % (rank 300)" in progress_line(record)


def test_an_evaluation_gathers_no_more_at_a_time_than_from_two() -> None:
    parallel, batch, classes = Thousand(), 2048, 100
    logits = evaluation._Logits(parallel, 40, batch, classes)  # type: ignore[arg-type]
    for _ in range(40):
        logits.add(np.ones((batch, classes), np.float32))
    whole = logits.of_all(40 * batch - 7)
    assert whole is not None and whole.shape == (40 * batch - 7, classes) and (whole == 1).all()
    assert sum(parallel.gathered_bytes) == 40 * batch * classes * 4
    assert max(parallel.gathered_bytes) <= max(evaluation.PIECE_BYTES, batch * classes * 4)


def test_the_beats_of_all_are_read_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each look at a file of a file server takes its time, here 5 ms; one probe tells its clock."""
    probes, read, server_time_ns = [], heartbeats._read, heartbeats.server_time_ns

    def far_away(path: Path) -> Any:
        time.sleep(0.005)
        return read(path)

    def probed(directory: Path) -> int:
        probes.append(directory)
        return server_time_ns(directory)

    monkeypatch.setattr(heartbeats, "_read", far_away)
    monkeypatch.setattr(heartbeats, "server_time_ns", probed)
    for rank in range(NUM):
        (tmp_path / f"rank_{rank:04d}").write_text(
            json.dumps({"phase": "stepping", "step": rank, "host": "h", "pid": 1, "number": 3, "patience_s": 0.0})
        )
    began = time.monotonic()
    beats = Heartbeats(tmp_path).read()
    assert time.monotonic() - began < NUM * 0.005 / 2
    assert sorted(beats) == list(range(NUM)) and beats[1000].step == 1000
    assert probes == [tmp_path]
