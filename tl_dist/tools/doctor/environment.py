"""Describe this machine and this installation for a report about a problem. Imports no framework."""

import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from tl_dist.config import extensions, registry
from tl_dist.launcher.command import PLACE, SAFE_PATH, THREAD_VARIABLES, is_secret, visible_gpus

PACKAGES = (
    "tl-dist", "tensorflow", "tensorflow-cpu", "keras", "horovod", "numpy", "pydantic", "safetensors", "tensorboard",
)  # fmt: skip
VARIABLES = frozenset(
    (
        *THREAD_VARIABLES, *PLACE, SAFE_PATH, "TL_DIST_MPI", "TL_DIST_INTERFACE", "TL_DIST_OPEN_PORT", "XDG_CACHE_HOME",
        "PYTHONPATH", "PYTHONHOME", "PYTHONHASHSEED", "PYTHONWARNINGS", "PYTHONOPTIMIZE", "VIRTUAL_ENV", "CONDA_PREFIX",
        "LD_LIBRARY_PATH", "LD_PRELOAD",
        "CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "CUDA_HOME", "CUDA_LAUNCH_BLOCKING",
        "NVIDIA_VISIBLE_DEVICES", "NVIDIA_DRIVER_CAPABILITIES", "NVIDIA_TF32_OVERRIDE",
        "TF_CPP_MIN_LOG_LEVEL", "TF_CPP_MAX_VLOG_LEVEL", "TF_XLA_FLAGS", "XLA_FLAGS", "TF_DETERMINISTIC_OPS",
        "TF_ENABLE_ONEDNN_OPTS", "TF_FORCE_GPU_ALLOW_GROWTH", "TF_GPU_ALLOCATOR", "TF_GPU_THREAD_MODE",
        "TF_GPU_THREAD_COUNT", "TF_USE_LEGACY_KERAS", "KERAS_BACKEND", "KERAS_HOME",
        "HOROVOD_CONTROLLER", "HOROVOD_CPU_OPERATIONS", "HOROVOD_CYCLE_TIME", "HOROVOD_FUSION_THRESHOLD",
        "HOROVOD_CACHE_CAPACITY", "HOROVOD_CROSS_RANK", "HOROVOD_CROSS_SIZE", "HOROVOD_GLOO_IFACE",
        "HOROVOD_GLOO_RENDEZVOUS_ADDR", "HOROVOD_GLOO_RENDEZVOUS_PORT", "HOROVOD_GLOO_TIMEOUT_SECONDS",
        "HOROVOD_GPU_OPERATIONS", "HOROVOD_HIERARCHICAL_ALLREDUCE", "HOROVOD_HOSTNAME", "HOROVOD_LOG_LEVEL",
        "HOROVOD_NUM_NCCL_STREAMS", "HOROVOD_STALL_CHECK_DISABLE", "HOROVOD_STALL_CHECK_TIME_SECONDS",
        "HOROVOD_STALL_SHUTDOWN_TIME_SECONDS", "HOROVOD_THREAD_AFFINITY", "HOROVOD_TIMELINE",
        "NCCL_DEBUG", "NCCL_SOCKET_IFNAME", "NCCL_IB_DISABLE", "NCCL_IB_HCA", "NCCL_P2P_DISABLE", "NCCL_SHM_DISABLE",
        "NCCL_NET_GDR_LEVEL", "NCCL_ALGO", "NCCL_PROTO", "OMP_PROC_BIND", "OMP_PLACES", "KMP_AFFINITY", "KMP_BLOCKTIME",
        "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE",
        "OMPI_MCA_btl", "OMPI_MCA_btl_tcp_if_include", "OMPI_MCA_pml", "OMPI_MCA_oob_tcp_if_include",
        "SLURM_CLUSTER_NAME", "SLURM_CPUS_ON_NODE", "SLURM_CPUS_PER_TASK", "SLURM_DISTRIBUTION", "SLURM_GPUS",
        "SLURM_GPUS_ON_NODE", "SLURM_GPUS_PER_NODE", "SLURM_GPUS_PER_TASK", "SLURM_JOB_CPUS_PER_NODE", "SLURM_JOB_GPUS",
        "SLURM_JOB_ID", "SLURM_JOB_NODELIST", "SLURM_JOB_NUM_NODES", "SLURM_JOB_PARTITION", "SLURM_LOCALID",
        "SLURM_MEM_PER_CPU", "SLURM_MEM_PER_NODE", "SLURM_MPI_TYPE", "SLURM_NNODES", "SLURM_NODEID", "SLURM_NTASKS",
        "SLURM_NTASKS_PER_NODE", "SLURM_PROCID", "SLURM_RESTART_COUNT", "SLURM_STEP_GPUS", "SLURM_STEP_ID",
        "SLURM_STEP_NODELIST", "SLURM_STEP_NUM_TASKS", "SLURM_TASKS_PER_NODE", "SLURM_TASK_PID",
    )
)  # fmt: skip
"""environment variables that may be shown; full names, because a prefix might also match a secret"""
_COMMANDS = {
    "mpirun": ("mpirun", "--version"),
    "sbatch": ("sbatch", "--version"),
    "nvidia-smi": ("nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"),
}


def collect(env: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Return the facts as plain data, without secrets."""
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
        "extensions": {
            f"{kind.what} {name}": offer.distribution or offer.reference
            for kind in registry.KINDS
            for name, offers in extensions.offers(kind.group).items()
            for offer in offers
        },
        "commands": {name: first_line(*command) for name, command in _COMMANDS.items()},
        "variables": {k: v for k, v in sorted(env.items()) if k in VARIABLES and not is_secret(k, v)},
    }


def as_text(facts: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the facts as lines to be pasted into a report."""
    lines = ["Copy and paste the text below into your report.", ""]
    for title, entries in facts.items():
        if not entries:
            continue
        lines.append(f"{title}:")
        width = max((len(name) for name in entries), default=0)
        lines += [f"  {name:<{width}}  {'-' if value is None else value}" for name, value in entries.items()]
    return "\n".join(lines)


def package_version(name: str) -> str | None:
    """Return the installed version of a distribution, or None."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def first_line(*command: str) -> str | None:
    """Return the first line that a command prints, or None if it is not installed or fails."""
    try:
        process = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    lines = process.stdout.strip().splitlines()
    return lines[0] if process.returncode == 0 and lines else None


def checkout_commit() -> str | None:
    """Return the commit of the checkout that this code runs from, marked if files were changed; None without one."""
    root = Path(__file__).parents[3]
    if not (root / ".git").exists():
        return None
    return first_line("git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12")
