"""Load the network of a run with its trained weights from its directory alone, which is only read, without its data.

`load_run` gives them to another run or to all workers of a tool; `loaded` adds what an evaluation depends on;
`restored` gives one process a Keras model.
"""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import keras
import tensorflow as tf

from tl_dist.config import Config, registry
from tl_dist.config import file as config_file
from tl_dist.config.file import differences
from tl_dist.config.training import FOR_GRADES, LOSSES
from tl_dist.models import lora, pruning, weights
from tl_dist.models.classifier import Classifier, digest
from tl_dist.models.network import assemble
from tl_dist.parallel import DataParallel, started
from tl_dist.refusal import ExitCode, Refusal
from tl_dist.runs import checkpoint, init_from
from tl_dist.runs.checkpoint_format import Checkpoint
from tl_dist.runs.directory import RunDir
from tl_dist.runs.identity import columns, identity_of
from tl_dist.scores import calibration, decision
from tl_dist.scores.calibration import Calibration
from tl_dist.scores.decision import Decision


@contextmanager
def process_as_it_was() -> Iterator[None]:
    """Let the body change global settings of the process and create private files; restore the settings after it."""
    policy, umask = keras.config.dtype_policy(), os.umask(0o077)
    tf32 = tf.config.experimental.tensor_float_32_execution_enabled()
    try:
        yield
    finally:
        os.umask(umask)
        tf.config.experimental.enable_tensor_float_32_execution(tf32)
        keras.config.set_dtype_policy(policy)


def start_tensorflow(cfg: Config, cores: int | None) -> int:
    """Set threads and determinism before TensorFlow touches a device; return the number of threads of this worker."""
    tf.config.experimental.enable_tensor_float_32_execution(cfg.runtime.tf32)
    if cores is None:
        return cfg.runtime.threads or len(os.sched_getaffinity(0))
    threads = cfg.runtime.threads or cores
    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(threads)
    keras.utils.set_random_seed(cfg.seed)
    if cfg.runtime.deterministic:
        tf.config.experimental.enable_op_determinism()
    return threads


@contextmanager
def pipelines_as_traced() -> Iterator[None]:
    """Start TensorFlow in the body, or after it, so that it does not optimize the functions of input pipelines.

    It reads the option for these once, when it starts. It would take half a second for each iterator over encoded
    images, which then read no faster.
    """
    tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": True})
    yield
    tf.config.list_logical_devices()  # starts it
    tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": False})


def start_worker(cfg: Config, cores: int | None) -> tuple[int, DataParallel]:
    """Start TensorFlow and the config's strategy; return the number of threads of this worker, and the strategy."""
    threads = start_tensorflow(cfg, cores)
    with nullcontext() if cores is None else pipelines_as_traced():
        return threads, started(registry.strategy(cfg.strategy).start(cfg), cfg.strategy)


def refuse_changed_code(run: RunDir, cfg: Config) -> None:
    """Refuse a run if code of other packages, of its data set or backbone, has changed since the run began."""
    identity = run.read_identity()
    used = registry.code_of_others(cfg)
    changes = differences(identity or {}, {"extensions": used} if used else {}, ("extensions",))
    if identity is not None and changes:
        raise Refusal(
            f"{run.identity_file}: code of other packages has changed since the run began: {'; '.join(changes)}.",
            fix="install the version that it began with, or start a new run with another name=NAME.",
            code=ExitCode.UNSAFE,
        )


def image_size_of(cfg: Config) -> int:
    """Return the side in pixels of the square images that the network takes."""
    return cfg.data.image_size or int(registry.backbone(cfg.network).input_size)


def untrained(cfg: Config, num_classes: int, *, adapters: bool = True) -> Classifier:
    """Return the classifier of a config with random weights; to be called in the strategy's scope.

    Without `adapters` a LoRA run's network has none, as the model that is made of the run.
    """
    return Classifier(
        registry.backbone(cfg.network),
        cfg.model if adapters else cfg.model.model_copy(update={"adapt": "all"}),
        image_size=image_size_of(cfg),
        num_classes=num_classes,
        seed=cfg.seed,
        carried=cfg.source is not None,
        loss=cfg.kind_of_head,
        parts=cfg.parts,
        recomputes=cfg.runtime.recompute,
    )


def load_run(
    run: RunDir,
    cfg: Config,
    at: str = "",
    *,
    parallel: DataParallel | None = None,
    precision: str | None = None,
) -> tuple[Classifier, Checkpoint | None]:
    """Return the classifier of `run`, whose config is `cfg`, with the weights of a checkpoint, and the checkpoint.

    The checkpoint is the one that the run ended with, or `at` as in `checkpoint.find`. `precision` is set for the
    process; None keeps its own. With `parallel` the classifier is the same on all workers, and rank 0 alone reads and
    returns the checkpoint. Refuses a run without a valid checkpoint, and one whose frozen weights cannot be loaded.
    """
    refuse_changed_code(run, cfg)
    if precision is not None:
        keras.config.set_dtype_policy(precision)
    saved = None
    with nullcontext() if parallel is None else parallel.scope():
        built = untrained(cfg, len(identity_of(run)["class_names"]), adapters=False)
        variables = {**built.moving, **built.frozen}
        if parallel is None or parallel.rank == 0:
            saved = _restore(run, cfg, built.pretrained, variables, at)
    if parallel is not None:
        parallel.broadcast(list(variables.values()))
    return built, saved


def carry(network: Any, variables: Mapping[str, Any], cfg: Config, class_names: Sequence[str] = ()) -> str:
    """Give `network` the backbone of `cfg.source.run`, or what `model.prune` keeps of it; return the digest of all.

    `variables` are the network's by path, `backbone/LAYER/VARIABLE`, and the head's, of these classes, if it is to be
    carried as well. Refuses what `load_run` refuses, and a head of other classes.
    """
    run, source = init_from.opened(cfg)
    heads = [path for path in variables if path.startswith("head/logits/")]
    places = columns(run, class_names, "source.run") if heads else []
    both = {source.kind_of_head, cfg.kind_of_head}
    apart = both & {*FOR_GRADES} and (len(both) > 1 or places != sorted(places))
    # Classes and grades share their last loss; labels and numbers share it with no other task.
    if heads and (apart or LOSSES[source.task][-1] != LOSSES[cfg.task][-1]):
        what = f"source.head transfers the head of {run.path}, whose task, loss or order of grades is another one."
        raise Refusal(what, fix="remove 'head' below 'source:', or use the same.", code=ExitCode.USAGE)
    if source.model.prune == cfg.model.prune:
        _restore(run, source, network, variables)
    else:
        weights_left = pruning.kept(load_run(run, source)[0], network)
        for path, variable in variables.items():
            variable.assign(weights_left[path])
    for path in heads if cfg.kind_of_head not in FOR_GRADES else ():
        variables[path].assign(variables[path].numpy()[..., places])
    return digest({path: v.numpy() for path, v in variables.items()})


def _restore(run: RunDir, cfg: Config, network: Any, variables: Mapping[str, Any], at: str = "") -> Checkpoint:
    """Set `variables` by path, the network's and maybe the head's, to a checkpoint of `run`; return the checkpoint.

    Averaged weights are taken where the run kept them, since it evaluated these (`Optimizer.begin`). Adapters of the
    run are merged into the kernels.
    """
    saved = checkpoint.find(run, at)
    if saved is None:
        raise Refusal(
            f"{run.path} has no checkpoint.", fix="train it first: tl-dist train CONFIG.", code=ExitCode.USAGE
        )
    if not variables.keys() <= saved.arrays.keys():  # a run that trains all variables also saves all of them
        if cfg.source is not None:  # `network` gets the backbone with which the run began
            carry(network, {path: v for path, v in variables.items() if path.startswith("backbone/")}, cfg)
        else:
            file = weights.resolve(cfg.model.weights, cfg.network, sha256=cfg.model.weights_sha256)
            if file is not None:
                weights.load(network, file)
    arrays = {path: saved.arrays.get(f"optimizer/ema/{path}", value) for path, value in saved.arrays.items()}
    for path, variable in variables.items():
        if path in arrays:
            variable.assign(arrays[path])
    frozen = {path: v.numpy() for path, v in variables.items() if path not in saved.arrays}
    if digest(frozen) != (run.read_identity() or {}).get("frozen_sha256"):
        what = f"the weights that run {run.path} kept frozen differ from '{cfg.model.weights}' here."
        fix = "bring back the file of its weights, or name another run."
        raise Refusal(what, fix=fix, code=ExitCode.UNSAFE)
    if not isinstance(cfg.model.adapt, str):
        lora.merge(variables, arrays, cfg.model.adapt)
    return saved


@dataclass(frozen=True)
class Loaded:
    """A trained model and all that its evaluation depends on; the same on every worker."""

    run: RunDir
    cfg: Config
    parallel: DataParallel
    threads: int
    model: Classifier  # with the weights that the run evaluates: their averages, where it keeps these
    class_names: Sequence[str]
    step: int
    sha256: str = ""  # of the checkpoint
    calibration: Calibration | None = None
    """of this checkpoint, where the run was calibrated: probabilities are computed with its temperature"""
    moving_statistics: bool = False
    """whether batch norm uses moving averages that the end of the run would have recomputed"""

    @property
    def temperature(self) -> float:
        """The number by which logits are divided; 1 for a run that was not calibrated."""
        return 1.0 if self.calibration is None else self.calibration.temperature

    @property
    def decision(self) -> Decision | None:
        """The rule of `tl-dist threshold` for this checkpoint, if the run has one."""
        return decision.of_checkpoint(self.run.path, self.sha256, self.temperature, len(self.class_names))

    @property
    def image_size(self) -> int:
        """The side in pixels of the square images that the model takes."""
        return image_size_of(self.cfg)


def loaded(
    run: RunDir,
    at: str = "",
    *,
    cores: int | None,
    overrides: Sequence[str] = (),
    precision: str | None = None,
) -> Loaded:
    """Load the model of a checkpoint, `at` as in `checkpoint.find`, on all workers; `cores` as for `setup`.

    It computes in `precision`, by default the run's own. Rank 0 reads the checkpoint, so that all workers have the same
    one even while the run is being trained. Refuses what `load_run` refuses.
    """
    cfg, identity = config_file.load(run.config_file, overrides), identity_of(run)
    threads, parallel = start_worker(cfg, cores)
    precision = precision or identity["precision"]
    built, saved = load_run(run, cfg, at, parallel=parallel, precision=precision)
    facts = None if saved is None else [saved.step, saved.sha256]
    step, sha256 = json.loads(parallel.gather(json.dumps(facts).encode())[0])
    model = built.trained_from(cfg.parts[-1])
    return Loaded(
        run,
        cfg,
        parallel,
        threads,
        model,
        identity["class_names"],
        step,
        sha256,
        calibration.of_checkpoint(run.path, sha256, cfg.evaluation.views),
        moving_statistics=bool(model.statistics) and (run.done is None or at.isdecimal()),
    )


@dataclass(frozen=True)
class Restored:
    """A trained model of one process, and what is known of it."""

    model: Any  # uint8 images [batch, size, size, 3] -> probabilities [batch, classes]
    config: Config
    class_names: Sequence[str]
    checkpoint: Checkpoint
    precision: str
    trained_in: str  # the precision of the run
    temperature: float | None  # by which the logits of a calibrated checkpoint are divided
    decision: Decision | None  # the rule of `tl-dist threshold`


def restored(
    run: RunDir,
    at: str = "",
    *,
    precision: str | None = None,
    dense_head: bool = True,
    calibrated: bool = True,
) -> Restored:
    """Restore the model of a checkpoint, `at` as in `checkpoint.find`, in `precision`, by default the run's own.

    `dense_head` as for `assemble`. With `calibrated=False` the caller has to apply the temperature. Refuses what
    `load_run` refuses.
    """
    cfg, identity = config_file.load(run.config_file), identity_of(run)
    class_names, precision = identity["class_names"], precision or identity["precision"]
    with process_as_it_was():
        built, saved = load_run(run, cfg, at, precision=precision)
        assert saved is not None
        fit = calibration.of_checkpoint(run.path, saved.sha256)
        temperature = None if fit is None else fit.temperature
        model = assemble(
            registry.backbone(cfg.network),
            cfg,
            {path: v.numpy() for path, v in built.moving.items() if path.startswith("head/")},
            built.network,
            dense_head=dense_head,
            temperature=temperature if calibrated else None,
        )
    rule = decision.of_checkpoint(run.path, saved.sha256, temperature or 1.0, len(class_names))
    return Restored(model, cfg, class_names, saved, precision, identity["precision"], temperature, rule)
