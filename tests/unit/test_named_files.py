"""Every file and module that a text, a docstring, a comment or a string of this repository names is there."""

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
FOLDERS = ("tl_dist", "tests", "configs", "launch", "slurm", "benchmarks")
TEXTS = sorted(
    path
    for path in [
        *ROOT.glob("*.md"),
        ROOT / "pyproject.toml",
        *(p for f in FOLDERS for p in (ROOT / f).rglob("*")),
    ]
    if path.is_file() and path.suffix in (".py", ".md", ".toml", ".yaml", ".sh", ".sbatch", "")
)
ABOUT_HERE = ("CONTRIBUTING.md", "README.md")
"""texts that speak of this repository's files alone, not of those of a user"""
MADE_UP = {"configs/digit.yaml", "configs/digits.yaml"}
"""by tests, to see what is said of a file that is not there"""

_PATH = re.compile(rf"(?<![\w./-])(?:{'|'.join(FOLDERS)})/[\w./*-]*\.(?:py|md|yaml|sbatch|sh|json)\b")
_MODULE = re.compile(r"(?<![\w./-])(?:tl_dist|tests|benchmarks)(?:\.[a-z_0-9]+){2,}")
_SHORT = re.compile(r"`([\w./-]+(?:\.(?:py|md|yaml)|/))`")


@cache
def everything() -> list[str]:
    """Every path below the root, a folder with / at its end."""
    folders = {folder for path in TEXTS for folder in path.relative_to(ROOT).parents}
    return [f"/{path.relative_to(ROOT)}" for path in TEXTS] + [f"/{folder}/" for folder in folders]


def is_module(dotted: str) -> bool:
    """Whether `a.b.c` is a module, or something in the module `a.b`."""
    path = ROOT / dotted.replace(".", "/")
    return any(p.is_dir() or p.with_suffix(".py").is_file() for p in (path, path.parent))


def missing(path: Path, text: str) -> Iterator[str]:
    """What a text names and is not there; in ABOUT_HERE also by the end of a path, in backticks."""
    yield from (name for name in _PATH.findall(text) if name not in MADE_UP and not [*ROOT.glob(name)])
    yield from (name for name in _MODULE.findall(text) if not is_module(name))
    if path.name in ABOUT_HERE:
        yield from (name for name in _SHORT.findall(text) if not any(p.endswith(f"/{name}") for p in everything()))


def test_what_is_named_is_there() -> None:
    assert not {f"{path.relative_to(ROOT)}: {name}" for path in TEXTS for name in missing(path, path.read_text())}


def test_a_name_of_nothing_is_found() -> None:
    named = "tests/unit/" + "nothing.py, tl_dist.runs." + "nothing.here, `nothing/" + "file.py`, `configs/smoke.yaml`"
    assert len([*missing(Path("CONTRIBUTING.md"), named)]) == 3
