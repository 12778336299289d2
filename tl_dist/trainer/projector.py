"""Write features of training examples for TensorBoard's projector, which shows them as points in space."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tl_dist.datasets import Source
from tl_dist.features.stored import FeatureSet
from tl_dist.files.atomic import write_atomically
from tl_dist.refusal import printable
from tl_dist.trainer.setup import Setup

MAX_POINTS = 1_000
_CONFIG = """\
embeddings {
  tensor_name: "features"
  tensor_path: "features.tsv"
  metadata_path: "features_labels.tsv"
}
"""


def show(setup: Setup, source: Source, features: FeatureSet, rows: NDArray[np.integer] | None) -> None:
    """Write the first view of up to MAX_POINTS evenly spread examples, averaged over positions; once, on rank 0.

    `rows` are the rows of `source`'s examples in the feature set; None if they have the same order.
    """
    place = setup.run.tensorboard
    config = place / "projector_config.pbtxt"
    if not (setup.is_first and setup.cfg.report.tensorboard) or config.exists():
        return
    chosen = np.unique(np.linspace(0, source.num_examples - 1, MAX_POINTS).astype(np.int64))
    values = features.some(chosen if rows is None else np.asarray(rows)[chosen])
    points = values.reshape(len(chosen), -1, values.shape[-1]).mean(axis=1)
    write_atomically(place / "features.tsv", _table(points.tolist(), "{:.5g}"))
    labels = [[source.class_names[source.labels[k]], str(source.ids[k])] for k in chosen.tolist()]
    write_atomically(place / "features_labels.tsv", _table([["class", "id"], *labels], "{}"))
    write_atomically(config, _CONFIG.encode())


def _table(rows: Sequence[Sequence[object]], form: str) -> bytes:
    lines = ("\t".join(printable(form.format(value).replace("\t", " ")) for value in row) for row in rows)
    return ("\n".join(lines) + "\n").encode("utf-8", "replace")
