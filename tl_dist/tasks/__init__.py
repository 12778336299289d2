"""Tasks: what the answers of a model mean, and which figures judge them. One file for each value of `task`."""

from collections.abc import Sequence
from importlib import import_module
from typing import Any, Protocol, cast

from tl_dist.config import Config
from tl_dist.scores.clusters import Groups
from tl_dist.scores.figures import Labels, Said, Softmax


class Task(Protocol):
    """Describe a task; the modules of this package are such tasks."""

    def check(self, class_names: Sequence[str], grades: Sequence[str]) -> None:
        """Refuse (64) classes that the task does not fit; `grades` as in the config."""

    def remarks(self, class_names: Sequence[str]) -> list[str]:
        """Return what a person should look at before these classes are trained on; in clauses."""

    def figures(self, labels: Labels, probabilities: Said | Softmax, groups: Groups = ()) -> dict[str, Any]:
        """Return every figure of a set of examples by name; None if a figure is undefined."""


def of(cfg: Config) -> Task:
    """Return the task of a config."""
    return cast(Task, import_module(f"{__name__}.{cfg.task}"))
