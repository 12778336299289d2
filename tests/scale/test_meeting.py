"""64 workers have met and exchanged their addresses within 2 s, and 1,024 have met within 15 s."""

import json
import subprocess
import sys
import threading

import pytest

from tests.promises import TESTS
from tl_dist.rendezvous.server import Rendezvous


@pytest.mark.timing
@pytest.mark.parametrize(
    ("num", "mesh", "requests", "seconds"), [(64, True, 64 * (2 * 63 + 4), 2), (1024, False, 2 * 1024, 15)]
)
def test_so_many_workers_meet_in_time(num: int, mesh: bool, requests: int, seconds: float) -> None:
    plan = [(f"node{k}", 8) for k in range(num // 8)]
    threads = threading.active_count()
    with Rendezvous(plan, "127.0.0.1") as rendezvous:
        argv = [sys.executable, "-m", "tests.scale.peers", rendezvous.endpoint.split(":")[1], str(num)]
        with subprocess.Popen(
            [*argv, *["--mesh"] * mesh], stdout=subprocess.PIPE, text=True, cwd=TESTS.parent
        ) as peers:
            said, _ = peers.communicate(timeout=120)
        assert threading.active_count() == threads + 1
    found = json.loads(said)
    assert found["meet_s"] < seconds and found["mesh_s"] < seconds, found
    assert found["requests"] < 1.5 * requests  # of which some come too early
