"""`./benchmarks/run` runs each benchmark in a process of its own: one that fails takes none of the others with it."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"
HOLDS = """
from benchmarks.comparison import Comparison
def comparisons():
    yield Comparison(__name__, "s", 1.0, "other", 1.0, bar=RATIO)
"""
SOURCES = {
    "export": "def comparisons():\n    yield 1 / 0\n",
    "lora": "import os\ndef comparisons():\n    os.abort()\n",
    "rank": HOLDS.replace("RATIO", "1.0"),
    "report": HOLDS.replace("RATIO", "2.0"),
    "tasks": "import benchmarks.comparison as c\ndef comparisons():\n    raise c.NotHereError('a GPU')\n    yield\n",
}


@pytest.mark.parametrize(
    ("names", "code", "recorded"),
    [
        (["export", "rank", "lora", "report"], 70, ["rank", "report"]),
        (["rank", "report", "tasks"], 1, ["rank", "report"]),
        (["tasks", "rank"], 69, ["rank"]),
        (["lora", "rank"], 70, ["rank"]),
        (["rank"], 0, ["rank"]),
    ],
)
def test_one_that_fails_stops_no_other(tmp_path: Path, names: list[str], code: int, recorded: list[str]) -> None:
    folder = tmp_path / "benchmarks"
    folder.mkdir()
    for name in ("__init__.py", "comparison.py", "results.py", "run"):
        shutil.copy(BENCHMARKS / name, folder)
    for name, source in SOURCES.items():
        (folder / f"{name}.py").write_text(source)
    done = subprocess.run([sys.executable, str(folder / "run"), *names], capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    results = (folder / "RESULTS.md").read_text()
    assert [name for name in SOURCES if f"| benchmarks.{name} |" in results] == recorded
    assert ("ZeroDivisionError" in done.stderr) is ("export" in names)
    if "lora" in names:
        assert "failed (-6): lora" in done.stdout.splitlines()[-1]
