"""Tasks: what the answers of a model mean, and which figures judge them. One file for each value of `task`."""

from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from tl_dist.config import Config
from tl_dist.config.training import LOSSES
from tl_dist.refusal import ExitCode, Refusal
from tl_dist.scores.clusters import Groups
from tl_dist.scores.decision import Decision


class Task(Protocol):
    """Describe a task; the modules of this package are such tasks.

    `truth` is what is said of examples: labels int32 [examples], or targets float32 [examples, targets]. `answers` are
    probabilities or numbers, [examples, classes or targets].
    """

    def check(self, class_names: Sequence[str], grades: Sequence[str], truth: NDArray[Any]) -> None:
        """Refuse training examples that the task does not fit; `grades` as in the config."""

    def remarks(self, class_names: Sequence[str]) -> list[str]:
        """Return what a person should look at before these classes are trained on; in clauses."""

    def answers(self, outputs: NDArray[np.float32], temperature: float = 1.0) -> NDArray[np.floating]:
        """Return the answers of a network's outputs, whose memory may be used for them."""

    def loss(
        self, truth: NDArray[Any], answers: NDArray[np.floating], weights: NDArray[np.float64] | None = None
    ) -> float:
        """Return the loss of answers by which settings are chosen, the mean by `weights` of the examples."""

    def figures(self, truth: NDArray[Any], answers: Any, groups: Groups = ()) -> dict[str, Any]:
        """Return every figure of a set of examples by name; None if a figure is undefined.

        `main` names the first one to look at; without it that is the accuracy.
        """

    def given(self, answers: NDArray[np.floating], rule: Decision | None) -> NDArray[np.bool_]:
        """Return which labels each image gets, [images, labels]; empty where it gets none but numbers or a class."""

    def entries(self, names: Sequence[str], answers: Any, rule: Decision | None) -> list[dict[str, Any]]:
        """Return what a server says of each image as JSON, by the rule of `tl-dist threshold` if there is one."""

    def agree(self, expected: NDArray[np.floating], exported: NDArray[np.floating]) -> NDArray[np.bool_]:
        """Return for which images two models say the same."""

    WORDS: Mapping[str, str]
    """what a model card says of the `model` of {num} names, its `output` and `uses`, and the task's name on a `hub`"""


def of(cfg: Config) -> Task:
    """Return the task of a config."""
    return named(cfg.task)


def named(name: str) -> Task:
    """Return the task of a name. Raises ValueError for any other name."""
    if name not in LOSSES:
        raise ValueError(f"there is no task {name!r}")
    return cast(Task, import_module(f"{__name__}.{name}"))


def one_class_each(cfg: Config) -> bool:
    """Return whether a task gives each image one of several classes."""
    return "cross_entropy" in LOSSES[cfg.task]


def gives_labels(cfg: Config) -> bool:
    """Return whether a task gives each image any number of labels."""
    return of(cfg).given(np.empty((0, 1)), None).ndim > 1


def refuse_others(cfg: Config, what: str, instead: str = "use it with task 'classification' or 'ordinal'") -> None:
    """Refuse (64) a tool that needs one class for each image; `what` says in a clause what it does with it."""
    if not one_class_each(cfg):
        raise Refusal(f"{what}, and run '{cfg.name}' is of task '{cfg.task}'.", fix=f"{instead}.", code=ExitCode.USAGE)
