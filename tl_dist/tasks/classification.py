"""Classes without an order: each image is of one of them."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence

from tl_dist.scores.figures import figures as figures

SEPARATORS = (";", "|", ",")
MOST_GRADES = 9  # ten numbers are digits
LEAST_SHARE = 0.1  # of the classes: ImageNet, too, has "maillot" and "maillot, tank suit"
FEWEST_VALUES = 50  # that no set of classes has as its numbers


def check(class_names: Sequence[str], grades: Sequence[str]) -> None:
    """Accept any classes."""


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
                "combinations is taken as a class of its own"
            )


def _numbers(class_names: Sequence[str]) -> Iterator[str]:
    try:
        numbers = sorted(map(float, class_names))
    except ValueError:
        return
    num = len(numbers)
    if num > FEWEST_VALUES:
        yield f"the labels are {num} different numbers, as of a measured quantity; each is taken as a class of its own"
    elif 2 < num <= MOST_GRADES and numbers == [numbers[0] + k for k in range(num)]:
        ends = f"{numbers[0]:g} to {numbers[-1]:g}"
        yield f"the classes are the numbers {ends}: if these are grades, write 'task: ordinal'"
