"""Choose which of this host's GPUs a process uses. Each strategy calls this before TensorFlow touches a device."""

from collections.abc import Mapping

import tensorflow as tf

from tl_dist.refusal import ExitCode, Refusal
from tl_dist.rendezvous.rank_layout import in_slurm_step, integer, started_by_launcher


def take_first(count: int) -> list[str]:
    """Use only the first `count` GPUs, not the memory of all; return their names for `tf.device`."""
    return _take(tf.config.list_physical_devices("GPU")[:count])


def take_own(local_rank: int, local_workers: int, env: Mapping[str, str]) -> list[str]:
    """Use only the GPU of `local_rank`; return its name, none if there is no GPU. Refuses (64) fewer than workers."""
    gpus = tf.config.list_physical_devices("GPU")
    if not gpus:
        return []
    if _may_see_own_only(env, local_workers) and len(gpus) == 1:
        return _take(gpus)
    if local_workers > len(gpus):
        raise too_few(local_workers, len(gpus))
    return _take([gpus[local_rank]])


def _may_see_own_only(env: Mapping[str, str], local_workers: int) -> bool:
    """Return True if a launcher may show each worker its own GPU only: srun by binding, mpirun by a wrapper script.

    If that is wrong, and two workers see the same GPU, NCCL reports it.
    """
    if in_slurm_step(env):
        return "SLURM_GPUS_ON_NODE" not in env or integer(env, "SLURM_GPUS_ON_NODE") >= local_workers
    return started_by_launcher(env) == "mpirun"


def too_few(workers: int, visible: int) -> Refusal:
    """Return the refusal of more workers on a host than it has GPUs: NCCL accepts no two workers on one GPU."""
    return Refusal(
        f"{workers} workers on this host, which shows {visible} GPU{'s' if visible > 1 else ''}: each needs its own.",
        fix=f"use workers={visible} (accumulate={-(-workers // visible)} for the same memory), or set "
        "CUDA_VISIBLE_DEVICES=-1 to compute on the CPU.",
        code=ExitCode.USAGE,
    )


def _take(gpus: list[tf.config.PhysicalDevice]) -> list[str]:
    if gpus:
        tf.config.set_visible_devices(gpus, "GPU")
    for gpu in gpus:
        tf.config.experimental.set_memory_growth(gpu, True)
    return [f"GPU:{k}" for k in range(len(gpus))]
