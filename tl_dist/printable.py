"""Text that others may have written, as it may be shown: in one line, short, and nothing that a terminal obeys.

A file's name, a class or a key of a config can hold an escape sequence that renames the window, or a bidirectional
control that shows `gnp.exe` as `exe.png`. Whatever is printed has gone through here: errors as they are made
(`tl_dist.refusal`), all else in `tl_dist.terminal`.
"""

from __future__ import annotations

import re

# Control characters (C0 but the tab, and C1), line and paragraph separators, bidirectional controls, and the halves
# of surrogate pairs, which stand for the bytes of names that are not UTF-8. Joiners, which emoji and Persian need,
# are no danger.
_BEYOND_C0 = "\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff"
_OBEYED = re.compile(f"[\x00-\x08\n-\x1f{_BEYOND_C0}]")
_OBEYED_IN_LINES = re.compile(f"[\x00-\x08\x0b-\x1f{_BEYOND_C0}]")


def printable(text: str, *, lines: bool = False) -> str:
    """The text with its escape, such as `\\x1b`, for each character that is not shown but obeyed.

    `lines`: the ends of lines are meant, and stay.
    """
    pattern = _OBEYED_IN_LINES if lines else _OBEYED
    return pattern.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def is_printable(text: str) -> bool:
    """Whether `printable` would leave these lines as they are."""
    return _OBEYED_IN_LINES.search(text) is None


def shortened(text: str, limit: int) -> str:
    """The text, of a long one its two ends: at most `limit` characters."""
    if len(text) <= limit:
        return text
    tail = limit // 3
    return f"{text[: limit - tail - 5]} ... {text[-tail:]}"
