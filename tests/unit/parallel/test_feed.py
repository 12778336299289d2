"""Batches lie on the device before the step that takes them, and are the same; replicas are each sent their own rows.

Logical CPU devices stand for GPUs.
"""

import json
import subprocess
from typing import Any

import pytest

from tests import forks


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What tests/unit/parallel/logical_devices.py finds."""
    output = tmp_path_factory.mktemp("devices") / "found.json"
    scenario = forks.of_module("tests.unit.parallel.logical_devices", str(output))
    done = subprocess.run(**scenario, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(output.read_text())


def test_batches_are_copied_ahead_to_the_device_that_takes_them(found: Any) -> None:
    assert found["fed to"] == ["CPU:1"]


def test_a_step_for_gpus_fed_like_one_has_the_bits_of_the_plain_one(found: Any) -> None:
    assert found["differences"] == []


def test_a_damaged_example_is_the_same_error_on_the_other_side(found: Any) -> None:
    assert found["error"] is True


def test_gradients_are_summed_on_the_device_that_has_them_and_all_else_on_the_host(found: Any) -> None:
    """By `collective`. TensorFlow would silently move a sum to the device where the token of its order lies."""
    expected = {"gradients": "CPU:1", "all else": "CPU:0", "in a graph": [1.0, 1.0, 1.0]}
    assert found["collectives"] == expected


def test_a_batch_is_cut_on_the_host_and_each_replica_sent_its_rows(found: Any) -> None:
    assert [device[-5:] for device in found["cut on"]] == ["CPU:0"]
    assert [device[-5:] for device in found["given to"]] == ["CPU:0", "CPU:1"]


def test_replicas_are_fed_ahead_with_the_bits_of_batches_that_are_cut_in_the_step(found: Any) -> None:
    ahead = found["mirrored"]
    assert ahead["fed to"] == ["CPU:0", "CPU:1"]
    assert ahead["differences"] == []
    assert ahead["error"] is True
    assert ahead["uneven"] is True, "three rows over two replicas have to be cut in the step"
