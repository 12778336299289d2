"""Another data set is evaluated by the names of its classes, whatever their numbers there."""

from pathlib import Path

import numpy as np
import pytest

from tests.doubles import memory_source
from tl_dist.refusal import Refusal
from tl_dist.tools.evaluate.work import matched

SOURCE = memory_source(12)
"""labels 0, 1, 2, 0, ... of the classes 0, 1 and 2"""


@pytest.mark.parametrize("rows", [None, np.array([5, 0, 1, 7])])
def test_labels_are_the_numbers_that_the_run_has(rows: np.ndarray | None) -> None:
    part = SOURCE if rows is None else SOURCE.subset(rows)
    found, unknown = matched(part, ("class 2", "other", "class 0"), Path("set"))
    expected = [(name, {0: 2, 2: 0}[k]) for name, k in zip(part.ids, part.labels.tolist(), strict=True) if k != 1]
    assert list(zip(found.ids, found.labels.tolist(), strict=True)) == expected
    assert unknown == {"class 1": int((part.labels == 1).sum())}
    assert found.class_names == ("class 2", "other", "class 0")
    again = found.subset(np.array([1, 0]))
    assert again.labels.tolist() == found.labels[[1, 0]].tolist()
    assert again.read(0)[1] == found.labels[1]


def test_without_a_class_in_common_it_is_refused() -> None:
    with pytest.raises(
        Refusal, match=r"no class of set \(class 0, class 1, class 2\) is one of the run's \(cat, dog\)"
    ):
        matched(SOURCE, ("cat", "dog"), Path("set"))
