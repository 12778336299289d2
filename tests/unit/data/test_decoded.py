"""Decoded once: the same pixels as without, whatever is divided how, and no image is opened a second time."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tests import forks
from tests.doubles import PARALLEL, memory_source
from tests.official_layouts import digits_32px, write_image_folder
from tl_dist.config import DataConfig, registry
from tl_dist.data import decoded
from tl_dist.data.order import Order
from tl_dist.data.pipeline import augmented, plain, train_batches
from tl_dist.datasets import Splits, pool_of, strata_of
from tl_dist.datasets.arrays import ArrayStore
from tl_dist.refusal import ExitCode, Refusal

NAMES = [f"digit {k}" for k in range(10)]


@pytest.fixture
def splits(tmp_path: Path) -> Splits:
    return open_folder(write_image_folder(tmp_path / "images", digits_32px(61), NAMES))


def open_folder(root: Path) -> Splits:
    found: Splits = registry.DATASETS["image_folder"].open(
        DataConfig(name="image_folder", path=str(root), test_fraction=0.3)
    )
    return found


def made(where: str, splits: Splits, folder: Path) -> Splits:
    return decoded.in_memory(splits, 24, 2) if where == "memory" else on_disk(splits, folder)


def on_disk(splits: Splits, folder: Path, parallel: Any = PARALLEL, stop: bool = False) -> Splits:
    return decoded.on_disk(
        splits, 24, 1, directory=folder / "decoded", parallel=parallel, stop_requested=lambda: stop
    )


class Workers:
    """`world_size` workers, one a thread, that meet in `total` as those of a run do."""

    def __init__(self, world_size: int) -> None:
        self.world_size = world_size
        self._meeting = threading.Barrier(world_size, timeout=60)
        self._values: list[dict[str, float]] = [{} for _ in range(world_size)]

    def each(self, work: Any) -> list[Any]:
        """What `work` gives for each worker; the first error, once all have ended."""

        def run(rank: int) -> Any:
            try:
                return work(_Worker(self, rank))
            except BaseException:
                self._meeting.abort()  # as Gloo does for the peers of one that ended
                raise

        with ThreadPoolExecutor(self.world_size) as pool:
            ended = [pool.submit(run, rank) for rank in range(self.world_size)]
        broken = [end for end in ended if end.exception()]
        for end in sorted(broken, key=lambda e: isinstance(e.exception(), threading.BrokenBarrierError)):
            end.result()
        return [end.result() for end in ended]

    def total(self, rank: int, values: dict[str, float]) -> dict[str, float]:
        self._values[rank] = values
        self._meeting.wait()
        sums = {key: sum(value[key] for value in self._values) for key in values}
        self._meeting.wait()
        return sums


class _Worker:
    def __init__(self, workers: Workers, rank: int) -> None:
        self.rank, self.world_size, self._workers = rank, workers.world_size, workers

    def total(self, values: dict[str, float]) -> dict[str, float]:
        return self._workers.total(self.rank, values)


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (folder / "decoded").iterdir()}


def batches(source: Any) -> list[Any]:
    read = augmented(source, ("pad_crop", "flip"), 3, 24)
    order = Order(3, source.num_examples, 3)  # a graph of three rows is soon traced
    return list(train_batches(read, order, rows=range(3), from_step=0, to_step=14).as_numpy_iterator())


@pytest.mark.parametrize("where", ["memory", "disk"])
def test_training_sees_the_same_batches(where: str, splits: Splits, tmp_path: Path) -> None:
    kept = made(where, splits, tmp_path)
    for name, source in splits.items():
        assert kept[name].fingerprint == source.fingerprint and list(kept[name].ids) == list(source.ids)
        np.testing.assert_array_equal(strata_of(kept[name]), strata_of(source))
        for ours, theirs in zip(batches(kept[name]), batches(source), strict=True):
            for a, b in zip(ours, theirs, strict=True):
                np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("where", ["memory", "disk"])
def test_no_file_is_opened_a_second_time(where: str, splits: Splits, tmp_path: Path) -> None:
    kept = made(where, splits, tmp_path)
    for file in (tmp_path / "images").rglob("*.png"):
        file.unlink()
    assert len(batches(kept["train"])) == 14


@pytest.mark.parametrize("where", ["memory", "disk"])
def test_the_pixels_are_held_once(where: str, splits: Splits, tmp_path: Path) -> None:
    pool, _ = pool_of(made(where, splits, tmp_path)["train"])
    assert isinstance(pool.store, ArrayStore)
    assert np.shares_memory(np.asarray(memoryview(pool.store.tensor)), pool.store.images)


def test_a_second_run_and_other_workers_decode_nothing(splits: Splits, tmp_path: Path) -> None:
    expected = batches(made("disk", splits, tmp_path)["train"])
    for file in (tmp_path / "images").rglob("*.png"):
        file.unlink()
    for again in Workers(2).each(lambda worker: on_disk(splits, tmp_path, worker)):
        np.testing.assert_array_equal(batches(again["train"])[0].images, expected[0].images)
    assert len(files(tmp_path)) == 1


def test_any_number_of_workers_writes_the_same_file(
    splits: Splits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each decodes its share: rounds of one image each, so that shares end in different rounds."""
    on_disk(splits, tmp_path / "alone")
    monkeypatch.setattr(decoded, "_ROWS_AT_ONCE", 1)
    monkeypatch.setattr(decoded, "_BATCHES_A_ROUND", 1)
    shares: list[int] = []
    all_rows = decoded._decoded

    def counted(*settings_and_rows: Any) -> Any:
        shares.append(len(settings_and_rows[-1]))
        return all_rows(*settings_and_rows)

    monkeypatch.setattr(decoded, "_decoded", counted)
    Workers(3).each(lambda worker: on_disk(splits, tmp_path / "shared", worker))
    assert files(tmp_path / "shared") == files(tmp_path / "alone")
    assert sorted(shares) == [20, 20, 21]


def test_only_what_a_split_uses_is_decoded(splits: Splits, tmp_path: Path) -> None:
    used = {"test": splits["test"]}
    on_disk(used, tmp_path)
    (name,) = files(tmp_path)
    images = np.load(tmp_path / "decoded" / name)
    _, rows = pool_of(splits["test"])
    empty = [k for k, image in enumerate(images) if not image.any()]
    assert empty == sorted(set(range(61)) - set(rows.tolist()))


def test_killed_in_the_middle_the_next_start_ends_with_the_same_file(splits: Splits, tmp_path: Path) -> None:
    on_disk(splits, tmp_path / "alone")
    dies = {"TL_FAILPOINT": "decoded.round=kill", "TL_ALLOW_FAILPOINTS": "1"}
    died = subprocess.run(**forks.of_module(__name__, str(tmp_path), **dies), check=False)
    assert died.returncode == -signal.SIGKILL
    (left,) = files(tmp_path)
    assert left.startswith(".tmp-")  # nothing that a reader would take for whole
    with (tmp_path / "decoded" / left).open("r+b") as file:  # and whatever a crash has made of it
        file.write(os.urandom(5000))
    Workers(2).each(lambda worker: on_disk(splits, tmp_path, worker))
    assert files(tmp_path) == files(tmp_path / "alone")


def test_a_stop_and_a_failure_of_any_worker_leave_nothing(
    splits: Splits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(Refusal, match="was stopped") as refused:
        Workers(2).each(lambda worker: on_disk(splits, tmp_path, worker, stop=worker.rank == 0))
    assert refused.value.code == ExitCode.REQUEUE
    assert files(tmp_path) == {}

    def full(fd: int, data: Any, offset: int) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(Refusal, match="No space left on device") as refused:
        on_disk(splits, tmp_path)
    assert refused.value.code == ExitCode.STORAGE
    assert files(tmp_path) == {}


def test_what_was_left_long_ago_is_swept(splits: Splits, tmp_path: Path) -> None:
    (tmp_path / "decoded").mkdir()
    for name, age_s in (("old", 90_000), ("new", 1000)):
        path = tmp_path / "decoded" / f".tmp-{name}.npy"
        path.touch()
        os.utime(path, (path.stat().st_mtime - age_s,) * 2)
    on_disk(splits, tmp_path)
    assert sorted(files(tmp_path))[0] == ".tmp-new.npy" and len(files(tmp_path)) == 2


def test_a_source_in_memory_is_only_resized() -> None:
    source = memory_source(11, size=16)
    (kept,) = decoded.in_memory({"train": source}, 8, 1).values()
    images, labels = kept.read(tf.range(11, dtype=tf.int64))
    np.testing.assert_array_equal(images, plain(source, 8).batch(tf.range(11, dtype=tf.int64), None)[0])
    np.testing.assert_array_equal(labels, source.labels)


def test_a_place_that_cannot_be_written_is_refused(splits: Splits, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(Refusal, match="decoded images cannot be kept") as refused:
        made("disk", splits, tmp_path / "file")
    assert refused.value.code == ExitCode.STORAGE
    assert refused.value.fix


if __name__ == "__main__":
    on_disk(open_folder(Path(sys.argv[1]) / "images"), Path(sys.argv[1]))
