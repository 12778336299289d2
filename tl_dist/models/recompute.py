"""Gradient checkpointing (Chen et al., arXiv 1604.06174): only what passes between blocks is kept for the gradient."""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import keras

from tl_dist.models.backbones import Backbone, seam, seams
from tl_dist.models.network import depths, stage_ends


def by_block(backbone: Backbone, network: Any, start: Any, outputs: Sequence[Any]) -> Callable[..., list[Any]]:
    """Return what calls as `keras.Model(start, outputs)`, but computes each block again for its gradient.

    Outputs are at ends of stages. The last block is not computed again: its gradient comes at once.
    """
    (start,), depth = keras.tree.flatten(start), [*depths(backbone, network).values()]
    begins = {k for k in seams(network) if depth[k] != depth[k - 1]} | {*stage_ends(backbone, network).values()}
    order = {id(tensor): k for k, op in enumerate(network.operations) for tensor in keras.tree.flatten(op.output)}
    first, *wanted = (order[id(tensor)] for tensor in (start, *outputs))
    keras.Model(start, outputs)  # raises ValueError for an output that lies below the start
    ends = [end for k in sorted(begins) if first < order[id(end := seam(network, k))] <= max(wanted)]
    *blocks, last = (keras.Model(*pair) for pair in pairwise([start, *ends]))

    def call(values: Any, *, training: bool) -> list[Any]:
        passed = [values := keras.remat(partial(block, training=training))(values) for block in blocks]
        passed.append(last(values, training=training))
        return [value for end, value in zip(ends, passed, strict=True) if order[id(end)] in wanted]

    return call
