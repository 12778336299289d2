"""One bad or private entry takes no listing down, of runs or of images; and links make no folder count twice."""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from PIL import Image

from tests.hostile.arena import Arena, Case, Cases
from tl_dist.cli.main import main

CASES = Cases()
CONFIG = """\
name: {name}
steps: 4
global_batch: 4
data: {{name: synthetic, image_size: 32}}
model: {{backbone: tiny, weights: random, train_from: all}}
optimizer: {{name: adam, learning_rate: 3e-3}}
"""
KEY = "0123456789abcdef" * 2
"""of a feature set"""
NOBODY = 65534


def test_listing(case: Case, arena: Arena) -> None:
    arena.check(case)


def make_run(root: Path, name: str, metrics: bytes = b'{"event": "train", "step": 3, "loss": 0.5}\n') -> Path:
    """A run that has stopped."""
    run = root / name
    for below in ("lock", "attempts", "checkpoints"):
        (run / below).mkdir(parents=True, mode=0o700)
    run.chmod(0o700)
    (run / "config.yaml").write_text(CONFIG.format(name=name))
    (run / "metrics.jsonl").write_bytes(metrics)
    return run


def pair(arena: Arena) -> Path:
    """Two runs; the one that is returned is to become the bad one."""
    make_run(arena.folder / "runs", "good-run")
    return make_run(arena.folder / "runs", "bad-run")


SHOWN = r"good-run[^\n]*stopped[^\n]* 3 [^\n]*loss 0.5"


@CASES.add(
    "a lock whose owner is a link",
    code=0,
    says=rf"(?s){SHOWN}.*bad-run[^\n]*unreadable.*bad-run: [^\n]*symbolic link",
)
def _(arena: Arena) -> Sequence[str]:
    run = pair(arena)
    (run / "lock" / "owner-00000001.json").symlink_to(arena.outside / "thesis.tex")
    return "runs", "runs"


@CASES.add("a lock whose owner was never born", code=0, says=rf"(?s)bad-run[^\n]*stopped.*{SHOWN}|{SHOWN}.*bad-run")
def _(arena: Arena) -> Sequence[str]:
    run = pair(arena)
    owner = {"who": "x", "host": os.uname().nodename, "pid": int("9" * 300), "started": 1, "boot": ""}
    owner |= {"namespaces": [0, 0], "token": "x", "heartbeat_s": float("nan")}
    for name in (
        "owner-00000001.json",
        "owner-000000000002.json",
        f"owner-{chr(0x663) * 8}.json",
    ):
        (run / "lock" / name).write_text(json.dumps(owner))
    return "runs", "runs"


@CASES.add(
    "records of other types",
    code=0,
    says=rf"(?s)bad-run[^\n]*stopped[^\n]* 2 .*{SHOWN}|{SHOWN}.*bad-run[^\n]* 2 ",
)
def _(arena: Arena) -> Sequence[str]:
    pair(arena)
    damaged = [
        *({"step": "x"}, {"step": [1]}, {"event": "train", "step": 1, "loss": "much"}),
        *({"event": "train", "step": 2, "loss": [1]}, {"event": "train", "loss": 10**400}),
        {"event": "evaluation", "split": ["test"], "accuracy": {"a": 1}},
    ]
    lines = b"".join(json.dumps(record).encode() + b"\n" for record in damaged)
    arena.file("runs/bad-run/metrics.jsonl", b"5\nnull\n\xff\xfe\n" + b"[" * 10**6 + b"\n" + lines)
    return "runs", "runs"


@CASES.add("records from a pipe", code=0, says=rf"(?s){SHOWN}.*bad-run[^\n]*unreadable")
def _(arena: Arena) -> Sequence[str]:
    run = pair(arena)
    (run / "metrics.jsonl").unlink()
    os.mkfifo(run / "metrics.jsonl")
    return "runs", "runs"


@CASES.add("records from /dev/zero", code=0, says=rf"(?s){SHOWN}.*bad-run[^\n]*unreadable")
def _(arena: Arena) -> Sequence[str]:
    run = pair(arena)
    (run / "metrics.jsonl").unlink()
    (run / "metrics.jsonl").symlink_to("/dev/zero")
    return "runs", "runs"


@CASES.add("records of a gigabyte without an end", code=0, says=SHOWN, always=False)
def _(arena: Arena) -> Sequence[str]:
    run = pair(arena)
    os.truncate(run / "metrics.jsonl", 1 << 30)
    return "runs", "runs"


@CASES.add("directories that are links", code=0, says=SHOWN)
def _(arena: Arena) -> Sequence[str]:
    run = pair(arena)
    for below in ("lock", "attempts", "checkpoints"):
        (run / below).rmdir()
        (run / below).symlink_to(arena.outside / "directory")
    (arena.folder / "runs" / "loop").symlink_to("loop")
    (arena.folder / "runs" / "gone").symlink_to("nowhere")
    return "runs", "runs"


@CASES.add("a root that is a link", code=0, says=SHOWN)
def _(arena: Arena) -> Sequence[str]:
    pair(arena)
    (arena.folder / "linked").symlink_to(arena.folder / "runs")
    return "runs", "linked"


def keeps_the_set(arena: Arena) -> None:
    assert (arena.folder / "runs" / "features" / KEY).is_dir()


@CASES.add("a root that is a link, whose runs need the set", code=0, says="0 removed", after=keeps_the_set)
def _(arena: Arena) -> Sequence[str]:
    """Through the link no run was seen, and what all of them need was removed."""
    (pair(arena) / "features.txt").write_text(f"{KEY}\n")
    manifest = arena.file(f"runs/features/{KEY}/manifest.json", "{}")
    for path in (manifest, manifest.parent):
        os.utime(path, (1e9, 1e9))
    (arena.folder / "linked").symlink_to(arena.folder / "runs")
    return "features", "prune", "linked", "--unreferenced"


def diamond(arena: Arena) -> None:
    """A set of two classes, in one of them a link to thirty-one folders, each with two links to the next."""
    for k in range(31):
        (arena.folder / f"diamond/n{k}").mkdir(parents=True)
        for name in ("l", "r") if k < 30 else ():
            (arena.folder / f"diamond/n{k}/{name}").symlink_to(f"../n{k + 1}")
    images(arena, "diamond/n30", 1)
    for name in ("cat", "dog"):
        images(arena, f"set/{name}", 12)
    (arena.folder / "set" / "cat" / "more").symlink_to("../../diamond/n0")


def images(arena: Arena, folder: str, number: int) -> None:
    for k in range(number):
        path = arena.file(f"{folder}/{k}.png")
        Image.new("RGB", (8, 8), (k % 256, len(folder), 0)).save(path)


@CASES.add("2**30 paths to one image", code=0, says="train: 25 examples")
def _(arena: Arena) -> Sequence[str]:
    diamond(arena)
    return "data", "inspect", "set"


@CASES.add("2**30 paths to one image, for init", code=0, says="wrote set.yaml and set.split.json")
def _(arena: Arena) -> Sequence[str]:
    diamond(arena)
    return "init", "set"


@CASES.add("2**30 paths to one image, verified", code=0, says="25 examples of image_folder: 0 bad")
def _(arena: Arena) -> Sequence[str]:
    diamond(arena)
    return "data", "verify", "set", "--workers", "1"


@CASES.add(
    "a class that is a link to another",
    code=65,
    says="cat and tabby in .*set are one folder, of two classes",
)
def _(arena: Arena) -> Sequence[str]:
    for name in ("cat", "dog"):
        images(arena, f"set/{name}", 3)
    (arena.folder / "set" / "tabby").symlink_to("cat")
    return "data", "inspect", "set"


@CASES.add("a class of two thousand links to one folder of five thousand names", code=0, says="train: 6 examples")
def _(arena: Arena) -> Sequence[str]:
    for name in ("cat", "dog"):
        images(arena, f"set/{name}", 3)
    for k in range(5000):
        arena.file(f"large/{k}.txt")
    for k in range(2000):
        (arena.folder / "set" / "cat" / f"l{k}").symlink_to("../../large")
    return "data", "inspect", "set"


@CASES.add("a prepared set behind four hundred links to where it is sought", code=65, says="no dataset_info.json")
def _(arena: Arena) -> Sequence[str]:
    arena.file("set/.config/metadata.json", "{}")
    for k in range(400):
        (arena.folder / "set" / f"l{k}").symlink_to(".")
    return "data", "inspect", "set"


@pytest.fixture
def shared() -> Iterator[Path]:
    """A root that everybody may look into."""
    root = Path(tempfile.mkdtemp(prefix="tl-dist-shared-", dir="/tmp"))
    root.chmod(0o755)
    yield root
    shutil.rmtree(root)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can look at its own runs as somebody else")
@pytest.mark.parametrize("host", [os.uname().nodename, "elsewhere"])
def test_runs_of_somebody_else_are_shown_as_far_as_they_can_be_read_and_not_touched(
    shared: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, host: str
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    make_run(shared, "private")
    readable = make_run(shared, "readable")
    owner = {"who": "worker", "host": host, "pid": 2**22, "started": 1, "boot": "", "namespaces": [0, 0]}
    (readable / "lock" / "owner-00000001.json").write_text(json.dumps(owner | {"token": "x"}))
    for path in (readable, *readable.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    readable.joinpath("lock").chmod(0o777)  # a probe could be made there
    assert main(["runs", str(shared)]) == 0  # imports what another user may not read
    capsys.readouterr()
    before = {path: path.stat().st_mtime_ns for path in shared.rglob("*")}
    os.seteuid(NOBODY)
    try:
        code = main(["runs", str(shared)])
    finally:
        os.seteuid(0)
    said = capsys.readouterr()
    assert code == 0, said
    assert [line.split()[:2] for line in said.out.splitlines() if "r" in line and "s ago" in line] == [
        ["readable", "running"]
    ]
    assert "private" in said.out and "unreadable" in said.out and "Permission denied" in said.out
    assert {path: path.stat().st_mtime_ns for path in shared.rglob("*")} == before


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can look at its own runs as somebody else")
def test_a_root_that_cannot_be_read_is_refused(shared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_run(shared, "private")
    shared.chmod(0o711)
    os.seteuid(NOBODY)
    try:
        code = main(["runs", str(shared)])
    finally:
        os.seteuid(0)
    said = capsys.readouterr().err
    assert code == 64 and "cannot be read (Permission denied" in said and "Fix: " in said
