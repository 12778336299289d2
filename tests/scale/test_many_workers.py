"""Eleven processes meet soon after the last is ready and compute the steps of one; sixteen by --full, Horovod's too."""

from pathlib import Path

import numpy as np
import pytest

from tests.doubles import PARALLEL
from tests.parallel.launch import run_script
from tests.parallel.parity_scenario import NUM_STEPS, VARIANTS, batch_of, run_variant

MEETING_S = 30
LAUNCHES = [
    ("collective", "ours", 11),  # TensorFlow sorts tasks by name, 10 before 2
    ("horovod", "ours", 8),
    ("collective", "ours", 16),
    ("horovod", "ours", 16),
]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    tried = LAUNCHES if metafunc.config.option.full else LAUNCHES[:1]
    metafunc.parametrize(("strategy", "launcher", "workers"), tried)


@pytest.mark.e2e
def test_so_many_workers_compute_the_steps_of_one(
    strategy: str, launcher: str, workers: int, tmp_path: Path, pytestconfig: pytest.Config
) -> None:
    """A row of the batch for each worker, and two for the first."""
    variants = ["plain", "wire_bfloat16"] if pytestconfig.option.full else ["plain"]
    found = run_script(
        "parity_scenario.py", strategy, str(workers), ",".join(variants),
        workers=workers, launcher=launcher, output=tmp_path / "found.json",
    )  # fmt: skip
    print(f"{strategy} {workers}: met {found['meeting_s']:.1f} s after the last was ready")
    assert found["meeting_s"] < MEETING_S
    plain, one = found["plain"], run_variant(PARALLEL, global_batch=batch_of(workers), **VARIANTS["plain"])
    assert len(plain["losses"]) == NUM_STEPS
    np.testing.assert_allclose(plain["losses"], one["losses"], rtol=1e-5)
    np.testing.assert_allclose(plain["gradient_norms"], one["gradient_norms"], rtol=1e-3)
    assert plain["confusion"] == one["confusion"]
    assert plain["replicas_equal"]
    # Rounded numbers go by two exchanges, which must agree on who has which part.
    for narrow in (found[name] for name in variants[1:]):
        np.testing.assert_allclose(narrow["losses"], one["losses"], rtol=1e-3)
        assert narrow["losses"] != plain["losses"] and narrow["replicas_equal"]
