"""Protect the user's own files from pictures that are written beside them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import IO

from PIL import Image

from tl_dist.files.foreign import refuse_other


def refuse_other_picture(file: Path, is_ours: Callable[[int, int], bool], *, option: str) -> None:
    """Refuse (73) to overwrite anything but a PNG whose width and height `is_ours` recognizes."""

    def of_our_size(png: IO[bytes]) -> bool:
        with Image.open(png, formats=["PNG"]) as image:
            return is_ours(image.width, image.height)

    refuse_other(file, of_our_size, what="a picture", option=option)
