"""Decide on a class by other rules than the highest probability: a threshold for one class, or the costs of mistakes.

`tl-dist threshold` chooses the rule on the validation split alone and stores it in RUN/decision.json. The file is bound
to one checkpoint and to the temperature of its probabilities.
"""

import json
import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tl_dist.files import limits
from tl_dist.files.foreign import read_file
from tl_dist.refusal import ExitCode, Refusal
from tl_dist.scores import clusters
from tl_dist.scores.figures import Labels, softmax

FILE = "decision.json"


@dataclass(frozen=True)
class Decision:
    """A rule for the class of an image. With `costs`, the class of least expected cost; else a threshold for one.

    Or for its labels, by `thresholds` for all.
    """

    aim: str
    """what was asked for, such as "recall of 'cat' at least 0.95" """
    sha256: str
    """of the checkpoint"""
    step: int
    temperature: float
    """of the probabilities that the rule takes; 1: not calibrated"""
    positive: int | None = None
    """the class that is chosen from probability `at_least` on; below it, the most probable of the others is"""
    at_least: float = 0.5
    costs: tuple[tuple[float, ...], ...] = ()
    """[true class][chosen class]"""
    thresholds: tuple[float, ...] = ()
    """the probability from which on an image gets each label"""

    @classmethod
    def of_json(cls, text: bytes, num_classes: int) -> Self:
        """Read a rule. Raises ValueError or TypeError for anything else, also for a rule of other classes."""
        own = cls(**json.loads(text))
        own = cls(
            **{
                **asdict(own),
                "costs": tuple(tuple(map(float, row)) for row in own.costs),
                "thresholds": tuple(map(float, own.thresholds)),
            }
        )
        table = np.array(own.costs, float)
        fits = table.shape == (num_classes, num_classes) if own.costs else own.positive in range(num_classes)
        if own.thresholds:
            table = np.array(own.thresholds)
            fits = len(table) == num_classes
        if not (fits and np.isfinite(table).all() and 0 <= own.at_least <= 1 and own.temperature > 0):
            raise ValueError(f"it is no rule for {num_classes} classes")
        return own

    def to_json(self) -> bytes:
        """Write the rule as `of_json` reads it."""
        return json.dumps(asdict(self)).encode()

    def classes(self, probabilities: NDArray[np.floating]) -> NDArray[np.int32]:
        """Return the class of each row of calibrated probabilities [images, classes]."""
        if self.positive is None:
            return (probabilities @ np.array(self.costs)).argmin(axis=1).astype(np.int32)
        others = np.array(probabilities, float)
        others[:, self.positive] = -1.0
        chosen = probabilities[:, self.positive] >= self.at_least
        return np.where(chosen, self.positive, others.argmax(axis=1)).astype(np.int32)

    def effect(self, labels: Labels, probabilities: NDArray[np.floating], groups: Sequence[str] = ()) -> dict[str, Any]:
        """Return figures of the rule on labelled images, with 95 % intervals, beside those of the highest probability.

        With `costs` the mean cost of an image; else recall and precision of the class, None where it has no image.
        """
        plain, decided = np.asarray(probabilities).argmax(axis=1), self.classes(probabilities)
        of = clusters.numbers(groups)
        figures: dict[str, Any] = {"aim": self.aim, **_share("accuracy", decided == labels, plain == labels, of)}
        if self.positive is None:
            table = np.array(self.costs)
            figures |= {
                "cost": float(table[labels, decided].mean()),
                "cost_plain": float(table[labels, plain].mean()),
            }
            return figures
        figures["class"], figures["at_least"] = self.positive, self.at_least
        is_class, hits = labels == self.positive, decided == labels
        figures |= _share("recall", hits[is_class], (plain == labels)[is_class], _of(of, is_class))
        figures["precision"] = _mean(hits[decided == self.positive])
        figures["precision_plain"] = _mean((plain == labels)[plain == self.positive])
        return figures

    def effect_on_labels(self, has: NDArray[np.bool_], probabilities: NDArray[np.floating]) -> dict[str, Any]:
        """Return mean precision, recall and F1 over the labels that images have, beside those from probability 0.5."""
        figures: dict[str, Any] = {"aim": self.aim}
        for kind, chosen in (("", probabilities >= np.array(self.thresholds)), ("_plain", probabilities >= 0.5)):
            right, true, positive = (part.sum(axis=0) for part in (has & chosen, has, chosen))
            seen = true > 0
            for name, of in (("recall", true), ("precision", positive), ("f1", (true + positive) / 2)):
                figures[name + kind] = _mean(right[seen] / np.maximum(of[seen], 1))
        return figures


def _share(name: str, hits: NDArray[np.bool_], plain: NDArray[np.bool_], of: Any) -> dict[str, Any]:
    interval = clusters.interval(hits, of) if len(hits) else None
    return {name: _mean(hits), f"{name}_interval": interval, f"{name}_plain": _mean(plain)}


def _of(of: Any, rows: NDArray[np.bool_]) -> Any:
    return None if of is None else of[rows]


def _mean(hits: NDArray[np.bool_] | NDArray[np.float64]) -> float | None:
    return float(hits.mean()) if len(hits) else None


def calibrated(probabilities: ArrayLike, temperature: float) -> NDArray[np.float64]:
    """Return probabilities [images, classes] as they are at a temperature, from uncalibrated ones."""
    values = np.asarray(probabilities, np.float64)
    if temperature == 1:
        return values
    logits = np.log(np.maximum(values, np.finfo(np.float32).tiny)) / temperature
    return softmax(logits)


def threshold_for_precision(labels: Labels, of_class: NDArray[np.floating], positive: int, least: float) -> float:
    """Return the lowest threshold from which on at least this share of the images is of the class.

    Refuses (65) a share that no threshold reaches.
    """
    order = np.argsort(-of_class, kind="stable")
    values, hits = of_class[order], np.cumsum(labels[order] == positive)
    last = np.append(values[1:] != values[:-1], True)  # images of equal probability are chosen together
    shares = hits / np.arange(1, len(hits) + 1)
    reached = np.flatnonzero(last & (shares >= least) & (hits > 0))
    if not len(reached):
        best = float(shares[last].max(initial=0.0))
        raise Refusal(
            f"no threshold has a precision of {least:g} on the validation split; the best has {best:.4f}.",
            fix=f"ask for {math.floor(best * 100) / 100:g} or less, or train a better model.",
            code=ExitCode.DATA,
        )
    return just_below(float(values[reached[-1]]))


def threshold_for_f1(has: NDArray[np.bool_], of_label: NDArray[np.floating]) -> float:
    """Return the threshold with the greatest F1; of several the highest."""
    order = np.argsort(-of_label, kind="stable")
    values, right = of_label[order], np.cumsum(has[order])
    last = np.append(values[1:] != values[:-1], True)
    f1 = np.where(last, 2 * right / (np.arange(1, len(values) + 1) + has.sum()), -1)
    return just_below(float(values[f1.argmax()]))


def just_below(probability: float) -> float:
    """Return a threshold that this probability still reaches when it is computed again, in float32."""
    return probability * (1 - 1e-5)


def kept(run: Path, num_classes: int) -> Decision | None:
    """Load the rule of a run, of whichever checkpoint; None without one. Refuses (65) a damaged file."""
    path = run / FILE
    if not os.path.lexists(path):
        return None
    try:
        return Decision.of_json(read_file(path, max_bytes=limits.EVALUATION), num_classes)
    except (ValueError, TypeError, AttributeError) as error:
        raise Refusal(
            f"{path} is damaged: {error}.",
            fix="choose again: tl-dist threshold RUN; or remove it.",
            code=ExitCode.DATA,
        ) from error


def of_checkpoint(run: Path, sha256: str, temperature: float, num_classes: int) -> Decision | None:
    """Load the rule of a run, if it is of this very checkpoint; None without one.

    Refuses (65) a damaged file, and (78) a rule for probabilities of another temperature.
    """
    own = kept(run, num_classes)
    if own is None or own.sha256 != sha256:
        return None
    if own.temperature != temperature:
        raise Refusal(
            f"{run / FILE} was chosen for probabilities of temperature {own.temperature:.3f}, and they now have "
            f"{temperature:.3f}.",
            fix="choose again: tl-dist threshold RUN, with the same options; or --remove.",
            code=ExitCode.UNSAFE,
        )
    return own
