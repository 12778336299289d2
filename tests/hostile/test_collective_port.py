"""No other user of the host says a word to the server of a `collective` run, from its start to its end."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import stranger
from tests.hostile.arena import TL_DIST

CONFIG = """\
name: guarded
strategy: collective
workers: 2
steps: 30
global_batch: 8
precision: float32
data: {name: digits, image_size: 32}
model: {backbone: tiny, weights: random, train_from: all}
optimizer: {name: sgd, learning_rate: 0.01}
report: {tensorboard: false}
runtime: {threads: 1}
"""
PATIENCE_S = 300


# A network of its own, so that every port in it is the run's, with a card beside loopback.
APART = """\
ip link set lo up && ip link add card0 type veth peer name card1 && ip addr add 10.203.79.1/24 dev card0 &&
ip link set card0 up && ip link set card1 up || exit 9
"$1" "$2" 600 0 "" > said.1 2>&1 & first=$!
"$1" "$2" 600 0 "" > said.2 2>&1 & second=$!
"$3" train guarded.yaml; ended=$?
kill "$first" "$second"
wait "$first" || exit 11
wait "$second" || exit 12
exit "$ended"
"""


@pytest.mark.cluster
@pytest.mark.parametrize("card", ["card0", pytest.param("lo", marks=pytest.mark.full)])
def test_a_stranger_at_every_port_of_a_run_from_its_start_to_its_end(tmp_path: Path, card: str) -> None:
    """By the source ports of its workers and its own, to all addresses of the host; and in the place of the server."""
    (tmp_path / "guarded.yaml").write_text(CONFIG)
    played = subprocess.run(
        ["unshare", "--net", "sh", "-c", APART, "sh", sys.executable, stranger.__file__, TL_DIST],
        cwd=tmp_path,
        env=dict(os.environ, HOROVOD_GLOO_IFACE=card),
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    said = [file.read_text() for file in sorted(tmp_path.glob("said.*"))]
    assert played.returncode == 0, (said, played.stdout, played.stderr)
    assert len(said) == 2
    for each in said:  # not because it had nothing to try
        assert not each.startswith("0 ") and not each.endswith(" 0 others\n"), said
