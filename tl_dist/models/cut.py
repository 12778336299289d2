"""Where a backbone is cut: into its frozen and its trained part, and after the stages that are pooled."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf

from tl_dist.models import head
from tl_dist.models.backbones import Backbone, preprocess, seam
from tl_dist.refusal import ExitCode, Refusal


def first_trainable_layer(
    backbone: Backbone, network: Any, train_from: str, *, key: str = "model.train_from"
) -> int:
    """Return the position, in topological order, of the first trained layer; all layers before it are frozen.

    Refuses (64) a name that is no stage or layer; `key` of the config is named then.
    """
    names = [layer.name for layer in network.layers]
    if train_from == "head":
        return len(names)
    if train_from == "all":
        return 0
    first = backbone.stages.get(train_from, train_from)
    if first not in names:
        raise Refusal(
            f"{key} is '{train_from}', which is no stage or layer of {backbone.name}.",
            fix=f"use head, all, or one of {', '.join(backbone.stages)}.",
            code=ExitCode.USAGE,
        )
    return names.index(first)


def stage_outputs(backbone: Backbone, network: Any, stages: Sequence[str]) -> list[Any]:
    """Return the Keras tensor that leaves each of `stages`, from input to output whatever their order."""
    return [seam(network, end) for name, end in stage_ends(backbone, network).items() if name in stages]


def stage_ends(backbone: Backbone, network: Any) -> dict[str, int]:
    """Return the position, in topological order, of the first layer after each stage, by the stage's name."""
    names = [layer.name for layer in network.layers]
    starts = [names.index(first) for first in backbone.stages.values()]
    return dict(zip(backbone.stages, [*starts[1:], len(names)], strict=True))


def from_images(backbone: Backbone, network: Any, outputs: Any) -> Callable[[Any], Any]:
    """Return a function images -> Keras tensors `outputs` of the network, which runs in inference mode."""
    model = keras.Model(network.inputs, outputs)
    return lambda images: model(preprocess(backbone.preprocessing, images), training=False)


def pool(maps: Any, pooling: str) -> Any:
    """Pool one feature map or a nest of several and join the results: [rows, features]."""
    return tf.concat([head.pool(stage_maps, pooling) for stage_maps in keras.tree.flatten(maps)], axis=-1)


def divide(
    backbone: Backbone, network: Any, outputs: Sequence[Any], pooling: str, first: int
) -> tuple[Any, Any, tuple[int, ...] | None]:
    """Return (images -> output of the layers before `first`, this output -> pooled features, its shape for one image).

    The first is None if more than one tensor leaves the frozen part; then the second takes the images. `outputs` are
    the Keras tensors that are pooled.
    """

    def pooled(maps: Any) -> Any:
        return pool(maps, pooling)

    whole = from_images(backbone, network, outputs)
    if first >= len(network.layers):  # none of the backbone is trained: the prefix ends with pooling
        width = sum(head.num_pooled(output.shape[1:], pooling) for output in outputs)
        return lambda images: pooled(whole(images)), lambda features: features, (width,)
    # A stage that ends where training begins is pooled as it is: a Keras model cannot output its input.
    try:
        between = seam(network, first) if first else None
        above = [output for output in outputs if output is not between]
        trained = keras.Model(between, above) if first else None
    except ValueError:  # inside a residual block, or with a stage to pool further below
        between = trained = None
    if trained is None:
        return None, lambda images: pooled(whole(images)), None
    num_passed = len(outputs) - len(above)
    return (
        from_images(backbone, network, between),
        lambda maps: pooled([[maps] * num_passed, trained(maps, training=False)]),
        tuple(trained.input_shape[1:]),
    )
