"""Show which part of an image decides its class."""

from collections.abc import Sequence
from dataclasses import dataclass

from tl_dist.runs import request

MAX_IMAGES = 1_000
"""per request: their maps are held in memory"""


@dataclass(frozen=True, kw_only=True)
class Request(request.Request):
    """Explain images: files, or examples of a split of the run's own data set."""

    cam: str = "layercam"
    """layercam, gradcam or rollout"""
    integrated: bool = False
    """also integrated gradients"""
    files: Sequence[str] = ()
    split: str = ""
    examples: Sequence[int] = ()
    classes: Sequence[int] = ()
    """the class to explain for each image; default: the one that is predicted"""
