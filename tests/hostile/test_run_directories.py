"""Whatever has become of a run directory, the same command goes on from what is whole, or says what is wrong."""

import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.hostile.arena import WORKER_SECONDS, Arena, Case, Cases, Warm
from tl_dist.config import file as config_file
from tl_dist.files.npz import save_npz
from tl_dist.refusal import ExitCode, Refusal
from tl_dist.runs import checkpoint, checkpoint_format
from tl_dist.runs.directory import RunDir, step_name
from tl_dist.runs.identity import identity_of
from tl_dist.runs.records import records
from tl_dist.runs.table import runs
from tl_dist.scores import calibration, neighbours, predictions
from tl_dist.terminal.console import Console
from tl_dist.terminal.tables import show_end
from tl_dist.tools.compare.command import compare
from tl_dist.tools.report.command import Request, report

CASES = Cases()
CONFIG = """\
steps: 4
global_batch: 4
data: {name: synthetic, image_size: 32}
model: {backbone: tiny, weights: random, train_from: all}
optimizer: {name: adam, learning_rate: 3e-3}
report: {tensorboard: false}
checkpoint: {every_steps: 2, keep: 5}
"""


def test_run_directory(case: Case, arena: Arena) -> None:
    arena.check(case)


def began(arena: Arena) -> RunDir:
    """A run that has not come to its first step."""
    cfg = config_file.load(arena.file("run.yaml", CONFIG))
    return RunDir.create(arena.folder / "runs", cfg)


def trained(arena: Arena) -> RunDir:
    """A run that was lost after step 4."""
    arena.file("run.yaml", CONFIG)
    done = arena.run(("train", "run.yaml"), seconds=WORKER_SECONDS, environment={})
    assert done.returncode == 0, done.stderr.decode()
    run = RunDir(arena.folder / "runs" / "run")
    run.done_file.unlink()
    return run


def plant(run: RunDir, step: int, *, meta: bytes = b"", nan: bool = False) -> None:
    """A checkpoint of a later step whose manifest proves all that it holds, some NaN among it."""
    found = checkpoint.restore(run)
    assert found is not None
    if nan:
        next(array for path, array in found.arrays.items() if not path.startswith("optimizer/"))[:1] = np.nan
    content = checkpoint_format.Content.of(step, found.arrays, found.meta)
    content = checkpoint_format.Content(step, content.header, content.arrays, meta or content.meta)
    checkpoint_format.write(run.checkpoints / step_name(step), content)


def is_whole(arena: Arena) -> None:
    run = RunDir(arena.folder / "runs" / "run")
    assert run.done is not None and run.done["step"] == 4
    trained = [one for one in records(run.metrics_file) if one.get("event") == "train"]
    assert [one["step"] for one in trained] == [1, 2, 4]


def littered(run: RunDir) -> None:
    """Lines that are no records, a lock before nine digits, names of numbers that no number has."""
    with run.metrics_file.open("ab") as lines:
        lines.write(b'\xff\xfe\n5\n{"step": "x"}\n' + b"[" * 100_000 + b'\n{"event": "evaluation", "split": []}\n')
        lines.truncate(lines.tell() + (64 << 20))
    owner = {"who": "x", "host": "x", "pid": 1, "started": 1, "boot": "", "namespaces": [0, 0], "token": "x"}
    (run.lock_dir / "owner-99999999.json").write_text(json.dumps(owner | {"released": True}))
    (run.lock_dir / "owner-000000000100000005.json").write_text("{}")
    for number in ("\N{SUPERSCRIPT TWO}", "9" * 240):
        (run.attempts / f"{number}.json").write_text("{}")


@CASES.add("what stopped a run at its start", code=0, says="test accuracy", worker=True, always=True, after=is_whole)
def _(arena: Arena) -> Sequence[str]:
    littered(began(arena))
    return "train", "run.yaml"


@CASES.add("checkpoints that are no state", code=0, says="resumed from step 4", worker=True, after=is_whole)
def _(arena: Arena) -> Sequence[str]:
    run = trained(arena)
    littered(run)
    plant(run, 6, meta=b'{"history": 5}')
    plant(run, 8, meta=b"{}")
    plant(run, 10, nan=True)
    return "train", "run.yaml"


def has_no_checkpoint(arena: Arena) -> None:
    run = RunDir(arena.folder / "runs" / "run")
    assert not list(run.checkpoints.iterdir()) and run.done is None


@CASES.add(
    "a state that is not finite", code=93, says="not saved: '.*holds numbers that are not finite", worker=True,
    after=has_no_checkpoint,
)  # fmt: skip
def _(arena: Arena) -> Sequence[str]:
    arena.file("run.yaml", CONFIG)
    return "train", "run.yaml", "optimizer.learning_rate=1e39"


@CASES.add("records from a pipe", code=78, says="metrics.jsonl cannot be read.*move it away")
def _(arena: Arena) -> Sequence[str]:
    os.mkfifo(began(arena).metrics_file)
    return "train", "run.yaml"


@CASES.add("an owner that is a link", code=78, says="owner-00000001.json is a symbolic link")
def _(arena: Arena) -> Sequence[str]:
    owner = began(arena).lock_dir / "owner-00000001.json"
    owner.unlink()
    owner.symlink_to(arena.outside / "thesis.tex")
    return "train", "run.yaml"


def predicted(arena: Arena, name: str, **arrays: object) -> Path:
    """A run with predictions of three examples."""
    right = {
        "ids": np.array(["a", "b", "c"]),
        "labels": np.array([0, 1, 0], np.int32),
        "probabilities": np.full((3, 2), 0.5, np.float32),
        "class_names": np.array(["x", "y"]),
        "step": 1,
        "types": np.array([], np.str_),
        "groups": np.array([], np.str_),
    }
    path = predictions.file_of(arena.folder / name, "test")
    path.parent.parent.mkdir()
    save_npz(path, **right | arrays)
    return path


@CASES.add("predictions of another shape", code=65, says="holds no predictions .*probabilities have another shape")
def _(arena: Arena) -> Sequence[str]:
    predicted(arena, "a")
    predicted(arena, "b", probabilities=np.zeros(3, np.float32))
    return "compare", "a", "b"


def slurm(**changes: str) -> dict[str, str]:
    job = {
        "SLURM_JOB_ID": "7",
        "SLURM_NTASKS": "2",
        "SLURM_JOB_NODELIST": "n[1-2]",
        "SLURM_TASKS_PER_NODE": "1(x2)",
    }
    return job | changes


NO_HOSTS = "scontrol does not expand host list|does not add up"
"""by Slurm's own program, which there may not be here, or without a cluster"""

for name, job, says in (
    ("hosts that multiply", slurm(SLURM_JOB_NODELIST="a[0-65535][0-65535]"), NO_HOSTS),
    ("hosts of many digits", slurm(SLURM_JOB_NODELIST=f"a[{'9' * 5000}]"), NO_HOSTS),
    ("tasks on nodes without number", slurm(SLURM_TASKS_PER_NODE="1(x9999999999)"), "does not parse"),
):

    @CASES.add(name, code=78, says=says, environment=job)
    def _(arena: Arena) -> Sequence[str]:
        began(arena)
        return "srun", "runs/run"


@CASES.add("a finished run whose figures are damaged", code=0, says="its last evaluation is damaged")
def _(arena: Arena) -> Sequence[str]:
    run = began(arena)
    run.mark_done({"step": 4})
    run.metrics_file.write_text('{"event": "evaluation", "split": "test", "num_correct": [1]}\n')
    return "train", "run.yaml"


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory, warm: Warm | None) -> Path:
    """A run that has ended, with all that commands leave in one beside what training does."""
    root = tmp_path_factory.mktemp("ended")
    arena = Arena(root, root, warm)
    arena.file("run.yaml", CONFIG)
    assert arena.run(("train", "run.yaml"), seconds=WORKER_SECONDS, environment={}).returncode == 0
    run = RunDir(arena.folder / "runs" / "run").path
    said = predictions.load(predictions.file_of(run, "test"))
    labels = said.labels.astype(np.int32)
    of_true = said.probabilities[np.arange(len(labels)), labels].astype(np.float64)
    none = np.array([], np.str_)
    kept = calibration.Calibration(4, "x", none, 1.0, labels, of_true, none)
    save_npz(run / calibration.FILE, **kept.arrays())
    bank = neighbours.Neighbours("x", np.eye(6, dtype=np.float32), np.ones(3, np.float32))
    save_npz(run / neighbours.FILE, **bank.arrays())
    for name in ("exports/keras/model.keras", "track/wandb/x.wandb", "evaluations/test.json", "report.html"):
        (run / name).parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        (run / name).write_text("{}")
    return run


@pytest.fixture
def run(ended: Path, arena: Arena) -> Path:
    """A copy of that run."""
    return shutil.copytree(ended, arena.folder / "runs" / "run")


def test_no_entry_of_a_run_may_be_a_link_or_be_in_the_hands_of_others(arena: Arena, run: Path) -> None:
    """Whatever a command reads or writes is among all entries, and so is what nobody has thought of."""
    (run / "exports" / "keras" / "a new name").write_text("")
    entries = sorted(run.rglob("*"))
    assert len(entries) > 25
    for path in entries:
        before = path.stat().st_mode
        path.chmod(before | 0o002)
        if path.suffix != ".out":  # which nothing reads
            assert f"{path} can be written by other users" in unsafe(run)
        path.chmod(before)
        if os.geteuid() == 0:
            os.chown(path, 65534, -1)
            assert "belongs to user 65534" in unsafe(run)
            os.chown(path, 0, -1)
        aside = arena.folder / "aside"
        path.rename(aside)
        path.symlink_to(aside)
        assert f"{path} is a symbolic link" in unsafe(run) or path == run / "config.yaml"
        path.unlink()
        aside.rename(path)
    for path in (run, *run.rglob("*")):  # an archive, unpacked with a umask of 022
        path.chmod(0o755 if path.is_dir() else 0o644)
    RunDir.open(run)


def unsafe(run: Path) -> str:
    with pytest.raises(Refusal) as caught:
        RunDir.open(run)
    assert caught.value.code == ExitCode.UNSAFE
    return str(caught.value)


GONE: Any = object()
DAMAGE: Sequence[Any] = (
    None, [], {}, "x", -1, float("inf"), True, "\ud800", 10**400, ["x"], [[1]], {"a": {}}, GONE, "x" * 100_000,
)  # fmt: skip
BYTES = (b"", b"null", b"[]", b"{}", b"5", b'"x"', b"[" * 100_000, b'{"a":' * 100_000, b"\xff\x00" * 500)


def places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where anything is, at any depth; the whole is at ()."""
    yield at
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from places(item, (*at, key))


def damaged(value: Any, at: tuple[Any, ...], by: Any) -> Any:
    if not at:
        return {} if by is GONE else by
    found = part = deepcopy(value)
    for key in at[:-1]:
        part = part[key]
    if by is GONE:
        del part[at[-1]]
    else:
        part[at[-1]] = by
    return found


def uses(run: Path) -> Iterator[Callable[[], Any]]:
    """All that reads the JSON of a run without a network: pages, tables, what workers begin with."""
    yield lambda: report(Request([run], pictures=False), lambda text: None)
    yield lambda: runs(run.parent)
    yield lambda: show_end(RunDir.open(run), Console(stderr=True))
    yield lambda: identity_of(RunDir.open(run))
    yield lambda: RunDir.open(run).freeze_identity({"class_names": ["a"]})
    yield lambda: checkpoint.find(RunDir.open(run))
    yield lambda: compare(run, run, "test")


def sane(run: Path, content: Callable[[], Any], name: str, number: int) -> None:
    """One of the uses of a damaged run ends well, or in a line; all, where cases are few."""
    every = list(uses(run))
    for use in [every[0], every[1 + number % (len(every) - 1)]] if number >= 0 else every:
        with suppress(Refusal):
            try:
                use()
            except Refusal:
                raise
            except BaseException as error:
                raise AssertionError(f"{name}: {content()!r:.300}") from error


FILES = (
    "run.json",
    "DONE",
    "attempts/0001.json",
    "checkpoints/step-00000004/meta.json",
    "split.json",
    "starting.json",
)


def test_no_value_in_a_run_ends_a_command_in_anything_but_a_line(run: Path, pytestconfig: pytest.Config) -> None:
    """Each value of each JSON of a real run, replaced by what it may not be; with --full by each such thing."""
    full, number = pytestconfig.option.full, 0
    texts = {name: [(run / name).read_bytes()] for name in FILES}
    texts["metrics.jsonl"] = (run / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    for name, lines in texts.items():
        whole_text = b"".join(lines)
        for k, line in enumerate(lines):
            value = json.loads(line)
            if not full and (value.get("event") in ("note", "checkpoint", "resumed") or 1 < k < len(lines) - 3):
                continue
            every = [at for at in places(value) if "trajectory" not in at or len(at) < 3]
            for at in every:
                number += 1
                step = number * 5 % len(DAMAGE)
                for by in DAMAGE if full else DAMAGE[step : step + 1]:
                    new = json.dumps(damaged(value, at, by)).encode() + b"\n"
                    (run / name).write_bytes(b"".join([*lines[:k], new, *lines[k + 1 :]]))
                    sane(run, lambda at=at, by=by: (at, by), name, number)  # type: ignore[misc]
        (run / name).write_bytes(whole_text)
    assert number > 150


def test_no_file_in_a_run_ends_a_command_in_anything_but_a_line(run: Path) -> None:
    arrays = ("predictions/test.npz", calibration.FILE)
    for name in (*FILES, "metrics.jsonl", "config.yaml", "checkpoints/step-00000004/MANIFEST.json", *arrays):
        before = (run / name).read_bytes()
        for number, content in enumerate(BYTES):
            (run / name).write_bytes(content)
            sane(run, lambda content=content: content[:20], name, number)  # type: ignore[misc]
        (run / name).unlink()
        sane(run, lambda: "missing", name, -1)
        (run / name).unlink(missing_ok=True)  # what the run began with is written again
        (run / name).mkdir(mode=0o700)
        sane(run, lambda: "a directory", name, -1)
        (run / name).rmdir()
        (run / name).write_bytes(before)
    shutil.rmtree(run / "attempts")
    sane(run, lambda: "no attempts", "attempts", -1)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("what", ["infinite", "no number", "one class", "all zero"])
def test_a_page_of_predictions_that_are_no_probabilities_is_made_in_silence(arena: Arena, what: str) -> None:
    began(arena)
    rows = np.full((3, 2), {"infinite": np.inf, "no number": np.nan}.get(what, 0.0), np.float32)
    names = np.array(["x"] if what == "one class" else ["x", "y"])
    labels = np.zeros(3, np.int32) if what == "one class" else np.array([0, 1, 0], np.int32)
    save_npz(
        predictions.file_of(arena.folder / "runs" / "run", "test"),
        ids=np.array(["a", "b", "c"]), labels=labels, probabilities=rows[:, : len(names)], class_names=names,
        step=1, types=np.array([], np.str_), groups=np.array([], np.str_),
    )  # fmt: skip
    assert report(Request([arena.folder / "runs" / "run"], pictures=False), lambda text: None).exists()
