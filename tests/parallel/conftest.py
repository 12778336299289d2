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
    "mirrored-3": ("mirrored", 3, None),
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
OF_BLOCKS = ("transformer", "adapters", "deep", "deep_accumulated", "deep_bfloat16")
"""methods of networks of blocks, which --full tries on 3 and 4 workers of each kind"""
TRIED = {
    "single": (*ALL, *WITHOUT),
    "mirrored-2": ("plain", "overflow", "sync_batch_norm", "staged"),
    "mirrored-3": ("plain", "accumulated", "overflow"),
    "horovod-gloo-2": ("plain", "overflow", *METHODS),
    "horovod-gloo-3": (*VARIANTS, *WIRES),
    "horovod-mpi-2": ("plain", "sync_batch_norm"),
    "collective-2": ("plain", "overflow"),
    "collective-3": ("plain", "overflow", "bfloat16", "sync_batch_norm", "staged", *WIRES),
}
"""What each launch tries. Most on uneven shares (three workers); on two what the number of shares, on MPI and by
collectives what the way of the bytes could change. Of the methods only the stages change which gradients are exchanged:
the others are tried by one kind of processes, whose shares end inside a pair of mixed images."""
FULL = {
    "mirrored-2": ("clipped", "accumulated", "bfloat16", "float16", *METHODS),
    "mirrored-3": OF_BLOCKS,
    "mirrored-4": ("plain", "accumulated", "overflow", "transformer", "deep"),
    "horovod-gloo-2": ("clipped", "accumulated", "sync_batch_norm"),
    "horovod-gloo-3": tuple(METHODS),
    "horovod-gloo-4": (
        *("plain", "clipped", "accumulated", "overflow", "bfloat16", "labels", "numbers"),
        *(*WIRES, *OF_BLOCKS),
    ),
    "horovod-mpi-2": ("clipped", "overflow", "bfloat16"),
    "collective-2": ("clipped", "sync_batch_norm"),
    "collective-3": (*VARIANTS, *OF_BLOCKS),
    "collective-4": ("plain", "accumulated", "overflow", "bfloat16", *WIRES, *OF_BLOCKS),
}
"""What --full adds: four workers, which reduce bfloat16 in another way than three, and the rest on the others."""


def tried(name: str, *, full: bool) -> list[str]:
    """The variants of a launch, each once."""
    return list(dict.fromkeys((*TRIED.get(name, ()), *(FULL.get(name, ()) if full else ()))))


def launches_of(*variants: str, but: str = "") -> list[Any]:
    """Every (launch, variant) that is tried; `but` leaves a launch out."""
    return [
        pytest.param(name, v, marks=() if v in tried(name, full=False) else pytest.mark.full)
        for name in LAUNCHES
        for v in variants
        if v in tried(name, full=True) and name != but
    ]


@pytest.fixture(scope="session")
def figures(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], dict[str, Any]]:
    """The figures of parity_scenario.py for a key of LAUNCHES; each is launched once."""
    known: dict[str, dict[str, Any]] = {}
    folder: Path = tmp_path_factory.mktemp("parity")

    def get(name: str) -> dict[str, Any]:
        if name not in known:
            strategy, workers, launcher = LAUNCHES[name]
            variants = tried(name, full=pytestconfig.option.full)
            known[name] = run_script(
                "parity_scenario.py", strategy, str(workers), ",".join(variants),
                workers=workers, launcher=launcher, output=folder / f"{name}.json",
            )  # fmt: skip
        return known[name]

    return get
