"""No module of the package is past 320 lines, and no function past 60: what is larger tells more than one thing."""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
MAX_MODULE, MAX_FUNCTION = 320, 60


def functions(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Every function's name and lines, with those of its signature, docstring and inner functions."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name, (node.end_lineno or 0) - node.lineno + 1


def test_no_module_and_no_function_is_too_long() -> None:
    offenders = {}
    for path in [*(ROOT / "tl_dist").rglob("*.py"), *(ROOT / "launch").rglob("*.py")]:
        text, name = path.read_text(), str(path.relative_to(ROOT))
        sizes = {f"{name}: {function}": lines for function, lines in functions(ast.parse(text))}
        offenders |= {what: lines for what, lines in sizes.items() if lines > MAX_FUNCTION}
        if (lines := len(text.splitlines())) > MAX_MODULE:
            offenders[name] = lines
    assert not offenders


def test_the_lines_of_a_function_are_all_counted() -> None:
    inner = "    def inner():\n" + "        pass\n" * MAX_FUNCTION
    assert dict(functions(ast.parse(f"def outer(\n    a,\n):\n{inner}"))) == {"outer": 64, "inner": 61}
