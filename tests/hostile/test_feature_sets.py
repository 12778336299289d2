"""A feature set that somebody else wrote makes no command read, remove or write anything but feature sets."""

import json
import os
from collections.abc import Sequence
from pathlib import Path

from tests.hostile.arena import WORKER_SECONDS, Arena, Case, Cases

CASES = Cases()

CONFIG = """\
strategy: single
precision: float32
data: {name: synthetic, num_examples: 48, num_classes: 3, image_size: 16}
model: {backbone: tiny, weights: random}
classifier: {name: logistic}
report: {tensorboard: false}
runtime: {threads: 1}
"""
KEY = "0123456789abcdef" * 2
MANIFEST = {
    "dtype": "float32",
    "computed": "float32",
    "shape": [4],
    "shards": [{"file": "shard-0000.npy", "rows": 3, "sha256": "0" * 64}],
    "facts": {"backbone": "tiny", "cut": "average pooling", "image_size": 16, "views": ["flip"]},
}


def test_feature_sets(case: Case, arena: Arena) -> None:
    arena.check(case)


def listed(arena: Arena, content: object = MANIFEST, key: str = KEY) -> Sequence[str]:
    text = content if isinstance(content, str) else json.dumps(content)
    arena.file(f"runs/features/{key}/manifest.json", text)
    arena.file(f"runs/features/{'f' * 32}/manifest.json", json.dumps(MANIFEST))
    return "features", "list"


SHOWN = "(?s)(0123.*unreadable.*ffff.*tiny|ffff.*tiny.*0123.*unreadable)"
"""the honest set beside it, too"""


@CASES.add("the facts are a list", code=0, says=SHOWN)
def _(arena: Arena) -> Sequence[str]:
    return listed(arena, MANIFEST | {"facts": []})


@CASES.add("the shape is a number", code=0, says=SHOWN, always=False)
def _(arena: Arena) -> Sequence[str]:
    return listed(arena, MANIFEST | {"shape": 3})


@CASES.add("the views are numbers", code=0, says=SHOWN, always=False)
def _(arena: Arena) -> Sequence[str]:
    return listed(arena, MANIFEST | {"facts": {"views": [1, 2]}})


@CASES.add("a manifest of nothing but brackets", code=0, says=SHOWN, always=False)
def _(arena: Arena) -> Sequence[str]:
    return listed(arena, "[" * 1_000_000)


@CASES.add("a manifest of 4 GB", code=0, says=SHOWN)
def _(arena: Arena) -> Sequence[str]:
    arguments = listed(arena)
    os.truncate(arena.folder / "runs/features" / KEY / "manifest.json", 4 << 30)
    return arguments


@CASES.add("a manifest that is a pipe", code=0, says=SHOWN)
def _(arena: Arena) -> Sequence[str]:
    arguments = listed(arena)
    manifest = arena.folder / "runs/features" / KEY / "manifest.json"
    manifest.unlink()
    os.mkfifo(manifest)
    return arguments


def pruned(arena: Arena) -> Sequence[str]:
    """Everything that is a set of long ago goes."""
    for name in (KEY, "f" * 32):
        path = arena.folder / "runs/features" / name
        for file in (*path.glob("*"), path) if path.is_dir() and not path.is_symlink() else ():
            os.utime(file, (1, 1))
    (arena.folder / "runs/features").chmod(0o700)
    return "features", "prune", "--unused-days", "0"


@CASES.add("a link among the sets", code=0, says="1 removed")
def _(arena: Arena) -> Sequence[str]:
    listed(arena)
    (arena.folder / "runs/features" / "a" / "b").parent.mkdir()
    for name in ("e" * 32, ".tmp-e"):
        (arena.folder / "runs/features" / name).symlink_to("../../../outside/directory")
    (arena.folder / "runs/features" / KEY / "manifest.json").unlink()
    os.rmdir(arena.folder / "runs/features" / KEY)
    return pruned(arena)


@CASES.add("features is a link to other directories", code=0, says="0 removed")
def _(arena: Arena) -> Sequence[str]:
    arena.file("runs/a")
    (arena.folder / "runs/features").symlink_to("../../outside")
    arena.outside.chmod(0o700)
    return "features", "prune", "--keep-mb", "0"


@CASES.add("features that every user can write", code=78, says="can be written by other users")
def _(arena: Arena) -> Sequence[str]:
    listed(arena)
    (arena.folder / "runs/features").chmod(0o777)
    return "features", "prune", "--keep-mb", "0"


@CASES.add("a list of feature sets that is binary", code=78, says="features.txt cannot be read")
def _(arena: Arena) -> Sequence[str]:
    listed(arena)
    arena.file("runs/x/features.txt", b"\xff\xfe\x00")
    return pruned(arena)


@CASES.add("a list of feature sets that is a link", code=78, says="features.txt cannot be read", always=False)
def _(arena: Arena) -> Sequence[str]:
    listed(arena)
    arena.file("runs/x/a")
    (arena.folder / "runs/x/features.txt").symlink_to("../../../outside/thesis.tex")
    return pruned(arena)


@CASES.add("a set of the year 2100 is old", code=0, says="2 removed", always=False)
def _(arena: Arena) -> Sequence[str]:
    listed(arena)
    arguments = pruned(arena)
    os.utime(arena.folder / "runs/features" / KEY / "manifest.json", (4_102_444_800, 4_102_444_800))
    return arguments


def trained(arena: Arena) -> list[Path]:
    """The sets that a run has left."""
    arena.file("a.yaml", CONFIG)
    done = arena.run(["train", "a.yaml", "name=a"], seconds=WORKER_SECONDS, environment={})
    assert done.returncode == 0, done.stderr
    return [path.parent for path in arena.folder.glob("runs/features/*/manifest.json")]


def misnamed(arena: Arena, name: str) -> Sequence[str]:
    """A second run on sets whose only shard is said to be in this file."""
    for directory in trained(arena):
        content = json.loads((directory / "manifest.json").read_text())
        content["shards"][0]["file"] = name
        (directory / "manifest.json").write_text(json.dumps(content))
    return "train", "a.yaml", "name=b"


@CASES.add("a shard above the set", code=0, says="accuracy", worker=True)
def _(arena: Arena) -> Sequence[str]:
    return misnamed(arena, "../../../../outside/thesis.tex")


@CASES.add("a shard by its whole path", code=0, says="accuracy", worker=True)
def _(arena: Arena) -> Sequence[str]:
    return misnamed(arena, str(arena.outside / "thesis.tex"))
