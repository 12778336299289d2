"""A GPU computes what the CPU does, skips what overflows, and repeats and resumes bit for bit where it is to."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.conftest import SHOWN
from tests.end_to_end.harness import ONE_WORKER, Workspace, records
from tests.parallel.parity_scenario import GLOBAL_BATCH as ROWS
from tests.parallel.parity_scenario import NUM_STEPS, OVERFLOW_POSITION
from tl_dist.launcher.command import visible_gpus
from tl_dist.runs.directory import RunDir

ROOT = Path(__file__).parents[2]
TOLERANCE = {"plain": 1e-4, "clipped": 1e-4, "sync_batch_norm": 1e-4, "bfloat16": 1e-2, "float16": 1e-2}
DETERMINISTIC = (*ONE_WORKER, "runtime.deterministic=true", "runtime.tf32=false")
pytestmark = pytest.mark.timeout(1800)


def with_gpus() -> dict[str, str]:
    """This process's environment, with the GPUs that the tests were started with."""
    return {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"} | SHOWN


def python(script: Path, *arguments: str, environment: Mapping[str, str]) -> None:
    """Run a script in a process of its own: this one sees no GPU."""
    argv = [sys.executable, str(script), *arguments]
    path = {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(argv, env={**environment, **path}, capture_output=True, text=True, timeout=1500, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def figures(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """20 steps of each variant of the scenario of tests/parallel, on the GPU and on the CPU."""
    scenario, found = ROOT / "tests" / "parallel" / "parity_scenario.py", {}
    for device, environment in (("GPU", with_gpus()), ("CPU", dict(os.environ))):
        output = tmp_path_factory.mktemp("gpu") / f"{device}.json"
        python(scenario, "single", "1", ",".join([*TOLERANCE, "overflow"]), str(output), environment=environment)
        found[device] = json.loads(output.read_text())
    return found


@pytest.mark.parametrize("variant", list(TOLERANCE))
def test_the_losses_are_those_of_the_cpu(figures: dict[str, dict[str, Any]], variant: str) -> None:
    ours, theirs = (figures[device][variant]["losses"] for device in ("GPU", "CPU"))
    assert len(ours) == NUM_STEPS
    np.testing.assert_allclose(ours, theirs, rtol=TOLERANCE[variant])


@pytest.mark.skipif(visible_gpus(SHOWN) < 2, reason="needs two GPUs")
def test_replicas_that_are_fed_ahead_have_the_losses_of_the_cpu(
    figures: dict[str, dict[str, Any]], tmp_path: Path
) -> None:
    scenario, output = ROOT / "tests" / "parallel" / "parity_scenario.py", tmp_path / "found.json"
    python(scenario, "mirrored", "2", "plain,overflow", str(output), environment=with_gpus())
    found, theirs = json.loads(output.read_text()), figures["CPU"]["plain"]["losses"]
    np.testing.assert_allclose(found["plain"]["losses"], theirs, rtol=TOLERANCE["plain"])
    assert found["plain"]["replicas_equal"] and found["overflow"]["weights_finite"]


@pytest.mark.parametrize("variant", ["overflow", "float16"])
def test_an_overflow_is_skipped_once(figures: dict[str, dict[str, Any]], variant: str) -> None:
    found = figures["GPU"][variant]
    step = OVERFLOW_POSITION // ROWS
    assert [k for k, skipped in enumerate(found["skipped"]) if skipped] == [step]
    assert found["weights_finite"]
    if variant == "float16":
        assert found["loss_scale"] == [2.0**15] * step + [2.0**14] * (NUM_STEPS - step)


def trained(workspace: Workspace, name: str, *more: str, expect: int = 0, **variables: str) -> RunDir:
    """A run on the GPU."""
    process = workspace.start(workspace.argv(name, *DETERMINISTIC, *more), **{**SHOWN, **variables})
    said, _ = process.communicate(timeout=1200)
    assert process.returncode == expect, said
    return workspace.run(name)


def final_state(run: RunDir) -> bytes:
    (state,) = run.checkpoints.glob("*100/*.safetensors")
    return state.read_bytes()


def test_a_run_repeats_and_resumes_bit_for_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Left alone twice, and killed at step 61, to go on from the checkpoint of step 60 or 40."""
    if "CUDA_VISIBLE_DEVICES" not in SHOWN:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    workspace = Workspace(tmp_path)
    first, second = (trained(workspace, name) for name in ("first", "second"))
    assert final_state(first) == final_state(second)
    kill = {"TL_FAILPOINT": "train.chunk_done:61=kill", "TL_ALLOW_FAILPOINTS": "1"}
    killed = trained(workspace, "killed", **kill)
    assert len(list(killed.attempts.glob("*.json"))) == 2
    assert final_state(killed) == final_state(first)
    losses = [{r["step"]: r["loss"] for r in records(run, "train")} for run in (first, killed)]
    assert losses[0] == losses[1] and len(losses[0]) == 100


def test_every_family_of_backbones_has_finite_gradients_in_each_precision() -> None:
    python(Path(__file__).with_name("backbones_scenario.py"), environment=with_gpus())
