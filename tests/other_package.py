"""The package that docs/pages/extending.md shows, written, built and installed as its author would."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "pages" / "extending.md"
_SHOWN = re.compile(r"```\w+\n# ((?:tl_shapes/\w+|pyproject|shapes)\.\w+)\n(.*?)```", re.DOTALL)


def written(folder: Path) -> Path:
    """Its files, and a config that uses all of it."""
    for name, text in _SHOWN.findall(PAGE.read_text()):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def installed(package: Path, target: Path) -> Path:
    """Builds the package and installs it into a directory, which is for the path; asks no network."""
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--target", str(target)]
    argv = [sys.executable, "-P", "-m", "pip", "install", *options, str(package)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return target
