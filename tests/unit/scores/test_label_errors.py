"""Planted label errors come first, and what cannot be told is nobody's error."""

import numpy as np

from tl_dist.scores.label_errors import label_errors


def test_planted_errors_are_named_with_the_class_that_they_have() -> None:
    rng = np.random.default_rng(0)
    truth = np.arange(300) % 5
    probabilities = rng.dirichlet(np.ones(5), 300) * 0.3
    probabilities[np.arange(300), truth] += 0.7
    labels = truth.astype(np.int32)
    planted = rng.choice(300, 20, replace=False)
    labels[planted] = (truth[planted] + 1) % 5
    found = label_errors(labels, probabilities)
    named = [k in planted for k in found.examples.tolist()]
    assert sum(named) >= 10 and all(named[:10])
    assert (found.likely[:10] == truth[found.examples[:10]]).all()


def test_a_class_without_examples_is_nobodys() -> None:
    probabilities = np.tile([0.1, 0.1, 0.8], (4, 1))
    found = label_errors(np.array([0, 0, 1, 1], np.int32), probabilities)
    assert found.examples.size and 2 not in found.likely


def test_labels_of_a_class_that_the_model_has_never_seen_are_no_suspects() -> None:
    """As where `cv --by` leaves out all of it: the model can say no such thing, so the labels may well be right."""
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1, 2], 40).astype(np.int32)
    probabilities = rng.dirichlet([1, 1], 120)
    probabilities[:40] = np.sort(probabilities[:40], axis=1)[:, ::-1]
    probabilities[40:80] = np.sort(probabilities[40:80], axis=1)
    said = np.concatenate([probabilities, np.zeros((120, 1))], axis=1)
    labels[0] = 1
    assert set(label_errors(labels, said).examples.tolist()) <= {0}
    assert label_errors(labels, said).examples.tolist() == label_errors(labels[:80], said[:80]).examples.tolist()
