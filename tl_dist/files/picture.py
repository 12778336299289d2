"""Pictures that are put beside a person's own files, under a name that may be taken."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import IO

from PIL import Image

from tl_dist.files.foreign import refuse_other


def refuse_other_picture(file: Path, is_ours: Callable[[int, int], bool], *, option: str) -> None:
    """Refuse (73) to take the place of anything but a PNG whose width and height say that it was made here before."""

    def of_our_size(found: IO[bytes]) -> bool:
        with Image.open(found, formats=["PNG"]) as image:
            return is_ours(image.width, image.height)

    refuse_other(file, of_our_size, what="a picture", option=option)
