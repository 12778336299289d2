"""Fit the layers of a pruned network to its source's outputs on training images, before the first step.

All workers share the images, and sum in float64 over groups of images that are the same for any number of workers,
which so changes the last bits alone. Rank 0 solves the equations, and all workers get its solution.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import tensorflow as tf

from tl_dist.data.resize import resize
from tl_dist.models import pruning
from tl_dist.parallel import rows_of
from tl_dist.runs import init_from
from tl_dist.trainer.load_model import load_run
from tl_dist.trainer.setup import Setup, StopRequested
from tl_dist.training.step import compiled

KEY = "refit"  # of the number of fitted layers, in the history of a state
_GROUP_BYTES = 2**27
"""bound on the size of a layer's inputs for a group of images, unless a single image exceeds it"""


def fit_layers(setup: Setup, say: Callable[[Mapping[str, Any]], None]) -> None:
    """Fit the layers of a pruned network where the config asks for it, once in a run. A stop changes nothing."""
    source = setup.cfg.source
    if source is None or not source.refit or setup.state.step or KEY in setup.state.history:
        return
    setup.prepare_for("loading the source")
    run, cfg = init_from.opened(setup.cfg)
    whole, _ = load_run(run, cfg, parallel=setup.parallel)
    variables = setup.model.moving
    before = {path: variable.numpy() for path, variable in variables.items()}
    used = []
    for fit in pruning.fits(whole, setup.model):
        used.append(fit.num_images(setup.splits["train"].num_examples))
        sums = _sums(setup, fit, used[-1])
        if sums["stop"]:
            for path, value in before.items():
                variables[path].assign(value)
            raise StopRequested
        if setup.is_first:
            fit.solve(variables, sums["squares"], sums["products"])
        setup.parallel.broadcast([variables[path] for path in fit.paths])
    setup.optimizer.begin(0)
    setup.state.history[KEY] = len(used)
    images = f"{max(used, default=0):,} images"
    say({"event": "note", "text": f"{len(used)} layers fitted to {run.path} by least squares on {images}"})


def _sums(setup: Setup, fit: pruning.Fit, num_images: int) -> dict[str, Any]:
    """Return the sums over all images that determine the solution, and whether to stop."""
    parallel, source = setup.parallel, setup.splits["train"]
    size, square = setup.image_size, setup.cfg.data.square
    chosen = np.linspace(0, source.num_examples - 1, num_images).round().astype(np.int64)
    at_once = max(1, min(32, _GROUP_BYTES // (4 * fit.rows * fit.num_inputs)))
    groups = rows_of(parallel.rank, parallel.world_size, -(-num_images // at_once))
    mine = chosen[groups.start * at_once : groups.stop * at_once]
    images = tf.data.Dataset.from_tensor_slices(mine).map(
        lambda index: resize(source.read(index)[0], size, square), num_parallel_calls=setup.threads
    )
    of_group = compiled(partial(fit.sums, num_images=num_images), reduce_retracing=True)
    squares = np.zeros((fit.num_inputs, fit.num_inputs))
    products = np.zeros((fit.num_inputs, fit.num_outputs))
    stop = False
    setup.prepare_for("fitting layers")
    with setup.examples.naming_bad("train", lambda: mine.tolist()):
        for group in images.batch(at_once).prefetch(1):
            x, y = (values.numpy().astype(np.float64) for values in of_group(group))
            squares += x
            products += y
            # Without a beat: all workers must have the same number of beats, but not of groups.
            stop = stop or (setup.is_first and setup.run.stop_requested())
    return parallel.total({"squares": squares, "products": products, "stop": float(stop)})
