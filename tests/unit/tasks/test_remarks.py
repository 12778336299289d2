"""Labels that look like another task are named, by what shows it; ordinary classes never are."""

import pytest

from tl_dist.tasks import classification, ordinal


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["cat;furry", "dog", "furry"], "labels such as 'cat;furry' look like several labels"),
        (["a|b", "b|c", "c"], "each of these 2 combinations"),
        (["cat, furry", "furry"], "'cat, furry'"),
        ([str(k / 7) for k in range(51)], "51 different numbers, as of a measured quantity"),
        (["0", "1", "2", "3"], "numbers 0 to 3: if these are grades, write 'task: ordinal'"),
        (["Cat", "cat", "dog"], "'Cat' and 'cat' are 2 classes"),
        (["very bad", "very_bad", "VERY  bad"], "are 3 classes, and may be meant as one"),
    ],
)
def test_one_remark_says_what_is_odd(names: list[str], said: str) -> None:
    (remark,) = classification.remarks(names)
    assert said in remark
    assert ordinal.remarks(names) == []


@pytest.mark.parametrize(
    "names",
    [
        ["cat", "dog"],
        [str(k) for k in range(10)],  # digits
        ["0", "1"],
        ["10", "20", "40"],
        ["n01440764", "n01443537"],
        ["Paris, France", "Rome, Italy"],  # no part is a label of its own
        ["great white shark, white shark", "tiger shark"],
        ["a;", "b"],
        ["maillot", "maillot, tank suit", *(f"n{k}" for k in range(20))],
    ],
)
def test_ordinary_classes_pass_in_silence(names: list[str]) -> None:
    assert classification.remarks(names) == []
