"""Print to a terminal through rich, whose `Console` and `Text` are named here alone, without interpreting any text."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import rich.console
from rich.text import Text

from tl_dist.refusal import printable, shortened

_LONGEST = 100_000  # characters of a line or a cell; a plan for thousands of hosts still fits


class Console(rich.console.Console):
    """Print `[red]` and `:smile:` as text, and control characters as escapes."""

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, highlight=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        """Turn a string, printed or in a table, into text: rich calls this for each of them."""
        return super().render_str(shortened(printable(text, lines=True), _LONGEST), **options)

    def say(self, text: str, *, style: str = "") -> None:
        """Print one line of plain text without breaking it at the width, so that it can be copied."""
        self.print(plain(text, style), soft_wrap=True)

    @contextmanager
    def busy(self, text: str) -> Iterator[Callable[[str], None]]:
        """Show a sign of life while the body works, on a terminal only; yields a function that changes the text."""
        if not self.is_terminal:
            yield lambda text: None
            return
        with self.status(plain(text)) as status:
            yield lambda text: status.update(plain(text))

    @contextmanager
    def bar(self, text: str) -> Iterator[Callable[[int, int], None]]:
        """Show a progress bar on a terminal while the body works; yields a function of the images done and in total."""
        from rich import progress

        columns = (progress.TextColumn(text), progress.BarColumn(), progress.MofNCompleteColumn())
        end = (progress.TextColumn("images"), progress.TimeRemainingColumn())
        with progress.Progress(*columns, *end, console=self, disable=not self.is_terminal) as shown:
            task = shown.add_task("", total=None)
            yield lambda done, total: shown.update(task, completed=done, total=total)


def plain(text: str, style: str = "", **options: Any) -> Text:
    """Return one line or cell of text, shown literally, with escapes for unprintable characters."""
    return Text(shortened(printable(text), _LONGEST), style, **options)
