"""Classify images with a trained run."""

from __future__ import annotations

from dataclasses import dataclass

from tl_dist.runs import request


@dataclass(frozen=True, kw_only=True)
class Request(request.Request):
    """What is asked of each image; which images comes by `exchange`."""

    top: int
    """how many classes"""
    coverage: float | None = None
    """a set that holds the true class at this rate"""
    of_type: str | None = None
    """by the validation images of this type alone"""
    unknown: float | None = None
    """whether it is unlike the training images, at this rate of false alarms"""
