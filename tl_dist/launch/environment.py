"""What a report about a problem needs to know of this machine and this installation. Imports no framework."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from tl_dist.launch.command import SECRET, visible_gpus

PACKAGES = (
    "tl-dist",
    "tensorflow",
    "tensorflow-cpu",
    "keras",
    "horovod",
    "numpy",
    "pydantic",
    "safetensors",
    "tensorboard",
)
_TELLING = re.compile(
    r"^(?:HOROVOD|TF|KERAS|XLA|CUDA|NVIDIA|NCCL|OMP|OMPI|OPENBLAS|MKL|SLURM|TL_DIST|XDG_CACHE|PYTHON)"
)
_COMMANDS = {
    "mpirun": ("mpirun", "--version"),
    "sbatch": ("sbatch", "--version"),
    "nvidia-smi": ("nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"),
}


def collect(env: Mapping[str, str] | None = None) -> dict[str, Any]:
    """The facts, as plain data; no secret is among them."""
    env = os.environ if env is None else env
    return {
        "system": {
            "platform": platform.platform(),
            "python": f"{platform.python_version()} ({sys.executable})",
            "cores": len(os.sched_getaffinity(0)),
            "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
            "gpus": visible_gpus(env),
            "commit": checkout_commit(),
        },
        "packages": {name: package_version(name) for name in PACKAGES},
        "commands": {name: first_line(*command) for name, command in _COMMANDS.items()},
        "variables": {k: v for k, v in sorted(env.items()) if _TELLING.match(k) and not SECRET.search(k)},
    }


def as_text(facts: Mapping[str, Mapping[str, Any]]) -> str:
    """The facts as lines, to be pasted into a report."""
    lines = ["Copy and paste the text below into your report.", ""]
    for title, entries in facts.items():
        lines.append(f"{title}:")
        width = max((len(name) for name in entries), default=0)
        lines += [f"  {name:<{width}}  {'-' if value is None else value}" for name, value in entries.items()]
    return "\n".join(lines)


def package_version(name: str) -> str | None:
    """The installed version of a distribution, or None."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def first_line(*command: str) -> str | None:
    """The first line that a command prints, or None where it is not installed or fails."""
    if shutil.which(command[0]) is None:
        return None
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip().splitlines()[0] if done.returncode == 0 and done.stdout.strip() else None


def checkout_commit() -> str | None:
    """The commit of the checkout that this code runs from, marked where files were changed."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return None
    return first_line("git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12")
