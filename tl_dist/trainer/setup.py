"""Build what one worker needs for a run from the run directory, in the order in which it must be built."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from tl_dist import tasks
from tl_dist.config import Config, code
from tl_dist.config import file as config_file
from tl_dist.config.stages import Stage, plan
from tl_dist.data import decoded, pipeline
from tl_dist.data.order import ByClass, Order
from tl_dist.datasets import Splits
from tl_dist.features import views as feature_views
from tl_dist.features.stored import FeatureSet
from tl_dist.models import classifier, heads, lora, precision, weights
from tl_dist.models.classifier import MOVING, Classifier
from tl_dist.models.weights import WeightsFile
from tl_dist.parallel import DataParallel, rows_of
from tl_dist.parallel.replicas import gpu_of_process
from tl_dist.refusal import ExitCode, Refusal
from tl_dist.runs import checkpoint
from tl_dist.runs.checkpoint_reader import LAST
from tl_dist.runs.directory import RunDir
from tl_dist.trainer import examples, load_model
from tl_dist.trainer.examples import Examples
from tl_dist.trainer.load_model import image_size_of, refuse_changed_code, start_worker
from tl_dist.training import losses, monitor, optim
from tl_dist.training.losses import Distillation, Objective
from tl_dist.training.optim import Optimizer
from tl_dist.training.own_loss import OwnLoss
from tl_dist.training.state import TrainState
from tl_dist.training.target_losses import TargetObjective, pos_weights


class StopRequested(Refusal):
    """The user or Slurm has asked the run to stop; raised by all workers at the same point."""

    def __init__(self, what: str = "the work") -> None:
        fix = "run the same command again."
        super().__init__(f"{what} was stopped.", fix=fix, code=ExitCode.REQUEUE)


@dataclass(frozen=True)
class Setup:
    """All that one attempt works with, the same on every worker but for `parallel.rank`.

    Variables and `state` change as the run proceeds; no field is ever replaced.
    """

    run: RunDir
    cfg: Config
    parallel: DataParallel
    threads: int
    precision: str
    examples: Examples
    order: Order
    stages: Sequence[Stage]
    model: Classifier  # takes images; trains every variable that any stage trains
    optimizer: Optimizer  # of all stages
    statistics: Mapping[str, NDArray[Any]]  # initial statistics of batch norm
    weights: WeightsFile | None  # pretrained
    origin_sha256: str | None  # digest of the backbone that was carried over from another run
    state: TrainState
    on_gpu: bool = False

    @property
    def splits(self) -> Splits:
        """The readable examples of each split."""
        return self.examples.splits

    @property
    def image_size(self) -> int:
        """The side in pixels of the square images that the model takes."""
        return image_size_of(self.cfg)

    @property
    def is_first(self) -> bool:
        """Whether this is rank 0, which alone writes."""
        return self.parallel.rank == 0

    @property
    def steps_per_epoch(self) -> float:
        """Steps per epoch, not rounded: an epoch may end within a batch."""
        return self.splits["train"].num_examples / self.cfg.global_batch

    @property
    def total_steps(self) -> int:
        """Steps of all stages."""
        return self.stages[-1].end

    @property
    def stages_left(self) -> list[Stage]:
        """The stages with steps left, or whose best the next stage begins with; else the last, to be evaluated."""
        step, decided = self.state.step, self.state.history.get(monitor.KEY, {}).get("stage")
        left = [s for s in self.stages if s.end > step or (s.end == step and s.number == decided)]
        return left or [self.stages[-1]]

    def beat(self, phase: str, *, alone: bool = False) -> None:
        """Write a heartbeat with the phase. All workers must write the same phases: their heartbeats are compared.

        With `alone`, rank 0 alone works in this phase, for at most `safety.alone_s`, while the others wait.
        """
        patience_s = self.cfg.safety.alone_s if alone and self.is_first else 0.0
        self.run.beats.beat(self.parallel.rank, phase, self.state.step, patience_s)

    def prepare_for(self, phase: str) -> None:
        """Write a heartbeat before a phase as long as the first step: all workers compile, or read large files."""
        self.run.beats.beat(self.parallel.rank, phase, self.state.step, self.cfg.safety.first_step_s)

    def stop_requested(self, phase: str, *, alone: bool = False) -> bool:
        """Return whether rank 0 sees a stop file; the caller shares that with the other workers by a total."""
        self.beat(phase, alone=alone)
        return self.is_first and self.run.stop_requested()

    def upcoming(self, num_steps: int) -> Iterator[int]:
        """Yield the training examples of this worker in the next `num_steps` steps, in the order of reading."""
        rows = np.array(rows_of(self.parallel.rank, self.parallel.world_size, self.order.global_batch))
        for step in range(self.state.step, self.state.step + num_steps):
            yield from self.order.index(self.order.positions(step, rows)).numpy().tolist()

    def objective(self) -> Objective | TargetObjective:
        """Return the loss of training."""
        cfg, loss, train, distill = self.cfg, self.cfg.loss, self.splits["train"], self.cfg.distill
        mixes, sizes = cfg.data.augmentation.mixes, (train.num_classes, cfg.global_batch)
        if not tasks.one_class_each(cfg):
            of_labels = pos_weights(loss, train.truth, train.annotations.weights)
            self._refuse_number_of(of_labels, "loss.pos_weight", "label")
            return TargetObjective(loss, *sizes, mixes, of_labels, self.model.spread, own=self.own_loss())
        weights = train.annotations.weights
        return Objective(
            *sizes,
            loss.label_smoothing,
            self.class_weights(train.labels, weights),
            mixed=mixes or cfg.data.soft_labels,
            distillation=Distillation(distill.temperature, distill.weight) if distill else None,
            gamma=loss.gamma if loss.name == "focal" else 0.0,
            adjustment=losses.logit_adjustment(train.labels, train.num_classes, weights, loss.tau)
            if loss.name == "logit_adjusted"
            else None,
            own=self.own_loss(),
            cumulative=loss.name == "coral",
        )

    def own_loss(self) -> OwnLoss | None:
        """Return the loss that the user has written, tried on rows of the training split; None without one."""
        name, train = self.cfg.loss.name, self.splits["train"]
        if not code.is_function(name):
            return None
        self.beat(f"trying loss '{code.short(name)}'")
        own = OwnLoss(name, code.load(name, f"loss '{code.short(name)}'"), self.model.as_given)
        own.check(train.truth[np.linspace(0, train.num_examples - 1, 6).astype(int)], train.num_classes)
        return own

    def _refuse_number_of(self, weights: Sequence[float] | None, key: str, what: str) -> None:
        """Refuse (64) other than one weight for each class or label."""
        train = self.splits["train"]
        if weights is not None and len(weights) != train.num_classes:
            numbers = f"{key} has {len(weights)} numbers for {train.num_classes} {what}{'e' * (what == 'class')}s."
            fix = f"give one for each of {', '.join(train.class_names)}."
            raise Refusal(numbers, fix=fix, code=ExitCode.USAGE)

    def class_weights(
        self, labels: NDArray[np.int32] | Sequence[int], weights: NDArray[np.floating] | None
    ) -> list[float] | None:
        """Return the loss weight of each class that the config asks for, of these examples; None without weights."""
        loss, train = self.cfg.loss, self.splits["train"]
        wanted = loss.class_weights
        self._refuse_number_of(wanted if isinstance(wanted, tuple) else None, "loss.class_weights", "class")
        return losses.class_weights(wanted, labels, train.num_classes, weights, beta=loss.beta)


@dataclass(frozen=True)
class TrainFeatures:
    """The features of the training split."""

    found: FeatureSet
    rows: np.ndarray | None  # the rows of the split in the set; None: all

    def values(self) -> np.ndarray:
        """Return them as float32 [examples, views, features]."""
        return self.found.array() if self.rows is None else self.found.array()[self.rows]


@dataclass(frozen=True)
class StageInput:
    """The model that a stage trains, and the readers of its input: images, or features computed from them."""

    stage: Stage
    model: Classifier
    read_train: pipeline.Read
    read: Mapping[str, pipeline.Read]  # how evaluation reads each split
    features: TrainFeatures | None = None  # where features are read instead of images
    look_up: pipeline.LookUp | None = None
    """the teacher's logits of training examples, where they are computed once"""
    teacher: Callable[[Any], Any] | None = None
    """images -> logits, where the teacher is computed in each step"""


def from_images(setup: Setup, stage: Stage) -> StageInput:
    """Return the input of a stage that reads images; training images are augmented."""
    cfg, size = setup.cfg, setup.image_size
    data, square = cfg.data, cfg.data.square
    return StageInput(
        stage,
        setup.model.trained_from(stage.train_from),
        pipeline.augmented(setup.splits["train"], data.augment, cfg.seed, size, data.augmentation, square),
        {
            name: feature_views.in_views(pipeline.plain(source, size, square), cfg.evaluation.views)
            for name, source in setup.splits.items()
        },
    )


def setup(run: RunDir, *, cores: int | None, overrides: Sequence[str] = ()) -> Setup:
    """Build all that one attempt needs, as the run's config says. Must be the first use of TensorFlow in a worker.

    A worker computes on `cores`; None stands for a process that other code uses, too, such as a notebook, in which
    TensorFlow stays as it was started.
    """
    cfg = config_file.load(run.config_file, overrides)
    refuse_changed_code(run, cfg)
    threads, parallel = start_worker(cfg, cores)
    run.beats.space(cfg.safety.heartbeat_s)
    readable = examples.readable(cfg, run, parallel, threads)
    computed_in = precision.resolve(cfg.precision)
    on_gpu = gpu_of_process() is not None
    if on_gpu and cores is not None:
        tf.config.optimizer.set_experimental_options(precision.gpu_graph_options(computed_in))
    data = cfg.data
    block = data.shuffle_block if data.shuffle == "blocks" else 0
    train = readable.splits["train"]
    by_class = ByClass.of(train.labels) if data.balance else None
    order = Order(cfg.seed, train.num_examples, cfg.global_batch, block, data.shuffle_window, by_class)
    tasks.of(cfg).check(train.class_names, data.grades, train.truth)
    run_stages = plan(cfg, order.steps)
    model, optimizer, file, origin_sha256 = _build(cfg, run_stages, readable.splits, parallel, computed_in)
    statistics = moving_statistics(model)
    if cfg.runtime.decoded_images != "off":
        with readable.naming_bad("train", lambda: range(readable.splits["train"].num_examples)):
            splits = decoded.in_memory(readable.splits, image_size_of(cfg), threads, square=cfg.data.square)
        readable = replace(readable, splits=splits)
    state = TrainState({**model.moving, **optimizer.variables})
    return Setup(
        run, cfg, parallel, threads, computed_in, readable, order, run_stages,
        model, optimizer, statistics, file, origin_sha256, state, on_gpu,
    )  # fmt: skip


def restore(setup: Setup, log: Callable[[str], None], at: str = LAST) -> checkpoint.Checkpoint | None:
    """Set the state of this process to a checkpoint, `at` as in `checkpoint.find`; return it, or None without one.

    `log` gets a line for each damaged checkpoint that was passed over.
    """
    saved = checkpoint.find(setup.run, at, expected=setup.state.layout, log=log)
    if saved is not None:
        setup.state.resume(saved.arrays, step=saved.step, history=saved.meta["history"])
    return saved


def moving_statistics(model: Classifier) -> dict[str, NDArray[Any]]:
    """Return a host copy of the moving statistics of every batch-norm layer, by path."""
    variables = {**model.moving, **model.frozen}
    return {path: np.array(v.numpy()) for path, v in variables.items() if path.endswith(MOVING)}


def _build(
    cfg: Config, run_stages: Sequence[Stage], splits: Splits, parallel: DataParallel, computed_in: str
) -> tuple[Classifier, Optimizer, WeightsFile | None, str | None]:
    """Return the model, its optimizer, the file of its weights, and the digest of the backbone of another run."""
    keras.config.set_dtype_policy(computed_in)
    file = origin_sha256 = None
    if cfg.source is None:
        file = weights.resolve(cfg.model.weights, cfg.network, sha256=cfg.model.weights_sha256)
    with parallel.scope():
        model = load_model.untrained(cfg, splits["train"].num_classes)
        views = [model.trained_from(stage.train_from) for stage in run_stages]
        whole = classifier.widest(views)
        if cfg.model.adapt != "all" and not any(path.startswith("backbone/") for path in whole.trainable):
            what = f"no layer of {cfg.model.backbone} that is trained has what adapt '{cfg.model.adapt}' trains."
            raise Refusal(what, fix="train more of it with model.train_from, or remove 'adapt'.", code=ExitCode.USAGE)
        for view in views:
            view.refuse_frozen_random()
        heads.standardize(whole.scale, splits["train"].truth)
        with whole.keeping_new():
            if file is not None:
                weights.load(model.pretrained, file)
            if cfg.source is not None:
                every = {**whole.moving, **whole.frozen}
                left_out = () if cfg.source.head else ("head/",)
                own = [path for path in every if path.startswith(left_out) or path.endswith(lora.NAMES)]
                carried = {path: v for path, v in every.items() if path not in own}
                origin_sha256 = load_model.carry(model.network, carried, cfg, splits["train"].class_names)
        optimizer = Optimizer(
            cfg.optimizer,
            whole.trainable,
            # Values that are computed or sent in float16 must stay within its range.
            scale_loss=computed_in == "mixed_float16" or cfg.runtime.wire == "float16",
            stages=[
                optim.rules(stage.optimizer, view.trainable, model.depths, model.new)
                for stage, view in zip(run_stages, views, strict=True)
            ],
        )
    return whole, optimizer, file, origin_sha256
