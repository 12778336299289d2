"""Calibrate the probabilities of a run on its validation split."""

from dataclasses import dataclass

from tl_dist.runs import request


@dataclass(frozen=True, kw_only=True)
class Request(request.Request):
    """Fit a temperature; with `unknown`, also keep features of training images."""

    unknown: bool = False
