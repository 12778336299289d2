"""The run that a backbone is carried over from, as far as the login node can judge it. Imports no TensorFlow."""

from __future__ import annotations

from tl_dist.config import Config
from tl_dist.config import file as config_file
from tl_dist.refusal import ExitCode, Refusal
from tl_dist.runs.directory import RunDir, steps_in


def opened(cfg: Config) -> tuple[RunDir, Config]:
    """The run `cfg.source.run` and its config. Refuses another backbone, no checkpoint, and a task not yet trained."""
    if cfg.source is None or cfg.source.run is None:
        raise Refusal(
            f"the source task of '{cfg.name}' has not been trained.",
            fix="'tl-dist train CONFIG' without a launcher trains it first; or write 'source: {run: DIRECTORY}'.",
            code=ExitCode.USAGE,
        )
    run = RunDir.open(cfg.source.run)
    found = config_file.load(run.config_file, imports=False)
    if found.model.backbone != cfg.model.backbone:
        raise Refusal(
            f"source.run {run.path} trained {found.model.backbone}, but model.backbone is {cfg.model.backbone}.",
            fix=f"write 'backbone: {found.model.backbone}', or name a run that trained {cfg.model.backbone}.",
            code=ExitCode.USAGE,
        )
    if not steps_in(run.checkpoints):
        raise Refusal(
            f"source.run {run.path} has no checkpoint.",
            fix="train it first: tl-dist train CONFIG.",
            code=ExitCode.USAGE,
        )
    return run, found
