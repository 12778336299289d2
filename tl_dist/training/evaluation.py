"""Evaluate a split exactly: the compiled evaluation step, and the loop over all batches and workers."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tl_dist.config import Config, LossConfig
from tl_dist.config.training import LOSSES
from tl_dist.data.batch import Batch
from tl_dist.models.classifier import Classifier
from tl_dist.parallel import DataParallel, rows_of
from tl_dist.refusal import ExitCode, Refusal
from tl_dist.scores.evaluation import Evaluation
from tl_dist.training.loop import MAX_CHUNK_S
from tl_dist.training.losses import Objective, counted
from tl_dist.training.step import compiled
from tl_dist.training.target_losses import TargetObjective

MAX_LOGITS = 1 << 26  # of a split that rank 0 gathers: 256 MiB, ImageNet's 50,000 x 1,000 among them
PIECE_BYTES = 8 << 20  # of logits that are exchanged at a time


def objective_of(cfg: Config, model: Classifier, num_classes: int) -> Objective | TargetObjective:
    """Return the loss of a task that evaluations show: without weights, smoothing and focus."""
    if "cross_entropy" in LOSSES[cfg.task]:
        return Objective(num_classes, cfg.global_batch)
    name = "binary_cross_entropy" if cfg.loss.name == "asymmetric" else cfg.kind_of_head
    plain = LossConfig(name=name, delta=cfg.loss.delta)
    return TargetObjective(plain, num_classes, cfg.global_batch, spread=model.spread)


def evaluation_step(
    model: Classifier,
    objective: Objective | TargetObjective,
    parallel: DataParallel,
    *,
    global_batch: int,
    views: int = 1,
    features: bool = False,
    labelled: bool = True,
) -> Callable[[Any], dict[str, Any]]:
    """Return `evaluate_batch(batches)`, which returns this process's sums over its rows of the next batch.

    `examples` and, if they are `labelled`, `loss` and what the objective `counts` leave padding out; `seen` sums a hash
    of the index of each example, so that the total proves that each was seen once. `logits` [global_batch, classes]
    holds this process's rows at their places in the global batch, and 0 elsewhere.

    With several `views` images are [rows, views, ...], and `logits` what the objective makes of all. With
    `features` the result also has `features`, laid out like `logits`: the last layer's float32 input for view 0.
    """

    def in_place(rows: Any, batch: Batch) -> Any:
        """Scatter the rows of real examples to their places in the global batch; 0 elsewhere."""
        values = tf.where(counted(batch)[:, None] > 0, rows, 0.0)
        places = (batch.positions % global_batch)[:, None]
        return tf.scatter_nd(places, values, [global_batch, rows.shape[1]])

    def replica_step(batch: Batch, step: Any) -> dict[str, Any]:
        outputs: dict[str, Any] = {}
        if features:
            logits, outputs["features"] = model.with_features(batch.images if views == 1 else batch.images[:, 0])
        if views > 1:
            logits = objective.over_views(_each_view(model, batch.images, views, objective.num_classes))
        elif not features:
            logits = model(batch.images)
        outputs["logits"], real = logits, counted(batch)
        judged: dict[str, Any] = {}
        if labelled:
            losses = tf.minimum(objective.losses(logits, batch), objective.most)
            judged = {"loss": tf.cast(tf.reduce_sum(losses), tf.float64), **objective.counts(logits, batch)}
        return {
            **judged,
            "examples": tf.cast(tf.reduce_sum(real), tf.float64),
            "seen": tf.reduce_sum(tf.cast(example_hash(batch.positions), tf.float64) * tf.cast(real, tf.float64)),
            **{name: in_place(rows, batch) for name, rows in outputs.items()},
        }

    @compiled
    def evaluate_batch(batches: Any) -> dict[str, Any]:
        return parallel.run(replica_step, batches.get_next(), tf.constant(0, tf.int64))

    return evaluate_batch


def _each_view(model: Classifier, images: Any, views: int, num_classes: int) -> Any:
    return tf.map_fn(
        lambda view: model(tf.gather(images, view, axis=1)),
        tf.range(views),
        fn_output_signature=tf.TensorSpec([images.shape[0], num_classes], tf.float32),
        parallel_iterations=1,  # so that only one view at a time is in memory
    )


def example_hash(index: Any) -> Any:
    """Return an integer below 2**31 for each index of a tensor or array (Knuth's multiplicative hash)."""
    return (index * 2654435761) % 2147483647


def evaluate(
    split: str,
    num_examples: int,
    num_batches: int,
    batches: Iterator[Any],
    evaluate_batch: Callable[[Any], dict[str, Any]],
    parallel: DataParallel,
    *,
    stop_requested: Callable[[], bool],
) -> Evaluation | None:
    """Evaluate all `num_examples`, each counted once for any number of workers; return None if a stop was requested.

    Refuses a result that does not count exactly N of N examples: the sum of hashes of the indices that were seen must
    be the sum over all indices.
    """
    sums: dict[str, Any] = {}
    gathered: _Logits | None = None
    interval, next_check, checked = 1, 1, time.monotonic()
    for done in range(1, num_batches + 1):
        outputs = evaluate_batch(batches)
        logits = outputs.pop("logits").numpy()
        if num_examples * logits.shape[1] <= MAX_LOGITS:
            gathered = gathered or _Logits(parallel, num_batches, *logits.shape)
            gathered.add(logits)
        for key, value in outputs.items():
            # On the device: for 1,000 classes the confusion matrix has 8 MB.
            sums[key] = sums[key] + value if key in sums else value
        # Workers look at the stop flag after the same batch, since the interval comes from a total.
        if done == next_check:
            took = parallel.total({"s": time.monotonic() - checked, "stop": float(stop_requested())})
            if took["stop"] > 0:
                return None
            per_batch_s = float(took["s"]) / parallel.world_size / interval
            interval = max(1, int(MAX_CHUNK_S / max(per_batch_s, 1e-3)))
            next_check, checked = done + interval, time.monotonic()
    totals = parallel.total({key: value.numpy() for key, value in sums.items()})
    seen, expected = float(totals["seen"]), float(example_hash(np.arange(num_examples)).sum())
    if round(float(totals["examples"])) != num_examples or seen != expected:
        raise Refusal(
            f"evaluation of '{split}' saw {round(float(totals['examples']))} of {num_examples} examples, "
            "or not each once.",
            fix="report this as a bug: the figures cannot be trusted.",
            code=ExitCode.INTERNAL,
        )
    confusion = np.rint(totals["confusion"]).astype(np.int64) if "confusion" in totals else None
    correct = float(totals.get("correct", 0.0)) if confusion is None else np.trace(confusion)
    return Evaluation(
        split=split,
        num_examples=num_examples,
        num_correct=None if math.isnan(correct) else round(correct),
        mean_loss=float(totals["loss"]) / num_examples,
        confusion=confusion,
        logits=None if gathered is None else gathered.of_all(num_examples),
    )


class _Logits:
    """Gather the logits of a split on rank 0, a few batches at a time.

    Each row comes unchanged from one worker, so any number of workers gathers the same bits.
    """

    def __init__(self, parallel: DataParallel, num_batches: int, batch: int, classes: int) -> None:
        self._parallel = parallel
        self._share = rows_of(parallel.rank, parallel.world_size, batch)
        self._at_once = max(1, PIECE_BYTES // (4 * batch * classes))  # batches; the same on every worker
        self._own: list[np.ndarray] = []
        self._done = 0
        self._all = np.empty((num_batches if parallel.rank == 0 else 0, batch, classes), np.float32)

    def add(self, logits: np.ndarray) -> None:
        """Add the logits of the next batch, [batch, classes]; only this worker's rows are used."""
        self._own.append(logits[self._share.start : self._share.stop].copy())
        if len(self._own) == self._at_once:
            self._exchange()

    def of_all(self, num_examples: int) -> np.ndarray | None:
        """Return all logits, float32 [examples, classes], without padding, on rank 0; None on other ranks."""
        if self._own:
            self._exchange()
        return None if self._parallel.rank else self._all.reshape(-1, self._all.shape[-1])[:num_examples]

    def _exchange(self) -> None:
        shares = self._parallel.gather(np.stack(self._own).tobytes())
        batches = slice(self._done, self._done + len(self._own))
        if self._parallel.rank == 0:
            put_together(shares, self._all[batches])
        self._done, self._own = batches.stop, []


def put_together(shares: Sequence[bytes], whole: np.ndarray) -> None:
    """Fill `whole`, float32 [batches, batch, classes], with the workers' rows, `shares` in the order of their ranks."""
    for rank, rows in enumerate(shares):
        share = rows_of(rank, len(shares), whole.shape[1])
        place = whole[:, share.start : share.stop]
        place[:] = np.frombuffer(rows, np.float32).reshape(place.shape)
