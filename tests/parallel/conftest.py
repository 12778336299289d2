"""One launch per strategy and worker count, shared by all tests of this folder."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.parallel.launch import run_script
from tests.parallel.parity_scenario import METHODS, VARIANTS, WIRES, WITHOUT

LAUNCHES = {
    "single": ("single", 1, None),
    "mirrored-2": ("mirrored", 2, None),
    "mirrored-4": ("mirrored", 4, None),
    "horovod-gloo-2": ("horovod", 2, "ours"),
    "horovod-gloo-3": ("horovod", 3, "ours"),
    "horovod-gloo-4": ("horovod", 4, "ours"),
    "horovod-mpi-2": ("horovod", 2, "mpi"),
    "collective-2": ("collective", 2, "ours"),
    "collective-3": ("collective", 3, "ours"),
    "collective-4": ("collective", 4, "ours"),
}
ALL = (*VARIANTS, *METHODS)
TRIED = {
    "single": (*ALL, *WITHOUT),
    "mirrored-2": ALL,
    "mirrored-4": ("plain", "accumulated", "overflow"),
    "horovod-gloo-2": ("plain", "clipped", "accumulated", "overflow", "sync_batch_norm"),
    "horovod-gloo-3": ALL,
    "horovod-gloo-4": ("plain", "clipped", "accumulated", "overflow", "bfloat16", *WIRES),
    "horovod-mpi-2": ("plain", "clipped", "overflow", "bfloat16", "sync_batch_norm"),
    "collective-2": ("plain", "clipped", "overflow", "sync_batch_norm"),
    "collective-3": (*VARIANTS, "staged", *WIRES),
    "collective-4": ("plain", "accumulated", "overflow", "bfloat16", *WIRES),
}
"""What each launch tries. Everything on uneven shares (three workers); on two and four what the number of shares, on
MPI and by collectives what the way of the bytes could change: four workers reduce bfloat16 in another way than three.
Of the methods only the stages change which gradients are exchanged: the others are tried by one kind of processes."""


def launches_of(*variants: str, but: str = "") -> list[tuple[str, str]]:
    """Every (launch, variant) that is tried; `but` leaves a launch out."""
    return [(name, v) for name, tried in TRIED.items() for v in variants if v in tried and name != but]


@pytest.fixture(scope="session")
def figures(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], dict[str, Any]]:
    """The figures of parity_scenario.py for a key of LAUNCHES; each is launched once."""
    known: dict[str, dict[str, Any]] = {}
    folder: Path = tmp_path_factory.mktemp("parity")

    def get(name: str) -> dict[str, Any]:
        if name not in known:
            strategy, workers, launcher = LAUNCHES[name]
            known[name] = run_script(
                "parity_scenario.py", strategy, str(workers), ",".join(TRIED[name]),
                workers=workers, launcher=launcher, output=folder / f"{name}.json",
            )  # fmt: skip
        return known[name]

    return get
