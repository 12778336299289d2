"""What the pipeline gives and a step takes."""

from __future__ import annotations

from typing import Any, NamedTuple


class Batch(NamedTuple):
    """Rows of one global batch, as tensors; the leading axis of each is the row.

    images    uint8 [rows, size, size, 3]
    labels    int32 [rows]
    weights   float32 [rows]; 0 marks padding, which counts nowhere
    positions int64 [rows]; place in the infinite example stream (training) or index in the source (evaluation)
    masks     bool [rows, features]; True keeps a feature of the head's input; zero wide without dropout and
              in evaluation
    others    int32 [rows]; the label of what was mixed in; `labels` again where nothing was
    shares    float32 [rows]; how much of the example `labels` stands for, the rest being of `others`
    teacher   float32 [rows, classes]; the logits of a teacher; zero wide without, and in evaluation
    """

    images: Any
    labels: Any
    weights: Any
    positions: Any
    masks: Any
    others: Any
    shares: Any
    teacher: Any = None
