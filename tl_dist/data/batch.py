"""The batch that the pipeline yields and a training step takes."""

from __future__ import annotations

from typing import Any, NamedTuple


class Batch(NamedTuple):
    """Rows of one global batch, as tensors whose first axis is the row.

    images    uint8 [rows, size, size, 3]
    labels    int32 [rows]
    weights   float32 [rows]; 0 marks padding, which never counts
    positions int64 [rows]; position in the infinite example stream (training) or index in the source (evaluation)
    masks     bool [rows, features]; True keeps a feature of the head's input; of width 0 without dropout and
              in evaluation
    others    int32 [rows]; label of the example that was mixed in; the same as `labels` if none was
    shares    float32 [rows]; weight of `labels` in the target; `others` has the rest
    teacher   float32 [rows, classes]; logits of a teacher; of width 0 without one, and in evaluation
    """

    images: Any
    labels: Any
    weights: Any
    positions: Any
    masks: Any
    others: Any
    shares: Any
    teacher: Any = None
