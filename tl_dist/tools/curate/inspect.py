"""`tl-dist data inspect`: show what a data set holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import RenderableType
from rich.table import Table

from tl_dist.terminal.console import Console, plain
from tl_dist.terminal.tables import show_remarks

_BAR = 30
_MAX_CLASSES = 40


def show(facts: dict[str, Any], console: Console) -> None:
    """Print tables with bars, and sample images where the terminal has enough colours."""
    place = facts["path"] or "the cache of packages"
    console.say(f"{facts['kind']} in {place}, {len(facts['classes'])} classes")
    for name, split in facts["splits"].items():
        console.print()
        console.say(f"{name}: {_line(split)}")
        _show_counts(split["counts"], console)
        show_remarks(split["remarks"], console)
    if "sheet" in facts:
        if console.is_terminal and console.color_system in ("truecolor", "256"):
            console.print(blocks(Path(facts["sheet"]), console.width))
        console.print()
        console.say(f"samples of train: {facts['sheet']}")


def _line(split: dict[str, Any]) -> str:
    parts = [f"{split['num_examples']:,} examples"]
    if split["imbalance"]:
        parts.append(f"largest class {split['imbalance']:.2f} x the smallest")
    if split["sizes"]:
        sizes = ", ".join(f"{key} {width} x {height}" for key, (width, height) in split["sizes"].items())
        parts += [
            sizes,
            _counted(split["formats"]),
            _counted(split["modes"]),
            f"{split['bytes'] / 1e6:,.1f} MB",
        ]
    if split["unreadable"]:
        parts.append(f"{split['unreadable']} unreadable: run tl-dist data verify")
    return "; ".join(parts)


def _counted(counts: dict[str, int]) -> str:
    return ", ".join(
        f"{number:,} {name}" for name, number in sorted(counts.items(), key=lambda item: -item[1])
    )


def _show_counts(counts: dict[str, int], console: Console) -> None:
    table = Table(box=None, show_header=False, padding=(0, 1))
    table.add_column(overflow="fold")
    table.add_column(no_wrap=True)
    largest = max([1, *counts.values()])
    for name, number in list(counts.items())[:_MAX_CLASSES]:
        table.add_row(
            plain(name), plain(f"{number:,}", justify="right"), "█" * round(_BAR * number / largest)
        )
    console.print(table)
    if len(counts) > _MAX_CLASSES:
        console.print(f"  and {len(counts) - _MAX_CLASSES} more classes")


def blocks(picture: Path, width: int) -> RenderableType:
    """Return an image as half blocks, two pixels to a character."""
    from PIL import Image

    with Image.open(picture) as image:
        columns = min(width, 96)
        rows = max(2, round(image.height * columns / image.width) // 2 * 2)
        small = image.convert("RGB").resize((columns, rows))
    text = plain("")
    for y in range(0, rows, 2):
        for x in range(columns):
            upper, lower = (small.getpixel((x, y + k)) for k in (0, 1))
            text.append("▀", style=f"rgb{upper} on rgb{lower}".replace(" ", "").replace("onrgb", " on rgb"))
        text.append("\n")
    return text
