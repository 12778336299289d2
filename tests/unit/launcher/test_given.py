"""An object from Python is the same where what it computes is the same, however it was made, and another where not."""

import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from tl_dist.launcher import given


def power(targets: Any, outputs: Any, exponent: float = 2.0, *, scale: float = 1.0) -> Any:
    return scale * abs(targets - outputs) ** exponent


class Power:
    def __init__(self, exponent: float) -> None:
        self.exponent = exponent

    def __call__(self, targets: Any, outputs: Any) -> Any:
        return abs(targets - outputs) ** self.exponent

    def loss(self, targets: Any, outputs: Any) -> Any:
        return self(targets, outputs)


def typed(text: str) -> Any:
    """A function without source, as one of a prompt."""
    return eval(text, {"__name__": "__main__"})


def closed_over(exponent: float) -> Any:
    return lambda targets, outputs: power(targets, outputs, exponent)


def class_with(exponent: float, *bases: type) -> Any:
    """A class that is written anew with each exponent, as by a cell of a notebook that is run again."""
    return type(
        "Changed", bases, {"call": typed(f"lambda self, targets, outputs: abs(targets - outputs) ** {exponent}")}
    )


def table_of(exponent: float) -> Any:
    """An array whose text leaves out where it differs from another."""
    return np.where(np.arange(2000) == 1000, exponent, 1.0)


def looks_up(table: Any) -> Any:
    return lambda targets, outputs: abs(targets - outputs) ** table


PAIRS = {
    "partial, by name": lambda k: partial(power, exponent=k),
    "partial, by place": lambda k: partial(power, k),
    "partial of a partial": lambda k: partial(partial(power, exponent=k), scale=2.0),
    "an instance": Power,
    "a method": lambda k: Power(k).loss,
    "a closure": closed_over,
    "a table": lambda k: looks_up({"exponents": table_of(k)}),
    "an array of a list": lambda k: looks_up([1.0, table_of(k)]),
    "a class of a prompt": lambda k: class_with(k)().call,
    "a list that repeats": lambda k: looks_up([(one := table_of(2.0)), (two := table_of(3.0)), one if k > 2 else two]),
    "a list that begins alike": lambda k: looks_up([None, True, None][: int(k)]),
    "a set": lambda k: looks_up({"squared", f"to the power of {k}", "halved"}),
    "an inherited method": lambda k: type("Heir", (class_with(k),), {})().call,
    "a loss of Keras": lambda k: looks_up({"loss": class_with(k, keras.losses.Loss)()}),
    "of a prompt": lambda k: typed(f"lambda targets, outputs: abs(targets - outputs) ** {k}"),
    "a default": lambda k: typed(f"lambda targets, outputs, *, exponent={k}: abs(targets - outputs) ** exponent"),
}


@pytest.mark.parametrize("kind", PAIRS)
def test_what_computes_something_else_has_another_name(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(given, "place", lambda: tmp_path)
    first, again, other = (given._name_of(PAIRS[kind](k), "loss") for k in (2.0, 2.0, 3.0))
    assert first == again != other
    assert Path(first.rpartition(":")[0]).name == "loss.function"


def test_a_set_has_one_name_whatever_its_order() -> None:
    """Which hashes of strings, and so each process, decide."""
    code = "from tl_dist.launcher import given; print(given._sources({'a', 'b', 'c', 'd', 'e'}, 'x', {}))"
    names = {
        subprocess.check_output([sys.executable, "-c", code], env={**os.environ, "PYTHONHASHSEED": seed})
        for seed in ("1", "2", "3")
    }
    assert len(names) == 1


def test_a_project_whose_name_begins_like_ours_is_the_users(tmp_path: Path) -> None:
    beside = given._ROOT.with_name(f"{given._ROOT.name}_mine") / "losses.py"
    module = type(given)("losses")
    module.__file__ = str(beside)
    assert given._is_local(module)
    module.__file__ = str(given._ROOT / "losses.py")
    assert not given._is_local(module)
