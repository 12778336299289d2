"""Heat maps of images by the model of a run: each worker explains its share, and rank 0 leaves all of them."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from tl_dist.data.pipeline import plain
from tl_dist.data.undecodable import READ_ERRORS, naming_machine_faults, undecodable
from tl_dist.datasets import Source, decoded_by
from tl_dist.datasets.division import open_splits
from tl_dist.datasets.files import unlabelled
from tl_dist.models.attribution import class_activation, integrated_gradients
from tl_dist.refusal import ExitCode, Refusal
from tl_dist.runs.directory import RunDir
from tl_dist.scores.explanations import Explained
from tl_dist.tools.explain import Request
from tl_dist.trainer.load_model import Loaded, loaded

_AT_ONCE = 8


def run(run: RunDir, request: Request, cores: int) -> ExitCode:
    """Answer a request with the model of a run."""
    # A sum of gradients needs all its digits.
    model = loaded(run, request.at, cores=cores, overrides=request.overrides, precision="float32")
    explain(model, request)
    return ExitCode.DONE


def explain(model: Loaded, request: Request) -> None:
    """Leave the maps in `request.into`; call it on all workers."""
    parallel = model.parallel
    examples: Sequence[int] = request.examples
    if request.files:
        source = unlabelled(request.files, model.class_names, model.decoding)
        examples = range(len(request.files))
    else:
        source = _split_of(model, request.split)
    mine = slice(parallel.rank, None, parallel.world_size)
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
        packed = io.BytesIO()
        np.savez(packed, **own._asdict())
        shares = parallel.gather(packed.getvalue())
    if parallel.rank == 0:
        _in_turn(shares).save(Path(request.into or ""))


def _split_of(model: Loaded, split: str) -> Source:
    """The split, decoded by the run's own version of the rule."""
    splits = open_splits(model.cfg.data)[0]
    if split not in splits:
        raise Refusal(
            f"'{model.cfg.data.name}' has no split '{split}'.",
            fix=f"use one of {', '.join(splits)}.",
            code=ExitCode.USAGE,
        )
    return decoded_by(splits, model.decoding, splits)[split]


def explained(
    model: Loaded, source: Source, examples: NDArray[np.int64], classes: NDArray[np.int32], request: Request
) -> Explained:
    """Of these examples of a source, on this process alone; of a class below 0, the one that is predicted."""
    size, num = model.image_size, len(examples)
    read = plain(source, size, model.cfg.data.kept_fraction)
    activation = class_activation(model.model, "gradcam" if request.cam == "gradcam" else "layercam")
    gradients = integrated_gradients(model.model)
    images = np.empty((num, size, size, 3), np.uint8)
    logits = np.empty((num, len(model.class_names)), np.float32)
    cam = np.empty((num, size, size), np.float32)
    for first in range(0, num, _AT_ONCE):
        rows = slice(first, first + _AT_ONCE)
        positions = np.resize(examples[rows], _AT_ONCE)  # the same shape each time: it is compiled once
        with tf.device("CPU:0"):
            at = tf.constant(positions, tf.int64)
            part = read.finish(read.batch(at, at)[0], at).numpy()
        kept = len(examples[rows])
        images[rows] = part[:kept]
        wanted = np.resize(classes[rows], _AT_ONCE)
        if (wanted < 0).any():
            wanted = np.where(wanted < 0, model.model(part).numpy().argmax(axis=1), wanted).astype(np.int32)
        maps, said = activation(part, wanted)
        cam[rows], classes[rows] = maps.numpy()[:kept], wanted[:kept]
        logits[rows] = said.numpy()[:kept] / model.temperature
    whole = np.empty((num if request.integrated else 0, size, size), np.float32)
    gaps = np.empty(len(whole), np.float32)
    for k in range(len(whole)):
        found = gradients(images[k], int(classes[k]))
        whole[k], gaps[k] = found.attributions, found.gap
    return Explained(images, logits, classes, cam, whole, gaps)


def _in_turn(shares: list[bytes]) -> Explained:
    """The shares of all workers in the order of the request, which dealt them out one by one."""
    parts = [dict(np.load(io.BytesIO(share))) for share in shares]
    joined = {}
    for name in Explained._fields:
        total = sum(len(part[name]) for part in parts)
        whole = np.empty((total, *parts[0][name].shape[1:]), parts[0][name].dtype)
        for rank, part in enumerate(parts):
            whole[rank :: len(parts)] = part[name]
        joined[name] = whole
    return Explained(**joined)
