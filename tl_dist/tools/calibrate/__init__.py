"""Calibrate the probabilities of a run on its validation split, or keep how far its numbers are from the truth."""

from dataclasses import dataclass

from tl_dist import tasks
from tl_dist.config import Config
from tl_dist.refusal import ExitCode, Refusal
from tl_dist.runs import request


@dataclass(frozen=True, kw_only=True)
class Request(request.Request):
    """Fit a temperature; with `unknown`, also keep features of training images."""

    unknown: bool = False


def refuse_labels(cfg: Config) -> None:
    """Refuse (64) a run whose images have any number of labels: one temperature would not do for all."""
    if tasks.gives_labels(cfg):
        what = f"run '{cfg.name}' gives each label a probability of its own, which no single temperature calibrates."
        fix = "choose a threshold for each label: tl-dist threshold RUN --f1."
        raise Refusal(what, fix=fix, code=ExitCode.USAGE)
