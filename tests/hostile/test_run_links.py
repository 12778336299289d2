"""No command writes through a link, or over a file that is not its own."""

import os
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from tests.hostile.arena import Arena, Case, Cases
from tl_dist.config import file as config_file
from tl_dist.runs.directory import RunDir

CASES = Cases()

CONFIG = """\
name: x
strategy: single
steps: 1
data: {name: synthetic}
model: {backbone: tiny, weights: random}
optimizer: {learning_rate: 0.1}
"""
LINK = "is a symbolic link"


def test_nothing_else_is_written(case: Case, arena: Arena) -> None:
    arena.check(case)


def run_of(arena: Arena) -> RunDir:
    """A run that was made and not trained yet."""
    cfg = config_file.load(arena.file("a.yaml", CONFIG))
    return RunDir.create(arena.folder / "runs", cfg)


def link(path: Path, target: str) -> None:
    path.symlink_to(Path("../" * (len(path.parts) - path.parts.index("folder") - 1)) / "outside" / target)
    assert path.exists()


@CASES.add("a log of a worker is a link", code=78, says=f"rank_0000.out {LINK}")
def _(arena: Arena) -> Sequence[str]:
    link(run_of(arena).rank_log(0), "thesis.tex")
    return "train", "a.yaml"


@CASES.add("the log of an evaluation is a link", code=78, says=LINK, always=False)
def _(arena: Arena) -> Sequence[str]:
    link(run_of(arena).logs / "evaluation_rank_0000.out", "thesis.tex")
    return "eval", "runs/x"


@CASES.add("evaluations is a link", code=78, says=f"evaluations {LINK}")
def _(arena: Arena) -> Sequence[str]:
    link(run_of(arena).path / "evaluations", "directory")
    return "eval", "runs/x"


@CASES.add("predictions is a link", code=78, says=f"predictions {LINK}")
def _(arena: Arena) -> Sequence[str]:
    link(run_of(arena).path / "predictions", "directory")
    return "train", "a.yaml"


@CASES.add("the list of feature sets is a link", code=78, says=f"features.txt {LINK}")
def _(arena: Arena) -> Sequence[str]:
    link(run_of(arena).features_file, "thesis.tex")
    return "train", "a.yaml"


@CASES.add(
    "the batch script is a link",
    code=78,
    says=f"train.sbatch {LINK}",
    environment={"PATH": f"bin:{os.environ['PATH']}"},
)
def _(arena: Arena) -> Sequence[str]:
    arena.file("bin/sbatch", "#!/bin/sh\necho 7\n").chmod(0o755)
    link(run_of(arena).path / "train.sbatch", "thesis.tex")
    return "submit", "a.yaml"


def _identity(arena: Arena) -> None:
    assert (arena.folder / "runs/x/run.json").read_text() == "{}"


@CASES.add("a split with the name of another file", code=64, says="'../run' is not one of", after=_identity)
def _(arena: Arena) -> Sequence[str]:
    run = run_of(arena)
    (run.path / "evaluations").mkdir()
    run.identity_file.write_text("{}")
    return "eval", "runs/x", "--split", "../run"


@CASES.add("a directory of runs that every user can change", code=78, says="by every user.*chmod o-w")
def _(arena: Arena) -> Sequence[str]:
    run_of(arena).path.parent.chmod(0o777)
    return "train", "a.yaml"


def _kept(arena: Arena) -> None:
    assert {path.read_bytes() for path in arena.folder.glob("s*.*")} == {b"mine"}


@CASES.add("a file with the name of the picture", code=73, says="samples.png exists", after=_kept)
def _(arena: Arena) -> Sequence[str]:
    arena.file("samples.png", "mine")
    return "data", "inspect", images(arena)


@CASES.add("a link with the name of the picture", code=73, says="samples.png exists", always=False)
def _(arena: Arena) -> Sequence[str]:
    link(arena.folder / "samples.png", "thesis.tex")
    return "data", "inspect", images(arena)


@CASES.add("a file with the name of the division", code=73, says="split.json is there.*--force", after=_kept)
def _(arena: Arena) -> Sequence[str]:
    arena.file("split.json", "mine")
    return "data", "split", images(arena), "--test=0.5"


@CASES.add("a link with the name of the division", code=0, says="parts|test")
def _(arena: Arena) -> Sequence[str]:
    link(arena.folder / "split.json", "directory/data.json")
    return "data", "split", images(arena), "--test=0.5", "--force"


@CASES.add("a picture that cannot be written", code=73, says="cannot be written.*--sheet")
def _(arena: Arena) -> Sequence[str]:
    return "data", "inspect", images(arena), "--sheet", "nowhere/x.png"


@CASES.add("a division that cannot be written", code=73, says="cannot be written.*--to")
def _(arena: Arena) -> Sequence[str]:
    return "data", "split", images(arena), "--test=0.5", "--to", "nowhere/x.json"


def images(arena: Arena) -> str:
    """A data set of a few images."""
    for k in range(8):
        path = arena.file(f"set/{'ab'[k % 2]}/{k}.png")
        Image.new("RGB", (8, 8), (30 * k, 0, 0)).save(path)
    return "set"
