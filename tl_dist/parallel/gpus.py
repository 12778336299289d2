"""Which of this host's GPUs a process computes on. Each strategy asks here, before TensorFlow touches a device."""

from __future__ import annotations

from collections.abc import Mapping

import tensorflow as tf

from tl_dist.refusal import ExitCode, Refusal
from tl_dist.rendezvous.rank_layout import in_slurm_step, integer, started_by_launcher


def take_first(count: int) -> list[str]:
    """Compute on the first GPUs alone: their names for `tf.device`, none where there is no GPU.

    TensorFlow would otherwise map nearly all memory of every GPU of the host.
    """
    return _take(tf.config.list_physical_devices("GPU")[:count])


def take_own(local_rank: int, local_workers: int, env: Mapping[str, str]) -> list[str]:
    """The same for one of several workers of this host: one GPU each. Refuses (64) fewer GPUs than workers."""
    gpus = tf.config.list_physical_devices("GPU")
    if not gpus:
        return []
    one = one_shown(env, local_workers)
    return _take([gpus[number_of(local_rank, local_workers, len(gpus), one_shown=one)]])


def number_of(local_rank: int, local_workers: int, visible: int, *, one_shown: bool) -> int:
    """The GPU of a worker, among the `visible` ones. `one_shown`: each worker may see a GPU of its own alone."""
    if visible == 1 and one_shown:
        return 0
    if local_workers > visible:
        raise too_few(local_workers, visible)
    return local_rank


def one_shown(env: Mapping[str, str], local_workers: int) -> bool:
    """Whether a launcher may have shown each worker one GPU: srun by its binding, mpirun by a script around it.

    Where that is a mistake, and two workers see the same one, NCCL says so.
    """
    if in_slurm_step(env):
        return "SLURM_GPUS_ON_NODE" not in env or integer(env, "SLURM_GPUS_ON_NODE") >= local_workers
    return started_by_launcher(env) == "mpirun"


def too_few(workers: int, visible: int) -> Refusal:
    """More workers on a host than it has GPUs: NCCL serves no two on one."""
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
