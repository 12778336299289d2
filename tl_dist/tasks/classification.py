"""Classes without an order: each image is of one of them."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tl_dist.refusal import ExitCode, Refusal
from tl_dist.scores.decision import Decision
from tl_dist.scores.figures import Softmax
from tl_dist.scores.figures import figures as figures
from tl_dist.scores.figures import log_loss as loss

SEPARATORS = (";", "|", ",")
MOST_GRADES = 9  # ten numbers are digits
LEAST_SHARE = 0.1  # of the classes: ImageNet, too, has "maillot" and "maillot, tank suit"
FEWEST_VALUES = 50  # that no set of classes has as its numbers


__all__ = ["WORDS", "agree", "answers", "check", "entries", "figures", "given", "loss", "remarks"]

WORDS = {
    "hub": "image-classification",
    "model": "An image classifier of {num} classes",
    "output": "the probability of each class",
    "uses": "To tell apart the classes above on images like those that it was trained on. It gives one of them to any "
    "image whatever: nothing tells it that an image shows none.",
}


def check(class_names: Sequence[str], grades: Sequence[str], truth: NDArray[Any]) -> None:
    """Accept any classes; refuse (65) numbers, or several labels, for each image."""
    if truth.ndim > 1:
        what = "the data set has no class for each image, but numbers or any number of labels."
        raise Refusal(what, fix="write 'task: regression' or 'task: multilabel'.", code=ExitCode.DATA)


def answers(outputs: NDArray[np.float32], temperature: float = 1.0) -> NDArray[np.float32]:
    """Return the softmax of the outputs, in their memory."""
    return Softmax(outputs, temperature).in_place()


def given(answers: Any, rule: Decision | None) -> NDArray[np.bool_]:
    """Return nothing: an image has a class instead of labels."""
    return np.empty(0, np.bool_)


def entries(names: Sequence[str], answers: Any, rule: Decision | None) -> list[dict[str, Any]]:
    """Return the probabilities and the class of each image."""
    classes = answers.argmax(axis=1) if rule is None else rule.classes(answers)
    return [{"probabilities": row.tolist(), "class": names[k]} for row, k in zip(answers, classes, strict=True)]


def agree(expected: NDArray[np.floating], exported: NDArray[np.floating]) -> NDArray[np.bool_]:
    """Return for which images both have the same class."""
    return np.asarray(expected.argmax(axis=1) == exported.argmax(axis=1))


def remarks(class_names: Sequence[str]) -> list[str]:
    """Return clauses about classes that look like labels of another task, or like one class in two spellings."""
    return [*_in_two_spellings(class_names), *_several_in_one(class_names), *_numbers(class_names)]


def _in_two_spellings(class_names: Sequence[str]) -> Iterator[str]:
    alike: dict[str, list[str]] = defaultdict(list)
    for name in class_names:
        alike[" ".join(name.replace("_", " ").casefold().split())].append(name)
    for names in alike.values():
        if len(names) > 1:
            yield f"{' and '.join(map(repr, names))} are {len(names)} classes, and may be meant as one"


def _several_in_one(class_names: Sequence[str]) -> Iterator[str]:
    for separator in SEPARATORS:
        joined = {name: {part.strip() for part in name.split(separator)} for name in class_names if separator in name}
        often = Counter(part for parts in joined.values() for part in parts) + Counter({*class_names} - joined.keys())
        known = [name for name, parts in joined.items() if any(often[part] > 1 for part in parts)]
        if known and len(known) >= LEAST_SHARE * len(class_names):
            yield (
                f"labels such as {known[0]!r} look like several labels of one image; each of these {len(known)} "
                "combinations is taken as a class of its own; for several labels write 'task: multilabel'"
            )


def _numbers(class_names: Sequence[str]) -> Iterator[str]:
    try:
        numbers = sorted(map(float, class_names))
    except ValueError:
        return
    num = len(numbers)
    if num > FEWEST_VALUES:
        what = f"the labels are {num} different numbers, as of a measured quantity"
        yield f"{what}; each is taken as a class of its own; to estimate them write 'task: regression'"
    elif 2 < num <= MOST_GRADES and numbers == [numbers[0] + k for k in range(num)]:
        ends = f"{numbers[0]:g} to {numbers[-1]:g}"
        yield f"the classes are the numbers {ends}: if these are grades, write 'task: ordinal'"
