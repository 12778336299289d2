"""Two workers: what rank 0 broadcasts arrives bit for bit, whatever its type and shape."""

from pathlib import Path

import pytest

from tests.parallel.launch import run_script


@pytest.mark.parametrize("strategy", ["horovod", "collective"])
def test_values_of_every_type_arrive_bit_for_bit(tmp_path: Path, strategy: str) -> None:
    first, second = run_script(
        "broadcast_scenario.py", strategy, workers=2, launcher="ours", output=tmp_path / "out.json"
    )
    assert first["before"] and first["after"]
    assert not second["before"] and second["after"]
