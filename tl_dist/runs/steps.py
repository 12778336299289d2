"""How the directory of a step's checkpoint is named, below checkpoints/."""

from __future__ import annotations

import re
from pathlib import Path

from tl_dist.files.atomic import children

_STEP_NAME = re.compile(r"step-(\d{8,18})")


def step_name(step: int) -> str:
    """The name of the checkpoint of a step."""
    return f"step-{step:08d}"


def steps_in(checkpoints: Path) -> list[tuple[int, Path]]:
    """Every entry that is named as a checkpoint, the highest step first. Nothing is said about what it holds."""
    found = []
    for path in children(checkpoints):
        match = _STEP_NAME.fullmatch(path.name)
        if match and step_name(int(match[1])) == path.name:
            found.append((int(match[1]), path))
    return sorted(found, reverse=True)
