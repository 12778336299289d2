"""No config file runs code, hangs, takes the machine's memory or ends in a traceback."""

from __future__ import annotations

from collections.abc import Sequence

from tests.hostile.arena import Arena, Case, Cases

CASES = Cases()


def test_config(case: Case, arena: Arena) -> None:
    arena.check(case)


@CASES.add("a tag that makes a Python object", code=64, says="!!python")
def _(arena: Arena) -> Sequence[str]:
    arena.file("a.yaml", "name: !!python/object/apply:os.system ['touch $RAN/yaml']\n")
    return "config", "show", "a.yaml"
