"""Rank 0 may work alone for longer than a worker may be silent; one that really hangs is ended in that time."""

import json
import re
from pathlib import Path

import pytest

from tests.end_to_end.harness import CONFIG, INSTALLED, SMALL, Workspace, records
from tl_dist.refusal import ExitCode

HANG_S = 5
SAFETY = f"safety: {{heartbeat_s: 1, hang_s: {HANG_S}, max_restarts: 0}}\n"
LOGISTIC = f"""\
strategy: horovod
workers: 2
{SMALL}
data: {{name: synthetic, num_examples: 96, num_classes: 3, image_size: 16}}
model: {{backbone: tiny, weights: random}}
classifier: {{name: logistic, l2: 0.05}}
"""

pytestmark = pytest.mark.timing


def test_a_long_fit_and_slow_figures_of_rank_0_end_no_run(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path, LOGISTIC + SAFETY)
    slow = f"classifier.fit=sleep={HANG_S + 4},evaluation.figures:1=sleep={HANG_S + 4}"
    process = workspace.start(workspace.argv("slow"), TL_FAILPOINT=slow, TL_ALLOW_FAILPOINTS="1")
    said, _ = process.communicate(timeout=240)
    run = workspace.run("slow")
    assert process.returncode == 0, said
    assert run.done is not None and len(list(run.attempts.iterdir())) == 1
    (fitted,) = [r["text"] for r in records(run, "note") if r["text"].startswith("logistic: fitted")]
    assert float(fitted.split()[-2]) > HANG_S
    # Who has fewer beats is taken for the one that holds up the others, so all must say every phase.
    first, second = (run.beats.read()[rank] for rank in (0, 1))
    assert first.number == second.number and first.phase == second.phase == "saving"


def test_a_worker_that_hangs_is_named_as_stalled_and_ended(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path, CONFIG + SAFETY)
    hangs = "train.chunk_done@1:5=sleep=600"
    process = workspace.start(workspace.argv("hangs", program=INSTALLED), TL_FAILPOINT=hangs, TL_ALLOW_FAILPOINTS="1")
    said, _ = process.communicate(timeout=240)
    assert process.returncode == ExitCode.PEER_LOST, said
    (path,) = workspace.run("hangs").attempts.iterdir()
    attempt = json.loads(path.read_text())
    assert attempt["rank"] == 1
    form = r"stalled, without progress for (\d+) s while reporting, at step 5, and was killed"
    silent = re.fullmatch(form, attempt["reason"])
    assert silent is not None and HANG_S <= int(silent[1]) < HANG_S + 10
    beaten = workspace.run("hangs").heartbeats / "rank_0001"
    # What was said within `heartbeat_s` of the word before is written at the end of that time.
    said_at = beaten.stat().st_mtime - json.loads(beaten.read_text()).get("held_s", 0.0)
    assert HANG_S <= path.stat().st_mtime - said_at < HANG_S + 15
    assert "Fatal Python error: Aborted" in workspace.run("hangs").rank_log(1).read_text()
