"""The sections of a config that decide no weights: evaluation, checkpoints, reports, safety, the runtime."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from tl_dist.config.section import PositiveInt, Section


class EvaluationConfig(Section):
    every_epochs: Annotated[float, Field(gt=0)] = 1.0
    """on the validation split, where there is one"""
    batch: PositiveInt | None = None
    """global batch of evaluation; default: global_batch"""
    views: tuple[Literal["flip", "dihedral"], ...] = ()
    """held-out examples are evaluated by their mean probabilities over these views; default: the image as it is"""


class BestConfig(Section):
    """Which of its evaluated weights a run ends with, and each stage hands on."""

    metric: str
    """of the validation split: accuracy, balanced_accuracy, macro_f1, weighted_f1, mcc, roc_auc, log_loss or ece; with
    or without 'validation.' before it"""
    mode: Literal["auto", "max", "min"] = "auto"
    """auto: the lowest log_loss or ece, the highest of the others"""


class CheckpointConfig(Section):
    every_steps: PositiveInt | None = None
    """default: by time alone"""
    every_s: Annotated[float, Field(gt=0)] = 300.0
    keep: PositiveInt = 2
    """the newest; the best are kept besides"""
    best: BestConfig | None = None
    """end with the weights that validate best, in place of the last"""
    average: Annotated[int, Field(ge=2)] | None = None
    """with best: the mean of this many of the best, where that validates better than the best of them"""
    max_failed: PositiveInt = 3
    """failed saves in a row before the run ends"""


class ReportConfig(Section):
    every_steps: PositiveInt = 50
    """or every two seconds, where that is sooner"""
    every_s: Annotated[float, Field(gt=0)] = 10.0
    """a plain line this often when the output is not a terminal"""
    tensorboard: bool = True
    profile: tuple[Annotated[int, Field(ge=0)], PositiveInt] | None = None
    """for TensorBoard's profile page: trace rank 0 after the first of these steps and up to the second, as [20, 30]"""
    track: tuple[Literal["mlflow", "wandb"], ...] = ()
    """copy parameters, curves, figures and the report to these; what could not be sent is sent by 'tl-dist sync RUN'"""


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
    """attempts in a row without a newer checkpoint"""


def _switch(value: object) -> object:
    return {True: "on", False: "off"}.get(value, value) if isinstance(value, bool) else value


Switch = Annotated[Literal["auto", "on", "off"], BeforeValidator(_switch)]
"""true and false, as such a key was once written, are on and off"""


class RuntimeConfig(Section):
    threads: PositiveInt | None = None
    """CPU threads of each worker; default: the host's cores divided by its workers"""
    xla: Switch = "auto"
    """compile the frozen part, the forward and backward pass and the update; auto: on GPUs. Where batch norm sums over
    workers the forward and backward pass stay as they are"""
    wire: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """number format in which gradients travel between processes. auto: as they are computed where that moves
    fewer bytes, else float32: sums lose nothing by it. bfloat16 (8 bits of mantissa) and float16 (11, with the loss
    scaled) halve the bytes and round each gradient: for networks slower than some 100 Gbit/s"""
    tf32: bool = True
    """float32 products on GPUs from Ampere on by 10 bits of mantissa, as TensorFlow has it; off: all 23, and slower"""
    prefix_cache: Literal["off", "on", "auto"] = "off"
    """on: the outputs of the frozen part are computed once, by all workers, and kept in features/ beside the runs;
    auto: where that at least halves the images that go through it, and its output is small enough to keep"""
    decoded_images: Literal["off", "memory", "disk"] = "off"
    """decode and resize every image once: into the memory of each worker, or into decoded/ beside the runs"""
    deterministic: bool = False
    """TensorFlow's deterministic ops: bit-identical repetition on GPUs too (CPUs have it anyway), at some cost in
    speed and without the split of the step time"""

    def compiles(self, *, on_gpu: bool) -> bool:
        """What `xla` means on this machine."""
        return on_gpu if self.xla == "auto" else self.xla == "on"
