"""RESULTS.md: the newest result of each comparison, with its date, commit and machine."""

import subprocess
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path

FILE = Path(__file__).with_name("RESULTS.md")
HEAD = """\
# Results

`./benchmarks/run [NAME ...]` writes this file: the newest result of each comparison. Each line measures both sides in
one run on the same cores. A ratio is tl_dist's figure over the other's.
"""
COLUMNS = ("comparison", "tl_dist", "other side", "ratio", "bar", "verdict", "date", "commit")


def record(lines: Iterable[tuple[str, ...]], machine: str, file: Path = FILE) -> None:
    """Write results (`name, ours, rival, ratio, bar, verdict`); each replaces the older one of its name."""
    stamp = (datetime.now(UTC).date().isoformat(), commit())
    tables = read(file)
    for name, *cells in lines:
        for table in tables.values():
            table.pop(name, None)
        tables.setdefault(machine, {})[name] = (*cells, *stamp)
    parts = [HEAD]
    for heading, table in sorted(tables.items()):
        if table:
            rows = [COLUMNS, ("--",) * len(COLUMNS), *((name, *table[name]) for name in sorted(table))]
            parts.append(f"\n## {heading}\n\n" + "".join(f"|{'|'.join(f' {c} ' for c in row)}|\n" for row in rows))
    file.write_text("".join(parts))


def read(file: Path = FILE) -> dict[str, dict[str, tuple[str, ...]]]:
    """The tables of the file: by machine, then by comparison, its other cells."""
    tables: dict[str, dict[str, tuple[str, ...]]] = {}
    heading = ""
    for line in file.read_text().splitlines() if file.exists() else ():
        if line.startswith("## "):
            heading = line.removeprefix("## ")
        elif line.startswith("| ") and not line.startswith((f"| {COLUMNS[0]} |", "| -- |")):
            name, *cells = (cell.strip() for cell in line.strip("|").split("|"))
            tables.setdefault(heading, {})[name] = tuple(cells)
    return tables


def commit() -> str:
    """The short name of the checkout's commit, with `+` if files differ from it."""
    git = ("git", "-C", str(FILE.parent))
    try:
        name = subprocess.run((*git, "rev-parse", "--short", "HEAD"), capture_output=True, text=True, check=True)
        state = subprocess.run(
            (*git, "status", "--porcelain", "--untracked-files=no", "--", ":!RESULTS.md"),
            capture_output=True, text=True, check=True,
        )  # fmt: skip
    except (OSError, subprocess.CalledProcessError):  # an unpacked archive
        return "?"
    return name.stdout.strip() + "+" * bool(state.stdout.strip())
