"""Pictures that are put beside a person's own files, under a name that may be taken."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from PIL import Image

from tl_dist.files.foreign import open_regular
from tl_dist.refusal import ExitCode, Refusal


def refuse_other_picture(file: Path, is_ours: Callable[[int, int], bool], *, option: str) -> None:
    """Refuse (73) to take the place of anything but a PNG whose width and height say that it was made here before."""
    if not os.path.lexists(file):
        return
    try:
        with open(open_regular(file), "rb") as found, Image.open(found, formats=["PNG"]) as image:
            ours = is_ours(image.width, image.height)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        ours = False
    if not ours:
        raise Refusal(
            f"{file} is there already, and is not a picture that this command made.",
            fix=f"name another file with {option}, or move it away.",
            code=ExitCode.CANNOT_CREATE,
        )
