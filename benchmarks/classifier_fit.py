"""A logistic regression with its l2 chosen by five folds, against scikit-learn's LogisticRegressionCV: CPU seconds.

Digits, their pixels and products of two: as unequal as the features of a network are, and real. Both sides get the
same grid and folds; ours is then fitted to its minimum, scikit-learn's to its default tolerance.
"""

import time
import warnings
from collections.abc import Iterator

import numpy as np

from benchmarks.comparison import Comparison, in_turn


def comparisons() -> Iterator[Comparison]:
    from sklearn.datasets import load_digits
    from sklearn.linear_model import LogisticRegressionCV
    from sklearn.model_selection import PredefinedSplit
    from sklearn.preprocessing import PolynomialFeatures, StandardScaler

    from tl_dist.datasets.split import folds_of
    from tl_dist.features import classifiers, nested

    found = load_digits()
    raw = PolynomialFeatures(2, include_bias=False).fit_transform(found.data / 16)[:, ::3].astype(np.float32)
    labels = found.target.astype(np.int32)
    fold = folds_of(labels, nested.FOLDS, 0)
    said: dict[str, tuple[float, float]] = {}

    def ours() -> float:
        start = time.process_time()
        chosen = nested.choose(nested.Examples(raw[:, None], raw[:, None], labels, labels), fold)
        classifiers.fit("logistic", raw, labels, 10, l2=chosen.l2)
        said["tl_dist"] = chosen.l2, chosen.log_loss
        return time.process_time() - start

    def theirs() -> float:
        start = time.process_time()
        rows = len(labels) * (nested.FOLDS - 1) / nested.FOLDS
        rival = LogisticRegressionCV(
            Cs=[1 / (l2 * rows) for l2 in nested.GRID],
            cv=PredefinedSplit(fold),
            scoring="neg_log_loss",
            max_iter=1000,
            l1_ratios=(0,),
            use_legacy_attributes=False,
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            rival.fit(StandardScaler().fit_transform(raw), labels)
        said["scikit-learn"] = 1 / (float(rival.C_) * rows), -float(rival.scores_.mean(axis=0).max())
        return time.process_time() - start

    seconds = in_turn({"tl_dist": ours, "scikit-learn": theirs}, rounds=3)
    yield Comparison(
        "classifier_fit", "CPU s", seconds["tl_dist"], "LogisticRegressionCV", seconds["scikit-learn"],
        bar=1.0, at_most=True,
        note="; ".join(f"{name}: l2 {l2:.3g}, held-out log loss {loss:.4f}" for name, (l2, loss) in said.items()),
    )  # fmt: skip
