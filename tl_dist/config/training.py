"""The sections of a config about the update rule, the stages of a run, and where a backbone comes from."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from tl_dist.config.data import DataConfig
from tl_dist.config.section import RUN_NAME, Fraction, PositiveInt, Section


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
