"""The one way to a terminal: rich's console and text, with nothing of what they are given interpreted.

Nobody else names rich's `Console` and `Text`. Strings that a table or `print` is given are covered as well.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import rich.console
from rich.text import Text

from tl_dist.refusal import printable, shortened

_LONGEST = 100_000  # characters of a line or a cell: the longest of ours is a plan of thousands of hosts


class Console(rich.console.Console):
    """A console for which `[red]` and `:smile:` are text, and which obeys no control character."""

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, highlight=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        """Each string that is printed or in a table comes here, on its way to become text."""
        return super().render_str(shortened(printable(text, lines=True), _LONGEST), **options)

    def say(self, text: str, *, style: str = "") -> None:
        """One line of plain text, whole, whatever the width: people copy it."""
        self.print(plain(text, style), soft_wrap=True)

    @contextmanager
    def busy(self, text: str) -> Iterator[Callable[[str], None]]:
        """A sign of life while the body works, on a terminal alone; what it gets shows another text in its place."""
        if not self.is_terminal:
            yield lambda text: None
            return
        with self.status(plain(text)) as status:
            yield lambda text: status.update(plain(text))


def plain(text: str, style: str = "", **options: Any) -> Text:
    """One line of text, or one cell: shown as it is, with escapes for what is not printable."""
    return Text(shortened(printable(text), _LONGEST), style, **options)
