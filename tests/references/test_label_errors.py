"""Labels that are likely wrong are those that cleanlab names by confident learning, in its order."""

import numpy as np
import pytest

from tl_dist.scores.label_errors import label_errors

filter_ = pytest.importorskip("cleanlab.filter", reason="the extra `references`")


@pytest.mark.parametrize("seed", range(12))
def test_the_same_labels_in_the_same_order(seed: int) -> None:
    rng = np.random.default_rng(seed)
    num_classes, num = int(rng.integers(2, 8)), int(rng.integers(60, 400))
    labels = rng.integers(0, num_classes, num).astype(np.int32)
    probabilities = rng.dirichlet(np.full(num_classes, 0.5), num) * 0.5
    probabilities[np.arange(num), labels] += 0.5
    flipped = rng.random(num) < 0.15
    labels[flipped] = rng.integers(0, num_classes, flipped.sum())
    theirs = filter_.find_label_issues(
        labels,
        probabilities,
        filter_by="confident_learning",
        return_indices_ranked_by="normalized_margin",
        n_jobs=1,
    )
    found = label_errors(labels, probabilities)
    assert found.examples.tolist() == theirs.tolist() and len(theirs) > 3
    assert (found.likely != labels[found.examples]).all()
