"""One worker of `launch/install_horovod --check`: a grouped sum over all ranks must be right on every rank.

Started by horovodrun or mpirun, never by hand. Rank 0 prints one line of JSON behind a marker, because the
launchers put prefixes of their own before every line. Any rank that sees a wrong sum exits with 1.
"""

import json
import os
import sys
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import horovod.tensorflow as hvd
import tensorflow as tf

MARKER = "TL_DIST_CHECK "
NUM_REPEATS = 20
MEBIBYTE = 1 << 18  # float32 values in one MiB


def main(on_gpu: bool) -> int:
    hvd.init()
    gpus = tf.config.list_physical_devices("GPU")
    if on_gpu:
        tf.config.set_visible_devices(gpus[hvd.local_rank()], "GPU")
    else:
        tf.config.set_visible_devices([], "GPU")

    @tf.function
    def total(values: list) -> list:
        # Values computed inside the graph, so that on a GPU they lie in its memory and take the NCCL path.
        return hvd.grouped_allreduce([value + 0.0 for value in values], op=hvd.Sum)

    mine = float(hvd.rank() + 1)
    values = [tf.fill([3], mine), tf.fill([MEBIBYTE], mine), tf.fill([7], -mine)]
    expected = hvd.size() * (hvd.size() + 1) / 2
    got = [value.numpy() for value in total(values)]
    right = all((value == sign * expected).all() for value, sign in zip(got, (1, 1, -1), strict=True))

    started = time.perf_counter()
    for _ in range(NUM_REPEATS):
        result = total(values)
    result[0].numpy()
    milliseconds = (time.perf_counter() - started) / NUM_REPEATS * 1e3

    if hvd.rank() == 0:
        figures = {"num_ranks": hvd.size(), "right": bool(right), "milliseconds": round(milliseconds, 2)}
        print(MARKER + json.dumps(figures), flush=True)
    hvd.shutdown()
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main(on_gpu="--gpu" in sys.argv[1:]))
