"""The worst group is named, and called worse only where that is more than chance among so many."""

import numpy as np
import pytest

from tl_dist.scores.evaluation import by_group
from tl_dist.scores.text import worst_group


def rows(right: dict[str, tuple[int, int]]) -> list[dict[str, object]]:
    """Of groups with so many of so many right."""
    names = [name for name, (_, n) in right.items() for _ in range(n)]
    hits = np.concatenate([np.arange(n) < k for k, n in right.values()])
    p = np.where(hits, 0.9, 0.1)
    return by_group(names, np.zeros(len(names), np.int32), np.stack([p, 1 - p], axis=1))


def test_the_worst_is_named_with_what_chance_does() -> None:
    found = rows({"north": (95, 100), "south": (60, 100), "west": (9, 10)})
    assert [row["name"] for row in found] == ["south", "west", "north"]
    assert found[0]["log_loss"] == pytest.approx(-(0.6 * np.log(0.9) + 0.4 * np.log(0.1)))
    assert "worst site: south, accuracy 0.6000 of 100" in worst_group("site", found)
    assert "less accurate than the others" in worst_group("site", found)


def test_a_small_group_is_not_called_worse_by_chance() -> None:
    found = rows({"north": (95, 100), "west": (8, 10)})
    assert found[0]["name"] == "west" and "no more than chance explains" in worst_group("site", found)


def test_the_test_counts_how_many_groups_there_are() -> None:
    few, many = ({"bad": (15, 20), **{f"{k}": (95, 100) for k in range(n)}} for n in (1, 40))
    assert rows(few)[0]["p_value"] < 0.05 < rows(many)[0]["p_value"]


def test_one_group_alone_is_compared_with_nothing() -> None:
    found = rows({"all": (3, 4)})
    assert found[0]["p_value"] is None and "p =" not in worst_group("site", found)
