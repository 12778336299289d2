"""The supervisor brings a run to its end, whatever happens to the workers; here they are scripted, without TF.

A worker here is a small program that acts out one list per attempt: [["beat", 5], ["kill", 9]]. Run as a
program, this file is a supervisor of such workers, so that it can be signalled and killed from outside.
"""

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from tl_dist.config import Config
from tl_dist.config import file as config_file
from tl_dist.launcher import attempt
from tl_dist.launcher.classify_exits import classify, first_failure, outcome_of
from tl_dist.launcher.command import Command
from tl_dist.launcher.local import Group, Launch
from tl_dist.launcher.supervise import supervise
from tl_dist.refusal import ExitCode, Refusal
from tl_dist.runs.directory import RunDir
from tl_dist.runs.exit_records import Exit, ExitRecords
from tl_dist.runs.heartbeats import Heartbeats
from tl_dist.terminal.progress import Progress

ROOT = Path(__file__).parents[3]

WORKER = r"""
import faulthandler, json, os, pathlib, signal, subprocess, sys, time
from tl_dist.runs.exit_records import Exit, ExitRecords
from tl_dist.runs.heartbeats import Heartbeats
run, rank = pathlib.Path(sys.argv[1]), int(os.environ["RANK"])
beats = Heartbeats(run / "heartbeats")
signal.signal(signal.SIGTERM, signal.SIG_IGN)
signal.signal(signal.SIGINT, signal.SIG_IGN)
attempt = len(list((run / "attempts").glob("*.json")))
acts = json.loads(os.environ["SCRIPT"])[str(rank)]
for act, *args in acts[min(attempt, len(acts)) - 1]:
    if act == "beat":
        beats.beat(rank, "training", args[0])
    elif act == "checkpoint":
        (run / "checkpoints" / f"step-{args[0]:08d}").mkdir(exist_ok=True)
    elif act == "record":
        with (run / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(args[0]) + "\n")
    elif act == "done":
        (run / "DONE").write_text("{}")
    elif act == "say":
        print(args[0], flush=True)
    elif act == "end":
        ExitRecords.from_env(os.environ).write(Exit(rank, *args))
        os._exit(args[0])
    elif act == "sleep":
        time.sleep(args[0])
    elif act == "meet":  # beats of an earlier attempt are cleared before any worker starts
        while len(list((run / "heartbeats").glob("rank_*"))) < len(json.loads(os.environ["SCRIPT"])):
            time.sleep(0.02)
    elif act == "kill":
        os.kill(os.getpid(), args[0])
    elif act == "child":
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
        (run / f"child_{rank}").write_text(str(child.pid))
    elif act == "stoppable":
        while not (run / "stop").exists():
            beats.beat(rank, "training", args[0])
            time.sleep(0.02)
        (run / f"saving_{rank}").touch()
        while not (run / "saved").exists():
            time.sleep(0.02)
        sys.exit(75)
    elif act == "exit":
        sys.exit(args[0])
"""

Script = dict[str, Any]
"""rank: for each attempt, the acts of its worker; the last list serves all later attempts too"""


def scripted(run: RunDir, script: Script) -> Launch:
    environment = os.environ | {
        "SCRIPT": json.dumps(script),
        "PYTHONFAULTHANDLER": "1",
        "PYTHONPATH": str(ROOT),
    }

    @contextlib.contextmanager
    def launch() -> Iterator[Sequence[Command]]:
        argv = (sys.executable, "-c", WORKER, str(run.path))
        yield [Command(int(rank), argv, environment | {"RANK": rank}) for rank in script]

    return launch


def new_run(root: Path, *overrides: str) -> tuple[RunDir, Config]:
    file = root / "fake.yaml"
    file.write_text(
        "epochs: 1\ndata: {name: synthetic}\nmodel: {backbone: tiny, weights: random}\n"
        "optimizer: {learning_rate: 0.1}\n"
        "safety: {heartbeat_s: 0.1, hang_s: 1, first_step_s: 30, max_restarts: 2}\n"
    )
    cfg = config_file.load(file, overrides)
    return RunDir.create(root / "runs", cfg), cfg


def end_of(tmp_path: Path, script: Script, *overrides: str) -> tuple[ExitCode | Refusal, RunDir, str]:
    """What `supervise` came to, and what it showed."""
    run, cfg = new_run(tmp_path, *overrides)
    shown = io.StringIO()
    with Progress(Console(file=shown, width=200)) as progress:
        try:
            outcome: ExitCode | Refusal = supervise(run, cfg, scripted(run, script), progress, longest_pause_s=0.05)
        except Refusal as refusal:
            outcome = refusal
    return outcome, run, shown.getvalue()


def attempts(run: RunDir) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted(run.attempts.glob("*.json"))]


def test_a_run_is_done_when_all_workers_ended_and_left_the_marker(tmp_path: Path) -> None:
    note = {"event": "note", "text": "hello from rank 0"}
    script: Script = {"0": [[["record", note], ["done"], ["exit", 0]]], "1": [[["exit", 0]]]}
    outcome, run, shown = end_of(tmp_path, script)
    assert outcome == ExitCode.DONE
    assert "hello from rank 0" in shown
    (attempt,) = attempts(run)
    assert attempt["exit_code"] == 0 and attempt["workers"] == 2 and attempt["reason"] == "done"
    assert attempt["ended"] >= attempt["began"]


def test_exit_code_zero_without_the_marker_is_a_failure(tmp_path: Path) -> None:
    outcome, run, _ = end_of(tmp_path, {"0": [[["exit", 0]]]})
    assert isinstance(outcome, Refusal) and outcome.code == ExitCode.NO_REQUEUE
    assert "no DONE marker" in str(outcome)
    assert len(attempts(run)) == 3


def test_a_killed_worker_is_named_and_the_run_goes_on_from_the_checkpoint(tmp_path: Path) -> None:
    script: Script = {
        "0": [[["checkpoint", 3], ["beat", 0], ["meet"], ["exit", 76]], [["done"], ["exit", 0]]],
        "1": [[["beat", 0], ["meet"], ["say", "famous last words"], ["kill", 9]], [["exit", 0]]],
    }
    outcome, run, shown = end_of(tmp_path, script)
    assert outcome == ExitCode.DONE
    assert "rank 1 on " in shown and "SIGKILL (most likely out of memory" in shown and "exit code 137" in shown
    assert "famous last words" in shown
    assert "restart 1 of 2 from step 3" in shown
    first, second = attempts(run)
    assert (first["exit_code"], first["rank"]) == (137, 1)
    assert second["from_step"] == 3


@pytest.mark.timing
def test_the_first_failure_ends_all_within_ten_seconds(tmp_path: Path) -> None:
    script: Script = {
        "0": [[["child"], ["beat", 0], ["sleep", 60]], [["done"], ["exit", 0]]],
        "1": [[["beat", 0], ["meet"], ["kill", 9]], [["exit", 0]]],
    }
    began = time.monotonic()
    outcome, run, _ = end_of(tmp_path, script)
    assert outcome == ExitCode.DONE
    assert time.monotonic() - began < 12  # the second attempt is in it
    assert attempts(run)[0]["rank"] == 1
    assert not alive(int((run.path / "child_0").read_text()))


def test_the_worker_that_notices_nothing_is_the_cause_when_all_others_lost_a_peer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attempt, "GRACE_S", 1.0)
    script: Script = {
        "0": [[["beat", 0], ["meet"], ["exit", 76]], [["done"], ["exit", 0]]],
        "1": [[["beat", 0], ["sleep", 60]], [["exit", 0]]],
        "2": [[["beat", 0], ["meet"], ["exit", 76]], [["exit", 0]]],
    }
    outcome, run, shown = end_of(tmp_path, script)
    assert outcome == ExitCode.DONE
    assert "rank 1 on" in shown and "did not react" in shown
    assert attempts(run)[0]["rank"] == 1
    assert "Fatal Python error: Aborted" in run.rank_log(1).read_text()  # what it was doing


@pytest.mark.parametrize("code", list(ExitCode))
def test_only_lost_peers_and_inner_errors_are_worth_a_restart(code: ExitCode) -> None:
    assert outcome_of(Exit(0, code)).restartable == (code in (70, 76))


def test_a_refusal_is_final(tmp_path: Path) -> None:
    script: Script = {
        "0": [[["beat", 0], ["meet"], ["exit", 76]]],
        "1": [[["beat", 0], ["meet"], ["end", 65, "/data/x.png is torn.", "restore it."]]],
    }
    outcome, run, _ = end_of(tmp_path, script)
    assert isinstance(outcome, Refusal) and outcome.code == 65
    assert str(outcome).startswith("rank 1 on ") and str(outcome).endswith(": /data/x.png is torn. Fix: restore it.")
    assert len(attempts(run)) == 1
    assert [path.name for path in run.attempts.iterdir()] == ["0001.json"]


def test_restarts_end_when_none_brings_a_newer_checkpoint(tmp_path: Path) -> None:
    outcome, run, shown = end_of(tmp_path, {"0": [[["kill", 9]]]})
    assert isinstance(outcome, Refusal) and outcome.code == ExitCode.NO_REQUEUE
    assert "2 restarts in a row brought no newer checkpoint" in str(outcome)
    assert "fewer workers or accumulate" in outcome.fix
    assert len(attempts(run)) == 3 and "restart 2 of 2" in shown


def test_a_newer_checkpoint_restarts_the_count(tmp_path: Path) -> None:
    acts = [[["checkpoint", k], ["exit", 70]] for k in (1, 1, 2, 3)]
    outcome, run, _ = end_of(tmp_path, {"0": [*acts, [["done"], ["exit", 0]]]})
    assert outcome == ExitCode.DONE
    assert [attempt["from_step"] for attempt in attempts(run)] == [0, 1, 1, 2, 3]


def test_without_restarts_the_workers_own_code_is_passed_on(tmp_path: Path) -> None:
    outcome, run, _ = end_of(tmp_path, {"0": [[["kill", 11]]]}, "safety.max_restarts=0")
    assert isinstance(outcome, Refusal) and outcome.code == ExitCode.PEER_LOST
    assert "SIGSEGV" in str(outcome) and len(attempts(run)) == 1


@pytest.mark.timing
@pytest.mark.parametrize("how", [["sleep", 60], ["kill", signal.SIGSTOP]])
def test_a_hung_or_frozen_worker_is_ended_with_its_stacks_in_the_log(tmp_path: Path, how: list[Any]) -> None:
    busy = [["beat", 0], ["meet"], *[act for k in range(1, 40) for act in (["beat", k], ["sleep", 0.1])]]
    script: Script = {
        "0": [busy, [["done"], ["exit", 0]]],
        "1": [[["beat", 0], ["meet"], ["beat", 1], how], [["exit", 0]]],
    }
    outcome, run, shown = end_of(tmp_path, script)
    assert outcome == ExitCode.DONE
    assert "rank 1 on " in shown and "stalled, without progress for" in shown
    assert "while training, at step 1" in shown
    assert attempts(run)[0]["exit_code"] == ExitCode.PEER_LOST
    assert "Fatal Python error: Aborted" in run.rank_log(1).read_text()
    assert not list(tmp_path.rglob("core*"))


def test_before_the_first_step_patience_is_longer(tmp_path: Path) -> None:
    script: Script = {"0": [[["beat", 0], ["sleep", 1.0], ["done"], ["exit", 0]]]}
    outcome, run, _ = end_of(tmp_path, script, "safety.hang_s=0.2")
    assert outcome == ExitCode.DONE and len(attempts(run)) == 1


@pytest.mark.parametrize(("workers", "every_s"), [(1, 2.0), (1000, 10.0)])
def test_the_run_directory_which_may_be_far_away_is_hardly_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int, every_s: float
) -> None:
    """The stop file once a second, at most 100 heartbeats, what is shown twice; pids ten times."""
    run, cfg = new_run(tmp_path, *(f"safety.{key}" for key in ("heartbeat_s=5", "hang_s=120", "first_step_s=120")))
    looks: Counter[str] = Counter()
    now, minute = [0.0], 60.0

    def counted(name: str, result: Any) -> Callable[..., Any]:
        def look(*_: object) -> Any:
            looks[name] += 1
            return result

        return look

    def sleep(s: float) -> None:
        now[0] += s

    monkeypatch.setattr(RunDir, "stop_requested", counted("stop file", False))
    monkeypatch.setattr(Heartbeats, "read", counted("heartbeats", {}))
    monkeypatch.setattr(attempt, "time", SimpleNamespace(monotonic=lambda: now[0], sleep=sleep))
    watched = attempt.Attempt(run, cfg, Progress(Console(file=io.StringIO())), attempt.Signals())
    monkeypatch.setattr(watched, "_show", counted("records", None))

    class Workers:
        exits: Sequence[Exit] = [Exit(0, 0)]
        pids: Mapping[int, int] = {}

        def poll(self) -> list[Exit]:
            looks["pids"] += 1
            return []

        @property
        def alive(self) -> list[int]:
            return list(range(workers)) if now[0] < minute else []

    watched._until_the_end(Workers())  # type: ignore[arg-type]
    assert looks["pids"] > 590
    assert 55 <= looks["stop file"] <= 61
    assert 0.9 * minute / every_s - 1 <= looks["heartbeats"] <= minute / every_s + 1
    assert 110 <= looks["records"] <= 121


def test_a_stop_file_from_elsewhere_ends_the_run_with_75(tmp_path: Path) -> None:
    run, _ = new_run(tmp_path, "safety.hang_s=30")
    (run.path / "saved").touch()
    with supervisor(run, {"0": [[["stoppable", 1]]], "1": [[["stoppable", 1]]]}) as process:
        wait_for(lambda: len(run.beats.read()) == 2)
        run.request_stop()
        assert process.wait(30) == ExitCode.REQUEUE


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_a_signal_asks_for_a_stop_and_waits_for_the_save(tmp_path: Path, number: int) -> None:
    run, _ = new_run(tmp_path, "safety.hang_s=30")
    with supervisor(run, {"0": [[["stoppable", 5]]], "1": [[["stoppable", 5]]]}) as process:
        wait_for(lambda: len(run.beats.read()) == 2)
        process.send_signal(number)
        wait_for(lambda: len(list(run.path.glob("saving_*"))) == 2)
        if number != signal.SIGINT:
            process.send_signal(number)  # schedulers repeat themselves
        (run.path / "saved").touch()
        assert process.wait(30) == ExitCode.REQUEUE
        shown = process.stdout.read() if process.stdout else ""
        assert shown.count("stopping after this step, saving") == 1
        assert ("press Ctrl-C again" in shown) == (number == signal.SIGINT)
        assert attempts(run)[0]["exit_code"] == ExitCode.REQUEUE


@pytest.mark.timing
def test_a_second_ctrl_c_ends_the_workers_at_once(tmp_path: Path) -> None:
    run, _ = new_run(tmp_path, "safety.hang_s=30")
    with supervisor(run, {"0": [[["beat", 1], ["sleep", 60]]]}) as process:
        wait_for(lambda: len(run.beats.read()) == 1)
        process.send_signal(signal.SIGINT)
        wait_for(run.stop_requested)
        process.send_signal(signal.SIGINT)
        assert process.wait(6) == ExitCode.REQUEUE
        assert not alive(run.beats.read()[0].pid)


def test_a_stop_during_the_pause_before_a_restart_is_heeded(tmp_path: Path) -> None:
    run, _ = new_run(tmp_path)
    with supervisor(run, {"0": [[["exit", 76]]]}, pause_s=60) as process:
        wait_for(lambda: run.attempts.exists() and any("exit_code" in a for a in attempts(run)))
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == ExitCode.REQUEUE


def test_workers_die_with_the_supervisor(tmp_path: Path) -> None:
    run, _ = new_run(tmp_path, "safety.hang_s=30")
    with supervisor(run, {"0": [[["beat", 1], ["sleep", 60]]], "1": [[["beat", 1], ["sleep", 60]]]}) as process:
        wait_for(lambda: len(run.beats.read()) == 2)
        pids = [beat.pid for beat in run.beats.read().values()]
        assert all(os.getsid(pid) == pid for pid in pids)  # a terminal's Ctrl-C does not reach them
        process.kill()
        process.wait()
        began = time.monotonic()
        wait_for(lambda: not any(alive(pid) for pid in pids))
        assert time.monotonic() - began < 5


def test_logs_are_continued_and_each_attempt_has_its_heading(tmp_path: Path) -> None:
    _, run, _ = end_of(tmp_path, {"0": [[["say", "one"], ["exit", 70]], [["say", "two"], ["done"], ["exit", 0]]]})
    lines = run.rank_log(0).read_text().splitlines()
    assert [line for line in lines if not line.startswith("---")] == ["one", "two"]
    assert [line[:13] for line in lines if line.startswith("---")] == ["--- attempt 1", "--- attempt 2"]


def test_a_command_that_does_not_exist_leaves_no_worker_behind(tmp_path: Path) -> None:
    commands = [Command(0, ("/nonexistent",), dict(os.environ))]
    started = Group(commands, lambda rank: tmp_path / str(rank), ExitRecords(tmp_path / "0001"))
    started.end()
    assert started.exits[0].code == 1
    assert "No such file" in "\n".join(started.last_lines(0))


def test_the_cause_is_a_refusal_else_the_first_failure_that_is_no_lost_peer() -> None:
    exits = [Exit(2, 75), Exit(0, 76), Exit(3, 137), Exit(1, 70), Exit(4, 137, asked=True)]
    assert first_failure(exits).rank == 3
    assert first_failure([*exits, Exit(5, 78)]).rank == 5
    assert first_failure([Exit(0, 0), Exit(1, 76), Exit(2, 76)]).rank == 1


def exits(*codes: int) -> list[Exit]:
    return [Exit(rank, code) for rank, code in enumerate(codes)]


@pytest.mark.parametrize(
    ("codes", "done", "meaning", "rank"),
    [
        ([0, 0], True, ExitCode.DONE, None),
        ([0, 0], False, ExitCode.INTERNAL, 0),  # nobody failed, nobody finished
        ([75, 75], False, ExitCode.REQUEUE, None),
        ([75, 137], False, ExitCode.REQUEUE, None),  # killed while it ended, after the save
        ([137], False, 137, 0),
        ([137, 76], False, 137, 0),
        ([76, 137], False, 137, 1),  # the first one only lost its peer
        ([76, 76], False, ExitCode.PEER_LOST, 0),
        ([76, 75], False, ExitCode.PEER_LOST, 0),
        ([78, 137], False, ExitCode.UNSAFE, 0),  # a refusal is the reason, not the peers it took along
        ([137, 78], False, ExitCode.UNSAFE, 1),
        ([137, 93], False, ExitCode.NO_REQUEUE, 1),
        ([76, 65], False, ExitCode.DATA, 1),
        ([1, 137], False, ExitCode.INTERNAL, 0),  # a traceback
        ([1], True, ExitCode.INTERNAL, 0),
    ],
)
def test_the_end_of_an_attempt_is_what_its_workers_said(
    codes: list[int], done: bool, meaning: int, rank: int | None
) -> None:
    outcome = classify(exits(*codes), done=done)
    assert (outcome.code, outcome.rank, outcome.orderly) == (meaning, rank, rank is None)


def test_who_did_not_end_when_the_others_lost_a_peer_is_named() -> None:
    outcome = classify([Exit(0, 76), Exit(2, 76), Exit(1, 134, asked=True)], done=False)
    assert (outcome.code, outcome.rank) == (76, 1)
    assert outcome.cause == "did not react when rank 0 lost a peer, and was killed"
    assert classify([Exit(0, 70), Exit(1, 134, asked=True)], done=False).rank == 0


def test_an_exit_is_explained_by_the_workers_own_last_word() -> None:
    outcome = outcome_of(Exit(1, 70, what="ValueError: bad shape"))
    assert outcome.cause == "ValueError: bad shape" and outcome.code == 70
    assert outcome_of(Exit(1, 1)).code == ExitCode.INTERNAL
    assert "SIGBUS" in outcome_of(Exit(0, 135)).cause
    assert "signal 60" in outcome_of(Exit(0, 128 + 60)).cause


@contextlib.contextmanager
def supervisor(run: RunDir, script: Script, *, pause_s: float = 0.05) -> Iterator[subprocess.Popen[str]]:
    """This file as a program in a session of its own; killed if it is still there at the end."""
    argv = [sys.executable, __file__, str(run.path), json.dumps(script), str(pause_s)]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(argv, env=env, stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
        try:
            yield process
        finally:
            process.kill()


def wait_for(condition: Any, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def main() -> int:
    run = RunDir.open(sys.argv[1])
    with Progress(Console(width=200)) as progress:
        launch = scripted(run, json.loads(sys.argv[2]))
        return supervise(run, config_file.load(run.config_file), launch, progress, longest_pause_s=float(sys.argv[3]))


if __name__ == "__main__":
    sys.exit(main())


def test_a_worker_that_could_not_even_write_why_is_told_by_its_code() -> None:
    outcome = outcome_of(Exit(1, ExitCode.STORAGE))
    assert "a disk is full" in outcome.cause and "make room" in outcome.fix and not outcome.restartable
