"""Nobody assigns to another object's attributes: an object changes itself, by a method that says what happens."""

import ast
from collections.abc import Iterator
from pathlib import Path

SETTERS = ("setattr", "delattr", "object.__setattr__")
PACKAGE = Path(__file__).parents[2] / "tl_dist"
ALLOWED = {
    "options.": "tf.data.Options, which is made to be filled in",
    "event.wall_time": "a protocol buffer",
    "reader.fieldnames": "csv.DictReader, whose documentation says so",
    "_ACTIVE.": "threading.local",
    "layer.__class__": "a Keras layer is taken over with its variables",
    "view.": "a copy that a method of the same class has just made",
}


def assigned(tree: ast.AST) -> Iterator[str]:
    """What is assigned to as `a.b`, where `a` is not `self` or `cls`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store | ast.Del):
            if not (isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")):
                yield ast.unparse(node)
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in SETTERS and ast.unparse(node.args[0]) != "self":
            yield ast.unparse(node)


def test_no_attribute_of_another_object_is_assigned() -> None:
    found = {
        f"{path.relative_to(PACKAGE)}: {target}"
        for path in PACKAGE.rglob("*.py")
        for target in assigned(ast.parse(path.read_text()))
        if not target.startswith(tuple(ALLOWED))
    }
    assert not found


def test_every_way_to_assign_is_seen() -> None:
    code = "a.b = 1; a.c += 1; (a.d, self.e) = x; del a.f; a.h: int = 1\n" + "for a.i in x: pass\n"
    code += "setattr(a, 'g', 1); object.__setattr__(self, 'x', 1)"
    assert len([*assigned(ast.parse(code))]) == 7
