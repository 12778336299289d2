"""Compute heat maps of images with the model of a run: each worker explains its share, rank 0 saves them all."""

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from tl_dist.config import registry
from tl_dist.data.pipeline import plain
from tl_dist.data.undecodable import READ_ERRORS, naming_machine_faults, undecodable
from tl_dist.datasets import Source
from tl_dist.datasets.division import open_splits
from tl_dist.datasets.files import unlabelled
from tl_dist.models.attribution import attention_rollout, class_activation, integrated_gradients
from tl_dist.parallel import rows_of
from tl_dist.refusal import ExitCode, Refusal
from tl_dist.runs.directory import RunDir
from tl_dist.scores.explanations import Explained
from tl_dist.tools.explain import Request
from tl_dist.trainer.load_model import Loaded, loaded

_AT_ONCE = 8


def run(run: RunDir, request: Request, cores: int) -> ExitCode:
    """Explain the requested images."""
    # Integrated gradients are a sum that loses too much in lower precision.
    model = loaded(run, request.at, cores=cores, overrides=request.overrides, precision="float32")
    explain(model, request)
    return ExitCode.DONE


def explain(model: Loaded, request: Request) -> None:
    """Save the maps of all images to `request.into`; all workers must call it."""
    parallel = model.parallel
    examples: Sequence[int] = request.examples
    if request.files:
        source = unlabelled(request.files, model.class_names)
        examples = range(len(request.files))
    else:
        source = open_splits(model.cfg.data)[0][request.split]
    share = rows_of(parallel.rank, parallel.world_size, len(examples))
    mine = slice(share.start, share.stop)
    own_examples = np.array(examples, np.int64)[mine]
    own_classes = np.array(request.classes or [-1] * len(examples), np.int32)[mine]
    with parallel.naming_lost_peers(), naming_machine_faults("an image"):
        try:
            own = explained(model, source, own_examples, own_classes, request)
        except READ_ERRORS:
            faults = undecodable(source, own_examples.tolist(), model.threads)
            if not faults:
                raise
            index, fault = next(iter(faults.items()))
            fix, code = "leave it out, or restore the file.", ExitCode.DATA
            raise Refusal(f"{source.ids[index]} {fault.reason}.", fix=fix, code=code) from None
        content = io.BytesIO()
        np.savez(content, **own._asdict())
        parts = [np.load(io.BytesIO(part)) for part in parallel.gather(content.getvalue())]
    if parallel.rank == 0:
        arrays = [np.concatenate([part[name] for part in parts]) for name in Explained._fields]
        Explained(*arrays).save(Path(request.into or ""))


def explained(
    model: Loaded, source: Source, examples: NDArray[np.int64], classes: NDArray[np.int32], request: Request
) -> Explained:
    """Explain examples of a source in this process alone; a class below 0 stands for the one that is predicted."""
    size, num = model.image_size, len(examples)
    read = plain(source, size, model.cfg.data.square)
    activation = _heat_map(model, request.cam)
    gradients = integrated_gradients(model.model)
    images = np.empty((num, size, size, 3), np.uint8)
    logits = np.empty((num, len(model.class_names)), np.float32)
    cam = np.empty((num, size, size), np.float32)
    for first in range(0, num, _AT_ONCE):
        rows = slice(first, first + _AT_ONCE)
        positions = np.resize(examples[rows], _AT_ONCE)  # the same shape each time: it is compiled once
        with tf.device("CPU:0"):
            at = tf.constant(positions, tf.int64)
            part = read(at, at).images.numpy()
        count = len(examples[rows])
        images[rows] = part[:count]
        targets = np.resize(classes[rows], _AT_ONCE)
        if (targets < 0).any():
            predicted = model.model(part).numpy().argmax(axis=1)
            targets = np.where(targets < 0, predicted, targets).astype(np.int32)
        maps, outputs = activation(part, targets)
        cam[rows], classes[rows] = maps.numpy()[:count], targets[:count]
        logits[rows] = outputs.numpy()[:count] / model.temperature
    integrated = np.empty((num if request.integrated else 0, size, size), np.float32)
    gaps = np.empty(len(integrated), np.float32)
    for k in range(len(integrated)):
        integral = gradients(images[k], int(classes[k]))
        integrated[k], gaps[k] = integral.attributions, integral.gap
    return Explained(images, logits, classes, cam, integrated, gaps)


def _heat_map(model: Loaded, kind: str) -> Callable[[Any, Any], tuple[Any, Any]]:
    settings, record = model.cfg.model, registry.backbone(model.cfg.network)
    if kind == "rollout":
        rollout, top = attention_rollout(model.model, record, settings.pooling), [*record.stages][-1]
        if rollout is not None and top in (settings.layers or (top,)):
            return rollout
        fix = "use --method layercam."
        what = f"{record.name} is none of tl_dist's vision transformers"
        if rollout is not None:
            what = f"run '{model.run.name}' does not pool '{top}'"
        raise Refusal(f"{what}: rollout follows attention through all blocks.", fix=fix, code=ExitCode.USAGE)
    if settings.pooling == "token":
        what = f"run '{model.run.name}' reads the class token alone, which is at no place of an image."
        fix = "use --method rollout, or train it with pooling 'average' or 'both'."
        raise Refusal(what, fix=fix, code=ExitCode.USAGE)
    return class_activation(model.model, "gradcam" if kind == "gradcam" else "layercam")
