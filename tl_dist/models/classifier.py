"""Backbone plus head, frozen up to a layer: a deterministic function of its batch, however that is split among workers.

Layers run in inference mode; only a training step uses the batch's statistics, and dropout masks, which come with it.
"""

from __future__ import annotations

import copy
import hashlib
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tl_dist.config import ModelConfig
from tl_dist.models import batch_norm, drop_path, heads, lora, recompute
from tl_dist.models import network as networks
from tl_dist.models.backbones import Backbone
from tl_dist.models.initial import MOVING, new_paths, refuse_untrained
from tl_dist.models.network import backbone_path
from tl_dist.models.own_head import below_head, built, with_head, without_head
from tl_dist.models.pooling import normalize, pool
from tl_dist.refusal import ExitCode, Refusal


class Classifier:
    """A backbone and a head, called as one function.

    It is built with random weights, inside the strategy's scope; then the backbone's are loaded. `carried`: these come
    from another run, whatever the config says about weights; `loss`: its name, which has a last layer of its own for
    grades and for numbers; `parts`: `train_from` of every view that is to be trained, if it is not the config's;
    `recomputes`: gradients keep little in memory, and compute each block again.
    `trainable`, `frozen`, `statistics` and `scale` map paths to variables. Paths are the same on every strategy and
    worker: `backbone/<layer>/<variable>` and `head/<layer>/<variable>`.
    """

    def __init__(
        self,
        backbone: Backbone,
        config: ModelConfig,
        *,
        image_size: int,
        num_classes: int,
        seed: int,
        carried: bool = False,
        loss: str = "cross_entropy",
        parts: Sequence[str] = (),
        recomputes: bool = False,
    ) -> None:
        backbone = with_head(networks.narrowed(backbone, config.prune), config.head, num_classes)
        before = random.getstate()
        random.seed(seed)  # Keras's initializers take their seeds from Python's generator
        try:
            network, gives = built(backbone, (image_size, image_size, 3))
        finally:
            random.setstate(before)
        batch_norm.adopt(network)
        self._all_drops = drop_path.adopt(backbone, network, config.drop_path)
        self._build = partial(recompute.by_block, backbone, network) if recomputes else keras.Model
        self._backbone, self.network, self._config = backbone, network, config
        self._random = config.weights == "random" and not carried
        self._train_from = config.train_from
        self._outputs = networks.outputs(backbone, network, config.layers)
        pooled = config.layers or [*backbone.stages][-1:]
        self.stage_names = [name for name in backbone.stages if name in pooled]
        """names of the pooled stages, from input to output; the next three have an entry for each: the position of the
        layer after its end, its channels, and the number of features pooled from it"""
        self.stage_ends = [networks.stage_ends(backbone, network)[name] for name in self.stage_names]
        self.stage_channels = [int(output.shape[-1]) for output in self._outputs]
        self.num_patches = patches = networks.num_patches(backbone, network)
        self.stage_widths = [pool(output, config.pooling, patches).shape[-1] for output in self._outputs]
        self.num_features: int = config.hidden or sum(self.stage_widths)  # inputs of the last layer
        self.mask_features: int = self.num_features if config.dropout else 0
        self._hidden = None
        if config.hidden:
            initial = keras.initializers.GlorotUniform(seed=seed)
            dense = keras.layers.Dense
            self._hidden = dense(config.hidden, activation="relu", kernel_initializer=initial, name="hidden")
            self._hidden.build((None, sum(self.stage_widths)))
        if backbone.head_from is None:
            # Zeros, as in Big Transfer (arXiv 1912.11370): so a new head does not disturb the backbone.
            self._logits = heads.last_layer(loss, num_classes, kernel_initializer="zeros", **heads.OPTIONS)
        else:
            self._logits = heads.Own(backbone.name, num_classes, loss, gives, **heads.OPTIONS)
        self._logits.build((None, self.num_features))
        self.first_of_head = self._hidden or self._logits  # the layer that reads the pooled features
        self.new = new_paths(backbone, network, config, carried=carried)
        """paths in the backbone that keep their random initialization when pretrained weights are loaded"""
        self._below_head = below_head(backbone, network)
        first = min(networks.first_trainable_layer(backbone, network, part) for part in parts or [config.train_from])
        self._adapters = lora.add(network.layers[first : self._below_head], config.adapt, seed)
        self._start_training_at(networks.first_trainable_layer(backbone, network, config.train_from))
        layer_depths = networks.depths(backbone, network)
        paths = [path for path in (*self.moving, *self.frozen) if path.startswith("backbone/")]
        self.depths: dict[str, int] = {path: layer_depths[path.split("/")[1]] for path in paths}
        """depth of each variable of the backbone, in blocks below the head; 0 in a head that belongs to the network"""

    def _start_training_at(self, first: int) -> None:
        self._first = first
        self._prefix, self._suffix, self.prefix_shape = networks.divide(
            self._backbone, self.network, self._outputs, self._config.pooling, first, self._build
        )
        above = [layer.name for layer in self.network.layers[first:]]
        self.drops = {name: self._all_drops[name] for name in above if name in self._all_drops}
        self.mask_rates = [self._config.dropout] * self.mask_features + drop_path.rates(self.drops)
        """shares that a training step drops: of the features of the head's input, then of residual branches"""
        self.bfloat16_paths: set[str] = set()
        """paths of trainable variables that are read as bfloat16, so that their gradients are bfloat16"""
        self.trainable: dict[str, Any] = {}
        self.frozen: dict[str, Any] = {}
        self.statistics: dict[str, Any] = {}
        """moving statistics of batch norm that the training step updates; neither trainable nor frozen"""
        self.momentum: dict[str, float] = {}  # of each of the `statistics`
        self.scale: dict[str, Any] = {}
        """mean and spread of targets that are numbers: no step changes them, but checkpoints hold them"""
        for position, layer in enumerate(self.network.layers):
            trained_ids = {id(v) for v in layer.trainable_variables} if position >= first else set()
            policy = self._policy(layer) if position >= first and batch_norm.is_batch_norm(layer) else None
            if policy == "frozen":
                trained_ids = set()
            if position < self._below_head:
                trained_ids &= networks.adapted(self._config.adapt, layer)
            for variable in layer.weights:
                table = self.trainable if id(variable) in trained_ids else self.frozen
                path = backbone_path(layer, variable)
                if policy in ("train", "sync") and path.endswith(MOVING):
                    table, momentum = self.statistics, self._config.batch_norm_momentum
                    self.momentum[path] = layer.momentum if momentum is None else momentum
                table[path] = variable.value
                # These layers read their variables only after a cast.
                casts = isinstance(layer, keras.layers.Conv2D | keras.layers.Dense)
                if table is self.trainable and casts and layer.compute_dtype == "bfloat16":
                    self.bfloat16_paths.add(path)
            (self.trainable if position >= first else self.frozen).update(self._adapters.get(layer.name, {}))
        for layer in filter(None, (self._hidden, self._logits)):
            for variable in layer.weights:
                table = self.trainable if variable.trainable else self.scale
                table[f"head/{layer.name}/{variable.name}"] = variable.value

    def _policy(self, layer: Any) -> str:
        """Return how a trained batch-norm layer normalizes; `auto` depends on whether its statistics are pretrained."""
        if self._config.batch_norm != "auto":
            return self._config.batch_norm
        is_new = self._random or self._config.prune or f"backbone/{layer.name}{MOVING[0]}" in self.new
        return "sync" if is_new else "inference"

    def trained_from(self, train_from: str) -> Classifier:
        """Return a view of the same layers and variables that trains from `train_from` on: the model of one stage."""
        view = copy.copy(self)
        view._start_training_at(networks.first_trainable_layer(self._backbone, self.network, train_from))
        view._train_from = train_from
        return view

    def refuse_frozen_random(self) -> None:
        """Refuse (64) if a layer that keeps its random initialization is never trained."""
        refuse_untrained(self._config, self._train_from, self.frozen, self.new)

    @contextmanager
    def keeping_new(self) -> Iterator[None]:
        """Restore the random values of reinitialized layers on exit; pretrained weights are loaded inside."""
        variables = {**self.moving, **self.frozen}
        start = {path: variables[path].numpy() for path in self.new}
        yield
        for path, value in start.items():
            variables[path].assign(value)

    def __call__(self, images: Any) -> Any:
        """Return float32 logits [rows, num_classes] of uint8 images [rows, size, size, 3], without dropout."""
        return self.suffix(self.prefix(images))

    def prefix(self, images: Any) -> Any:
        """Return the outputs of the frozen part, [rows, ...]; the images themselves if it cannot be separated."""
        return self._prefix(images) if self._prefix else images

    def suffix(self, outputs: Any, masks: Any = None) -> Any:
        """Return the logits from the outputs of `prefix`: the trained part.

        `masks`, bool [rows, mask_rates], are the dropout of a training step. Kept features are divided by the share
        that is kept, so that their mean over masks is the feature without one (Srivastava et al., Journal of Machine
        Learning Research 15, 2014, section 10; keras.layers.Dropout). Residual branches drop out by `drop_path`.
        """
        features = self._features(outputs)
        if self.mask_features and masks is not None:
            features = features * tf.cast(masks[:, : self.mask_features], features.dtype) / (1.0 - self._config.dropout)
        return self._logits(features)

    def _features(self, outputs: Any) -> Any:
        """Return the inputs of the last layer from the outputs of `prefix`, without dropout."""
        features = self._pooled(outputs)
        return self._hidden(features) if self._hidden else features

    def _pooled(self, outputs: Any) -> Any:
        """Return the inputs of the head from the outputs of `prefix`."""
        features = self._suffix(outputs)
        return self.normalized(features) if self._config.normalize else features

    def into(self, layer: Any) -> Callable[[Any], Any]:
        """Return a function images -> input of `layer`: `first_of_head`, or one of the network other than its first."""
        if layer is self.first_of_head:
            return lambda images: self._pooled(self.prefix(images))
        return networks.from_images(self._backbone, self.network, layer.input)

    def with_features(self, images: Any) -> tuple[Any, Any]:
        """Return the logits of `images` and the inputs of the last layer: float32 [rows, num_features]."""
        features = self._features(self.prefix(images))
        return self._logits(features), tf.cast(features, tf.float32)

    def normalized(self, features: Any) -> Any:
        """Normalize pooled features as `model.normalize` asks: the features of each stage by themselves."""
        parts = tf.split(features, self.stage_widths, axis=-1)
        return tf.concat([normalize(part) for part in parts], axis=-1)

    def pooled_maps(self) -> tuple[Callable[[Any], Any], Callable[[Any], Any]]:
        """Return (images -> feature maps before pooling, these maps -> logits): the network cut before pooling."""
        view, kind = self.trained_from("head"), self._config.pooling
        maps, pooled = networks.around_pooling(self._backbone, self.network, self._outputs, kind)
        return maps, lambda values: view.suffix(pooled(values))

    @property
    def moving(self) -> dict[str, Any]:
        """Return every variable that training changes, and the scale of targets, by path."""
        return {**self.trainable, **self.statistics, **self.scale}

    def as_given(self, logits: Any) -> Any:
        """Return what the user's model gives, from its logits; those of a head of ours as they are."""
        return self._logits.as_given(logits) if self._backbone.head_from else logits

    @property
    def pretrained(self) -> Any:
        """The part of the network that pretrained weights are of: all but a head that `model.head` adds."""
        return without_head(self._backbone, self.network) if self._config.head else self.network

    @property
    def spread(self) -> Any:
        """Return the variable with the spread of each target; None where answers are not numbers."""
        return self.scale.get("head/logits/spread")

    @property
    def sums_over_replicas(self) -> bool:
        """Return whether the forward pass of a training step needs sums over all replicas."""
        return bool(self.statistics) and self._config.batch_norm != "train"

    def batch_statistics(
        self, total: batch_norm.Total, *, fused: bool = False
    ) -> AbstractContextManager[batch_norm.Moments]:
        """Let trained batch-norm layers normalize by the batch, as the policy says, within a training step."""
        names = {path.split("/")[1] for path in self.statistics}
        return batch_norm.collecting(names, total if self.sums_over_replicas else None, fused=fused)

    def moments_in_order(self, moments: batch_norm.Moments) -> list[Any]:
        """Return `rows * moment` for each of `statistics`, in its order."""
        return [moments.of[path.split("/")[1]][path.endswith(MOVING[1])] for path in self.statistics]

    def move_statistics(self, moments: Sequence[Any], skipped: Any, momentum: Any = None) -> None:
        """Move `statistics` toward these moments of the global batch, unless the step was skipped.

        To be called inside a replica. `momentum` replaces the momentum of each statistic.
        """
        for (path, variable), moment in zip(self.statistics.items(), moments, strict=True):
            share = self.momentum[path] if momentum is None else momentum
            batch_norm.move(variable, moment, momentum=share, skipped=skipped)

    @property
    def has_prefix(self) -> bool:
        """Return whether `prefix` computes anything."""
        return self._prefix is not None

    def on_features(self) -> Classifier:
        """Return the same model, which takes the outputs of `prefix` instead of images.

        Refuses (64) if the frozen part cannot be separated from the rest.
        """
        if self._prefix is None:
            raise Refusal(
                f"train_from '{self._train_from}' leaves no frozen part that ends in one tensor.",
                fix=f"train from a stage ({', '.join(self._backbone.stages)}) and pool none that ends below it, "
                "or set runtime.prefix_cache=off.",
                code=ExitCode.USAGE,
            )
        view = copy.copy(self)
        view._prefix = None
        return view

    @property
    def cut_at(self) -> str:
        """Return the name of the layer at which training begins: a part of what determines the prefix."""
        if self._first < len(self.network.layers):
            return str(self.network.layers[self._first].name)
        joined = self.stage_names if self._config.layers else []
        return " ".join([f"{self._config.pooling} pooling", *joined])

    def frozen_digest(self) -> str:
        """Return the sha256 over names, shapes and bytes of all frozen variables, to which a checkpoint refers."""
        return digest({path: v.numpy() for path, v in self.frozen.items()})

    def prefix_digest(self) -> str:
        """Return the same over the variables that determine `prefix`, however the rest is trained."""
        names = {layer.name for layer in self.network.layers[: self._first]}
        return digest({path: v.numpy() for path, v in self.frozen.items() if path.split("/")[1] in names})


def widest(views: Iterable[Classifier]) -> Classifier:
    """Return the view that trains the most; every other trains a subset of its variables."""
    return max(views, key=lambda view: len(view.moving))


def digest(arrays: Mapping[str, np.ndarray]) -> str:
    """Return the sha256 over (path, dtype, shape, bytes) of all arrays, in the order of their paths."""
    total = hashlib.sha256()
    for path in sorted(arrays):
        array = np.ascontiguousarray(arrays[path])
        total.update(f"{path} {array.dtype} {array.shape} ".encode())
        total.update(array.data if array.size else b"")
    return total.hexdigest()
