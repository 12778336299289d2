"""A power cut at any moment: the disk as it was then holds every checkpoint that had been acknowledged."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tl_dist.runs.checkpoint import restore
from tl_dist.runs.directory import RunDir

WRITER = """
import os, sys
import numpy as np
from tl_dist.runs.checkpoint import Checkpointer
from tl_dist.runs.directory import RunDir
run = RunDir(sys.argv[1])
run.checkpoints.mkdir(parents=True)
acknowledged = os.open(sys.argv[2], os.O_WRONLY | os.O_CREAT)
with Checkpointer(run, keep=2, owned=lambda: True) as saver:
    for step in range(1, 10**8):
        saver.save(step, {"kernel": np.full(30_000, step, np.float32)}, {}, wait=True)
        assert saver.last_checkpoint == step, saver.poll()
        os.pwrite(acknowledged, str(step).encode(), 0)
"""


def mounted(image, place) -> bool:
    # A long commit interval: what is on the disk is there because somebody asked for it.
    command = ["mount", "-o", "loop,commit=300", image, place]
    return subprocess.run(command, capture_output=True).returncode == 0


@pytest.fixture
def disk(tmp_path):
    """An ext4 filesystem in a file, and a place to mount copies of it at."""
    image, place, place_of_copy = (tmp_path / name for name in ("image", "disk", "copy"))
    place.mkdir()
    place_of_copy.mkdir()
    with image.open("wb") as file:
        file.truncate(24 << 20)
    if os.geteuid() != 0:
        pytest.skip("only root can mount a disk")
    subprocess.run(["mkfs.ext4", "-q", "-F", image], check=True)
    if not mounted(image, place):
        pytest.skip("loop devices cannot be mounted here")
    yield image, place, place_of_copy
    subprocess.run(["umount", place], check=True)


def all_threads_stopped(pid) -> bool:
    states = [task.joinpath("stat").read_text() for task in Path(f"/proc/{pid}/task").iterdir()]
    return all(state.rpartition(")")[2].split()[0] == "T" for state in states)


def test_after_a_power_cut_every_acknowledged_checkpoint_is_there(disk, tmp_path):
    image, place, place_of_copy = disk
    acknowledged = tmp_path / "acknowledged"
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, place / "run", acknowledged],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(Path(__file__).parents[3])},
    )
    try:
        while not acknowledged.exists() or not acknowledged.read_text():
            assert writer.poll() is None
            time.sleep(0.01)
        for number in range(12):
            time.sleep(0.013 * (number % 5))
            writer.send_signal(signal.SIGSTOP)  # so that the copy is the disk of one moment
            while not all_threads_stopped(writer.pid):
                time.sleep(0.001)
            step = int(acknowledged.read_text())
            shutil.copyfile(image, tmp_path / "after_the_cut")
            writer.send_signal(signal.SIGCONT)
            assert mounted(tmp_path / "after_the_cut", place_of_copy)
            try:
                found = restore(RunDir(place_of_copy / "run"), log=pytest.fail)
            finally:
                subprocess.run(["umount", place_of_copy], check=True)
            assert found.step in (step, step + 1)  # the next one may be on the disk, but not yet acknowledged
            assert (found.arrays["kernel"] == found.step).all()
    finally:
        writer.kill()
        writer.wait()
