"""The kernels that TensorFlow's CUDA build has for GPUs, kept as a file: the CPU build of the tests registers none.

Written again for another release of TensorFlow, by an environment that has its CUDA build (a GPU is not needed):

    python -m tests.gpu_kernels
"""

import lzma
from functools import cache
from pathlib import Path
from typing import Any

import tensorflow as tf
from tensorflow.core.framework import kernel_def_pb2
from tensorflow.python.framework import kernels

RELEASE = ".".join(tf.__version__.split(".")[:2])
KEPT = Path(__file__).parent / "data" / f"gpu_kernels_of_tensorflow_{RELEASE}.pb.xz"


def registered() -> bytes:
    """What this build of TensorFlow has registered for GPUs, as a KernelList in a fixed order."""
    found = kernel_def_pb2.KernelList()
    every = kernels.get_all_registered_kernels().kernel
    on_gpus = [kernel for kernel in every if kernel.device_type in ("GPU", "DEFAULT")]
    found.kernel.extend(sorted(on_gpus, key=lambda kernel: kernel.SerializeToString(deterministic=True)))
    return found.SerializeToString(deterministic=True)


@cache
def kept() -> dict[str, list[Any]]:
    """The kernels of each operation, from the file."""
    found: dict[str, list[Any]] = {}
    for kernel in kernel_def_pb2.KernelList.FromString(lzma.decompress(KEPT.read_bytes())).kernel:
        found.setdefault(kernel.op, []).append(kernel)
    return found


def kernel_for(op: Any) -> Any:
    """The one that a GPU would run for an operation with its types; None without."""
    for kernel in kept().get(op.type, []):
        fits = all(
            op.node_def.attr[limit.name].type in limit.allowed_values.list.type
            for limit in kernel.constraint
            if limit.name in op.node_def.attr and limit.allowed_values.list.type
        )
        if fits:
            return kernel
    return None


if __name__ == "__main__":
    if not tf.test.is_built_with_cuda():
        raise SystemExit("this is a CPU build. Fix: pip install --no-deps tensorflow, instead of tensorflow-cpu.")
    KEPT.write_bytes(lzma.compress(registered(), preset=9))
    print(f"{KEPT}: {KEPT.stat().st_size:,} bytes")
