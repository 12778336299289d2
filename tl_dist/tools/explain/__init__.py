"""Which part of an image speaks for a class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tl_dist.runs import request

MAX_IMAGES = 1_000
"""of one request: their maps are in memory"""


@dataclass(frozen=True, kw_only=True)
class Request(request.Request):
    """Images to explain: files, or examples of a split of the run's own data set."""

    cam: str = "layercam"
    """layercam or gradcam"""
    integrated: bool = False
    """integrated gradients as well"""
    files: Sequence[str] = ()
    split: str = ""
    examples: Sequence[int] = ()
    classes: Sequence[int] = ()
    """the class to explain of each; default: the one that is predicted"""
