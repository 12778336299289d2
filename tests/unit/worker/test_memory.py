"""What is free is what the tightest control group of the process leaves, cached files not counted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import psutil
import pytest

from tl_dist.worker.memory import available_bytes, held_bytes

NAMES = {
    2: ("memory.max", "memory.current", "file", "shmem"),
    1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_cache", "total_shmem"),
}


def group(path: Path, version: int, limit: int | str, charged: int, cached: int = 0, shared: int = 0) -> None:
    names = NAMES[version]
    path.mkdir(parents=True, exist_ok=True)
    (path / names[0]).write_text(f"{limit}\n")
    (path / names[1]).write_text(f"{charged}\n")
    (path / "memory.stat").write_text(f"anon 1\n{names[2]} {cached}\n{names[3]} {shared}\n")


def free(tmp_path: Path, membership: str) -> int:
    (tmp_path / "membership").write_text(membership)
    return available_bytes(tmp_path / "cgroup", tmp_path / "membership")


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> int:
    class Memory:
        available = 10_000

    monkeypatch.setattr(psutil, "virtual_memory", Memory)
    return Memory.available


@pytest.mark.parametrize(
    ("version", "root", "membership"),
    [
        (2, "cgroup", "0::/job_7/step_0\n"),
        (1, "cgroup/memory", "9:cpu:/x\n4:hugetlb,memory:/job_7/step_0\n0::/\n"),
    ],
)
def test_the_tightest_group_above_the_process_limits_it(
    tmp_path: Path, host: int, version: int, root: str, membership: str
) -> None:
    step = tmp_path / root / "job_7" / "step_0"
    group(step, version, 9_000, 3_000)
    assert free(tmp_path, membership) == 6_000
    group(step.parent, version, 8_000, 5_000, cached=2_500, shared=500)  # 3,000 held, 500 of them shared
    assert free(tmp_path, membership) == 5_000
    group(step.parent.parent, version, 100, 90)  # of the whole host: seen from within a container
    assert free(tmp_path, membership) == 10
    assert free(tmp_path, membership.replace("/job_7/step_0", "/job_8")) == 10


def test_without_a_limit_the_host_decides(tmp_path: Path, host: int) -> None:
    group(tmp_path / "cgroup" / "job", 2, "max", 3_000)
    assert free(tmp_path, "0::/job\n") == host
    assert free(tmp_path, "0::/../elsewhere\n") == host  # a group outside of this namespace
    group(tmp_path / "cgroup" / "job", 2, 20_000, 3_000)
    assert free(tmp_path, "0::/job\n") == host
    assert available_bytes(tmp_path / "none", tmp_path / "none") == host


def test_this_process_has_memory() -> None:
    assert 0 < available_bytes() <= psutil.virtual_memory().total


def test_a_mapped_file_is_not_held_and_an_array_is(tmp_path: Path) -> None:
    size = 64 << 20
    np.save(tmp_path / "rows.npy", np.ones(size, np.uint8))
    before = held_bytes()
    mapped = np.load(tmp_path / "rows.npy", mmap_mode="r")
    assert int(mapped.sum()) == size  # every page has been read
    assert held_bytes() - before < size / 4
    array = np.ones(size, np.uint8)
    assert held_bytes() - before > size / 2
    assert array.nbytes == size
