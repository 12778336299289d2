"""What all workers would fetch at once is fetched before they start: pretrained weights, packaged data."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

from tl_dist import package_index
from tl_dist.config import Config
from tl_dist.refusal import ExitCode, Refusal
from tl_dist.registry import DATASETS

Say = Callable[[str], None]


def prepare(cfg: Config, say: Say, busy: Say) -> None:
    """Have the weights and the data of a run on this machine's disks, or refuse.

    `busy` is told what is about to take a while, `say` what there is.
    """
    if cfg.model.weights != "random":
        busy(f"weights '{cfg.model.weights}' for {cfg.model.backbone}")
        say(fetch_weights(cfg))
    package = data_package(cfg)
    if package is not None:
        busy(f"package {package}")
        say(f"data: {package} in {package_index.fetch(package)}")


def fetch_weights(cfg: Config) -> str:
    """Convert the weights into the user's cache, where workers look, or find them there; one line on them."""
    model = cfg.model
    # A child, since a source that must be converted is converted by a network, which needs TensorFlow.
    command = [sys.executable, "-m", "tl_dist.backbones.weights", model.weights, model.backbone]
    command += ["--sha256", model.weights_sha256] if model.weights_sha256 else []
    root = Path(__file__).parents[2]
    done = subprocess.run(command, cwd=root, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [""])[-1]
        what, found, fix = last.partition(" Fix: ")
        known = found and done.returncode in list(ExitCode)
        raise Refusal(
            what if known else f"converting the weights ended with exit code {done.returncode}: {last[:200]}",
            fix=fix if known else f"run '{' '.join(command[1:])}' to see all of it.",
            code=ExitCode(done.returncode) if known else ExitCode.INTERNAL,
        )
    match = re.search(r"^(/.+) has sha256 ([0-9a-f]{64})$", done.stdout, re.MULTILINE)
    line = f"weights '{model.weights}' for {model.backbone}"
    if match is None:
        return line
    return f"{line}: {Path(match[1]).stat().st_size / 1e6:,.1f} MB, sha256 {match[2][:12]}"


def data_package(cfg: Config) -> str | None:
    """The package that holds the dataset's files, where they come from the package index."""
    if cfg.data.path is not None:
        return None
    module, _, _ = DATASETS[cfg.data.name].partition(":")
    package: str | None = getattr(import_module(module), "PACKAGE", None)
    return package
