"""Compute the last layer of the model from cached features, exactly, instead of training it."""

import time
from typing import Any

import numpy as np

from tl_dist.features import extraction, nested
from tl_dist.features.classifiers import Stopped
from tl_dist.files.failpoint import failpoint
from tl_dist.models import heads
from tl_dist.trainer.cached import classifier_of, examples_of, normalized
from tl_dist.trainer.setup import Setup, StageInput, StopRequested


def fit_head(setup: Setup, stage_input: StageInput, say: extraction.Say) -> StageInput:
    """Compute the last layer from the features of every training example in every view: the one step of the run.

    Rank 0 computes it, and tells `say` what was fitted and chosen; all workers get the result. A stop changes nothing.
    Where the config's head is trained, or this step is done, there is nothing to compute.
    """
    if not setup.cfg.classifier.computed or setup.state.step:
        return stage_input
    setup.beat("fitting the classifier", alone=True)  # the only beat of the fit: the other workers just wait
    stopped = False
    if setup.is_first:
        try:
            say(_fit_head(setup, stage_input))
        except Stopped:
            stopped = True
    if setup.parallel.total({"stopped": float(stopped)})["stopped"]:
        raise StopRequested
    setup.parallel.broadcast(list(setup.state.variables.values()))
    setup.state.advance(1)
    return stage_input


def _fit_head(setup: Setup, stage_input: StageInput) -> dict[str, Any]:
    """Set the last layer to the fitted one and return the record; keep what was chosen in the state's history."""
    began, settings = time.monotonic(), setup.cfg.classifier
    failpoint("classifier.fit")
    assert stage_input.features is not None
    values = normalized(setup, stage_input, stage_input.features.values())
    classifier = classifier_of(setup, stage_input, setup.run.stop_requested)
    head, choice = classifier.fit(examples_of(setup.splits["train"], values, setup.cfg))
    for path, value in heads.standardized(stage_input.model.scale, head.kernel, head.bias).items():
        stage_input.model.trainable[path].assign(value.astype(np.float32))
    how = f" after {head.iterations} iterations" if head.iterations else ""
    text = f"{settings.name}: {'fitted' if head.converged else 'NOT converged'}{how}"
    facts: dict[str, Any] = {}
    if choice is not None:
        text += f", {nested.described(choice, settings)}"
        facts = {"l2": choice.l2, "layers": choice.layers, "edge": choice.edge}
        setup.state.history["classifier"] = facts
    return {"event": "note", "text": f"{text}, {time.monotonic() - began:.1f} s", **facts}
