"""The sections of a config that do not decide the weights: evaluation, checkpoints, reports, safety, runtime."""

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from tl_dist.config.data import Function, PositiveInt, Section


class EvaluationConfig(Section):
    """When and how held-out examples are evaluated."""

    every_epochs: Annotated[float, Field(gt=0)] = 1.0
    """on the validation split, if there is one"""
    batch: PositiveInt | None = None
    """global batch of evaluation; default: global_batch"""
    views: tuple[Literal["flip", "dihedral"], ...] = ()
    """average the probabilities of a held-out example over these views; default: the unchanged image alone"""
    metrics: dict[Annotated[str, Field(pattern=r"^[A-Za-z]\w*$")], Function] = Field(default={})
    """figures of your own by name, such as {f2: my_metrics.py:f2}: functions of the targets of a split, class numbers
    [examples] or values [examples, targets], and of the answers of the model, probabilities or values [examples,
    classes]; the larger the better, where they decide"""


class BestConfig(Section):
    """Which evaluated weights a run ends with, and each stage passes on to the next."""

    metric: str
    """figure of the validation split: accuracy, balanced_accuracy, macro_f1, weighted_f1, mcc, roc_auc, log_loss or
    ece, and of grades quadratic_kappa or mae; with or without 'validation.' before it"""
    mode: Literal["auto", "max", "min"] = "auto"
    """auto: the lowest log_loss, ece or mae, the highest of the others"""


class CheckpointConfig(Section):
    """When checkpoints are saved, and which are kept."""

    every_steps: PositiveInt | None = None
    """default: by time alone"""
    every_s: Annotated[float, Field(gt=0)] = 300.0
    keep: PositiveInt = 2
    """newest checkpoints to keep; the best are kept as well"""
    best: BestConfig | None = None
    """end with the weights that are best on the validation split instead of the last ones"""
    average: Annotated[int, Field(ge=2)] | None = None
    """with best: end with the mean of this many best weights if that is better on the validation split than the best"""
    max_failed: PositiveInt = 3
    """failed saves in a row after which the run ends"""


class ReportConfig(Section):
    """How progress is shown and recorded."""

    every_steps: PositiveInt = 50
    """or every two seconds if that is sooner"""
    every_s: Annotated[float, Field(gt=0)] = 10.0
    """interval of plain lines if the output is not a terminal"""
    tensorboard: bool = True
    profile: tuple[Annotated[int, Field(ge=0)], PositiveInt] | None = None
    """for TensorBoard's profile page: trace rank 0 after the first of these steps up to the second, such as [20, 30]"""
    track: tuple[Literal["mlflow", "wandb"], ...] = ()
    """copy parameters, curves, figures and the report to these; 'tl-dist sync RUN' sends what could not be sent"""


class SafetyConfig(Section):
    """When a worker or a run counts as broken."""

    checksum_every_steps: PositiveInt = 100
    """compare the weights of all workers this often"""
    max_skipped: PositiveInt = 20
    """steps in a row skipped because of a non-finite gradient, after which the run ends"""
    heartbeat_s: Annotated[float, Field(gt=0)] = 5.0
    hang_s: Annotated[float, Field(gt=0)] = 120.0
    """a worker without progress for this long, after its first step, is ended"""
    first_step_s: Annotated[float, Field(gt=0)] = 1200.0
    """the same before its first step: import, build, compile"""
    alone_s: Annotated[float, Field(gt=0)] = 3600.0
    """the same for rank 0 while the others wait for it: a computed classifier, figures, a slow save"""
    max_restarts: Annotated[int, Field(ge=0)] = 3
    """restarts in a row without a newer checkpoint, after which the run ends"""


def _switch(value: object) -> object:
    return {True: "on", False: "off"}.get(value, value) if isinstance(value, bool) else value


Switch = Annotated[Literal["auto", "on", "off"], BeforeValidator(_switch)]
"""true and false mean on and off"""


class RuntimeConfig(Section):
    """How the computation is done on this machine."""

    threads: PositiveInt | None = None
    """CPU threads of each worker; default: the host's cores divided by its workers"""
    xla: Switch = "auto"
    """compile the frozen part, the forward and backward pass and the update; auto: on GPUs. The forward and backward
    pass are not compiled if batch norm sums over workers"""
    wire: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """number format in which gradients are sent between processes. auto: as they are computed if that moves fewer
    bytes, else float32: the sums lose no precision. bfloat16 (8 bits of mantissa) and float16 (11, with the loss
    scaled) halve the bytes and round each gradient: for networks slower than some 100 Gbit/s"""
    tf32: bool = True
    """compute float32 products on GPUs from Ampere on with 10 bits of mantissa, TensorFlow's default; false: all 23,
    slower"""
    prefix_cache: Literal["off", "on", "auto"] = "off"
    """on: all workers compute the outputs of the frozen part once, and keep them in features/ beside the runs; auto: if
    that at least halves the images that pass through it, and its output is small enough to keep"""
    decoded_images: Literal["off", "memory"] = "off"
    """memory: decode and resize every image once, into the memory of each worker"""
    recompute: bool = False
    """keep in memory only what passes between blocks of the trained part, and compute each block again for its gradient
    (Chen et al., arXiv 1604.06174): less memory, for a step that is up to a third longer"""
    deterministic: bool = False
    """TensorFlow's deterministic ops: runs repeat bit for bit on GPUs too (on CPUs they always do), at some cost in
    speed and without the split of the step time"""

    def compiles(self, *, on_gpu: bool) -> bool:
        """Return what `xla` means on this machine."""
        return on_gpu if self.xla == "auto" else self.xla == "on"
