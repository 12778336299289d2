"""tests/README.md lists every promise; no test module lends anything to another."""

import ast

import pytest

from tests import promises

MODULES = sorted(promises.TESTS.rglob("test_*.py"))


def test_the_list_of_promises_is_that_of_the_modules() -> None:
    """`python -m tests.promises` writes it again."""
    assert promises.README.read_text().partition(promises.BEGIN)[2] == promises.table()


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(promises.TESTS)))
def test_a_module_says_what_it_promises_and_is_in_a_known_group(path: object) -> None:
    assert promises.promise_of(path).endswith((".", ":"))  # type: ignore[arg-type]
    assert promises.group_of(path) in promises.GROUPS  # type: ignore[arg-type]


def test_no_test_module_is_imported_by_another() -> None:
    for path in promises.TESTS.rglob("*.py"):
        imports = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom)]
        names = [node.module or "" for node in imports]
        assert not [name for name in names if name.rpartition(".")[2].startswith("test_")], path
