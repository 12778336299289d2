"""Classify images with a trained run."""

from __future__ import annotations

from dataclasses import dataclass

from tl_dist.runs import request


@dataclass(frozen=True, kw_only=True)
class Request(request.Request):
    """What to predict for each image; `exchange` transmits the list of images."""

    top: int
    """the number of classes to give"""
    coverage: float | None = None
    """also give a set of classes that holds the true one at this rate"""
    of_type: str | None = None
    """fit these sets to the validation images of this type alone"""
    unknown: float | None = None
    """also tell whether it is unlike the training images, at this rate of false alarms"""
