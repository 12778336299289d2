"""`tl-dist augment preview`: a picture of augmented images, written by a child process that has TensorFlow."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tl_dist.launcher.train import Request
from tl_dist.refusal import ExitCode, Refusal


def preview(path: Path, overrides: Sequence[str], out: Path, rows: int) -> None:
    """Write the preview of a config as the PNG `out`. Refuse whatever the config or the data refuse."""
    cfg = Request(path, overrides).load(resolve=False)
    if not cfg.data.augment and not cfg.data.augmentation.mixes:
        fix = "add 'augment: [flip]' or others below 'data:'."
        raise Refusal(f"{path} augments nothing.", fix=fix, code=ExitCode.USAGE)
    command = [sys.executable, "-P", "-m", "tl_dist.tools.augment.work"]
    command += [str(path.absolute()), str(out.absolute()), str(rows), *overrides]
    process = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if process.returncode:
        last_line = (process.stderr.strip().splitlines() or [""])[-1]
        what, is_refusal, fix = last_line.partition(" Fix: ")
        if not is_refusal or process.returncode not in list(ExitCode):
            what = f"the preview ended with {process.returncode}: {last_line[:200]}."
            fix = f"run 'python -P -m tl_dist.tools.augment.work {path} {out} {rows}'."
            raise Refusal(what, fix=fix, code=ExitCode.INTERNAL)
        raise Refusal(what, fix=fix, code=ExitCode(process.returncode))
