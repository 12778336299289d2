"""`tl-dist augment preview`: a picture of augmented images, made by a process that has TensorFlow."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tl_dist.config import file as config_file
from tl_dist.refusal import ExitCode, Refusal


def preview(path: Path, overrides: Sequence[str], out: Path, rows: int) -> None:
    """Write the PNG `out`; refuses what the config or the data refuse."""
    cfg = config_file.load(path, overrides)
    if not cfg.data.augment and not cfg.data.augmentation.mixes:
        raise Refusal(
            f"{path} augments nothing.",
            fix="add 'augment: [flip]' or others below 'data:'.",
            code=ExitCode.USAGE,
        )
    command = [sys.executable, "-P", "-m", "tl_dist.tools.augment.work"]
    command += [str(path.absolute()), str(out.absolute()), str(rows), *overrides]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [""])[-1]
        what, known, fix = last.partition(" Fix: ")
        if not known or done.returncode not in list(ExitCode):
            raise Refusal(
                f"the preview ended with {done.returncode}: {last[:200]}.",
                fix=f"run 'python -P -m tl_dist.tools.augment.work {path} {out} {rows}'.",
                code=ExitCode.INTERNAL,
            )
        raise Refusal(what, fix=fix, code=ExitCode(done.returncode))
