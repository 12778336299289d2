"""Whatever has become of a run directory, the same command goes on from what is whole, or says what is wrong."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tests.hostile.arena import WORKER_SECONDS, Arena, Case, Cases
from tl_dist.config import file as config_file
from tl_dist.runs import checkpoint, checkpoint_format
from tl_dist.runs.directory import RunDir, step_name
from tl_dist.runs.records import records
from tl_dist.scores import predictions

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
    return RunDir.create(arena.folder / "runs", cfg, resolved=config_file.dump(cfg))


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
        lines.write(
            b'\xff\xfe\n5\n{"step": "x"}\n' + b"[" * 100_000 + b'\n{"event": "evaluation", "split": []}\n'
        )
        lines.truncate(lines.tell() + (64 << 20))
    owner = {"who": "x", "host": "x", "pid": 1, "started": 1, "boot": "", "namespaces": [0, 0], "token": "x"}
    (run.lock_dir / "owner-99999999.json").write_text(json.dumps(owner | {"released": True}))
    (run.lock_dir / "owner-000000000100000005.json").write_text("{}")
    for number in ("\N{SUPERSCRIPT TWO}", "9" * 240):
        (run.attempts / f"{number}.json").write_text("{}")


@CASES.add(
    "what stopped a run at its start", code=0, says="test accuracy", worker=True, always=True, after=is_whole
)
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


@CASES.add("an owner that is a link", code=73, says="cannot be locked.*symbolic link")
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
        "groups": np.array([], np.str_),
    }
    path = predictions.file_of(arena.folder / name, "test")
    path.parent.parent.mkdir()
    predictions.save(path, **right | arrays)
    return path


@CASES.add(
    "predictions of another shape", code=65, says="holds no predictions .*probabilities have another shape"
)
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
