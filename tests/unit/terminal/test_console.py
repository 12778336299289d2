"""What is shown is shown as it is: nothing in a name is obeyed by a terminal or by rich, and honest names stay."""

import ast
import io
import sys
import unicodedata
from collections.abc import Callable

import pytest
from rich.table import Table

from tests.promises import TESTS
from tl_dist.refusal import ExitCode, Refusal, is_printable, printable, shortened
from tl_dist.terminal.console import Console, plain
from tl_dist.terminal.progress import Progress

TITLE = "\x1b]0;PWNED\x07"
HOSTILE = [
    TITLE,
    "\x9b31m",
    "a\rb",
    "\u202egnp.exe",
    "\u2066x\u2069",
    "caf\udce9",
    "a\u2028b",
    "\x00",
    "\x7f",
]
HONEST = [
    "Kätzchen", "写真\u3000猫", "naïve\u00a0café", "👩\u200d🔬", "\U0001f3f4\U000e0067\U000e007f",
    "\u0646\u0627\u200c\u06cc",
    "[red]", ":smile:", r"$\frac$",
]  # fmt: skip


def shown(print_on: Callable[[Console], None], **options: object) -> str:
    file = io.StringIO()
    console = Console(file=file, width=60, **options)
    print_on(console)
    return file.getvalue()


@pytest.mark.parametrize("name", HONEST, ids=ascii)
def test_honest_names_stay_as_they_are(name: str) -> None:
    assert printable(name) == name and is_printable(name)
    assert str(Refusal(f"{name} is wrong.", fix="rename it.", code=ExitCode.DATA)).startswith(name)
    assert name.split()[0] in shown(lambda console: console.say(name))


def test_every_control_character_and_no_other_is_shown_by_its_escape() -> None:
    bidi = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}
    for number in range(sys.maxunicode + 1):
        char = chr(number)
        mark = char in "\u061c\u200e\u200f"
        obeyed = unicodedata.category(char) in ("Cc", "Cs", "Zl", "Zp") or unicodedata.bidirectional(char) in bidi
        escaped = (obeyed or mark) and char != "\t"
        assert (printable(char) != char) == escaped, f"U+{number:04X}"
        assert (printable(char, lines=True) != char) == (escaped and char != "\n")


@pytest.mark.parametrize("name", HOSTILE, ids=ascii)
def test_lines_cells_headings_status_and_progress_obey_nothing(name: str) -> None:
    def everywhere(console: Console) -> None:
        console.say(name)
        console.print(name)
        table = Table(name, title=name)
        table.add_column(plain(name))
        table.add_row(name, plain(name))
        console.print(table)
        with Progress(console) as progress:
            progress.say(name)
            progress.show({"event": "note", "text": name})
            progress.show({"event": "evaluation", "split": name, "num_correct": 1, "num_examples": 2})

    text = shown(everywhere)
    text.encode()  # no half of a surrogate pair
    assert is_printable(text)
    assert text.count(printable(name)) == 10


def test_markup_and_emoji_codes_are_text() -> None:
    name = "[red]a[/blue] :smile:"

    def everywhere(console: Console) -> None:
        console.say(name)
        console.print(name)
        table = Table(name)
        table.add_row(name)
        console.print(table)
        with console.busy(name) as show_text:
            show_text(name)

    assert shown(everywhere).count(name) == 4
    assert name in shown(everywhere, force_terminal=True, _environ={"TERM": "xterm"})


def test_a_line_of_a_name_with_newlines_is_one_line() -> None:
    assert shown(lambda console: console.say("a\nerror: b")) == "a\\nerror: b\n"


def test_a_refusal_is_short_and_printable_whatever_it_names() -> None:
    refusal = Refusal(f"{TITLE} {'x' * 7_000_000} end.", fix=f"mend {TITLE}{'y' * 9_000}.", code=ExitCode.DATA)
    assert len(str(refusal)) < 2000 and is_printable(str(refusal))
    assert refusal.what.startswith(r"\x1b]0;PWNED\x07") and refusal.what.endswith("x end.")
    kind, values = refusal.__reduce__()
    assert str(kind(*values)) == str(refusal)


@pytest.mark.parametrize("length", [0, 1, 99, 100, 101, 10_000])
def test_shortened_keeps_both_ends_and_its_limit(length: int) -> None:
    text = "".join(chr(ord("a") + k % 26) for k in range(length))
    short = shortened(text, 100)
    assert len(short) == min(length, 100)
    assert short == text or (text.startswith(short[:50]) and text.endswith(short[-30:]) and " ... " in short)


def test_nobody_else_names_a_console_or_makes_text() -> None:
    """`from rich.console import Console` for its type alone is one too: the subclass is the type."""
    for path in (TESTS.parent / "tl_dist").rglob("*.py"):
        if path.name == "console.py":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module in ("rich.console", "rich.text"):
                assert {alias.name for alias in node.names} <= {"RenderableType"}, path
