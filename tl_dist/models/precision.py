"""The number formats that a run computes in, and what `auto` means on this machine. TensorFlow is imported on use."""

from pathlib import Path


def resolve(name: str) -> str:
    """Return `name`, or for `auto` the fastest format of this machine that loses no range.

    That is mixed_bfloat16 on GPUs from compute capability 8.0 and on CPUs with bfloat16 instructions, mixed_float16 on
    older GPUs with tensor cores (7.0), else float32.
    """
    if name != "auto":
        return name
    import tensorflow as tf

    gpus = tf.config.list_physical_devices("GPU")
    if gpus:
        capability = tf.config.experimental.get_device_details(gpus[0]).get("compute_capability", (0, 0))
        if capability >= (8, 0):
            return "mixed_bfloat16"
        return "mixed_float16" if capability >= (7, 0) else "float32"
    return "mixed_bfloat16" if cpu_has_bfloat16() else "float32"


def gpu_graph_options(name: str) -> dict[str, bool]:
    """Return which of TensorFlow's graph optimizers to switch off for a precision on a GPU.

    In float32 the layout optimizer turns convolutions to channels first, but not every operation between them: each
    change of layout is a pass over the activations. In the 16-bit formats it changes nothing.
    """
    return {"layout_optimizer": False} if name == "float32" else {}


def cpu_has_bfloat16(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Return whether the processor multiplies bfloat16 in hardware (AVX512-BF16 or AMX)."""
    try:
        flags = next(line for line in cpuinfo.read_text().splitlines() if line.startswith("flags")).split()
    except (OSError, StopIteration):
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags
