"""What each test module promises, in which group it runs, and what a failure breaks.

`python -m tests.promises` writes the table of tests/README.md again; a test compares the two.
"""

import ast
from pathlib import Path

TESTS = Path(__file__).parent
README = TESTS / "README.md"
BEGIN = "<!-- the table below is written by python -m tests.promises -->\n"

GROUPS = {
    "cluster": "a private Slurm, network namespaces, sshd, MPI",
    "end_to_end": "the command line as a user has it, with real workers",
    "parallel": "every strategy against one device",
    "scale": "a thousand workers, and what each of them costs the file server and the others",
    "gpu": "on a GPU; skipped, and counted, where there is none",
    "hostile": "one hostile or broken input each, through the command line",
    "references": "each method against an implementation that is not ours",
    "unit": "one room each",
}
"""folder: what it starts or compares; the order is that in which they are given to the processes of a test run"""


def group_of(path: Path) -> str:
    """The folder below tests/ that a test module lies in."""
    return path.relative_to(TESTS).parts[0]


def promise_of(path: Path) -> str:
    """The first line of a module's docstring."""
    docstring = ast.get_docstring(ast.parse(path.read_text())) or ""
    return docstring.partition("\n\n")[0].replace("\n", " ")


def table() -> str:
    """Markdown: for each group its modules, and what each promises."""
    lines = []
    for group, what in GROUPS.items():
        modules = sorted((TESTS / group).rglob("test_*.py"))
        if modules:
            lines += [f"\n## {group}: {what}\n", "| promise | test |", "|--|--|"]
            lines += [f"| {promise_of(path)} | `{path.relative_to(TESTS)}` |" for path in modules]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    README.write_text(README.read_text().partition(BEGIN)[0] + BEGIN + table())
