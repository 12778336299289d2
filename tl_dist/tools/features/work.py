"""Features of a config, computed by its workers. They are shared by every run of the same frozen part."""

from __future__ import annotations

import os

from tl_dist.refusal import ExitCode
from tl_dist.runs.directory import RunDir
from tl_dist.tools.features import Request


def run(run: RunDir, request: Request, cores: int) -> ExitCode:
    """Compute what is missing of them; returns REQUEUE if a stop was requested."""
    # These workers meet every few seconds, and each look of Horovod at its queue takes a core from the backbone.
    os.environ.setdefault("HOROVOD_CYCLE_TIME", "25")
    from tl_dist.trainer import cached
    from tl_dist.trainer.stage_input import from_images
    from tl_dist.trainer.task import on_features

    finished = False
    with on_features(run, "extracting features", cores, alone=False) as (setup, stop_requested, say):
        stage_input = from_images(setup, setup.stages[0])
        finished = cached.from_features(setup, stage_input, stop_requested, say) is not None
    return ExitCode.DONE if finished else ExitCode.REQUEUE
