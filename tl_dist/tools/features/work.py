"""Compute the features of a config with its workers; every run with the same frozen part shares them."""

import os

from tl_dist.refusal import ExitCode
from tl_dist.runs.directory import RunDir
from tl_dist.tools.features import Request


def run(run: RunDir, request: Request, cores: int) -> ExitCode:
    """Compute the features that are missing; return REQUEUE if a stop was requested."""
    # These workers reduce only every few seconds, and Horovod's polling of its queue takes CPU time from the backbone.
    os.environ.setdefault("HOROVOD_CYCLE_TIME", "25")
    from tl_dist.trainer import cached
    from tl_dist.trainer.setup import from_images

    finished = False
    with cached.on_features(run, "extracting features", cores, alone=False) as (setup, stop_requested, say):
        stage_input = from_images(setup, setup.stages[0])
        cached.from_features(setup, stage_input, stop_requested, say)
        finished = True
    return ExitCode.DONE if finished else ExitCode.REQUEUE
