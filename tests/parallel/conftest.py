"""One launch per strategy and worker count, shared by all tests of this folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.parallel.launch import run_script
from tests.parallel.parity_scenario import METHODS, VARIANTS, WITHOUT

LAUNCHES = {
    "single": ("single", 1, None),
    "mirrored-2": ("mirrored", 2, None),
    "mirrored-4": ("mirrored", 4, None),
    "horovod-gloo-2": ("horovod", 2, "gloo"),
    "horovod-gloo-3": ("horovod", 3, "gloo"),
    "horovod-gloo-4": ("horovod", 4, "gloo"),
    "horovod-mpi-2": ("horovod", 2, "mpi"),
}
OF_METHODS = ("single", "mirrored-2", "horovod-gloo-2", "horovod-gloo-3")
"""the launches that also try the methods one by one"""


@pytest.fixture(scope="session")
def figures(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], dict[str, Any]]:
    """The figures of parity_scenario.py for a key of LAUNCHES; each is launched once."""
    known: dict[str, dict[str, Any]] = {}
    folder: Path = tmp_path_factory.mktemp("parity")

    def get(name: str) -> dict[str, Any]:
        if name not in known:
            strategy, workers, launcher = LAUNCHES[name]
            variants = [*VARIANTS, *(METHODS if name in OF_METHODS else ())]
            variants += WITHOUT if name == "single" else ()
            known[name] = run_script(
                "parity_scenario.py", strategy, str(workers), ",".join(variants),
                workers=workers, launcher=launcher, output=folder / f"{name}.json",
            )  # fmt: skip
        return known[name]

    return get
