"""`tl-dist predict` on 10,000 small JPEGs: the whole command against `tl-dist eval` of the same run on the same files.

Both start a worker, decode every file and compute the same; a tiny network leaves no time in which anything else could
hide. The memory of command and worker together is that of a fifth of the files.
"""

import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.comparison import Comparison, in_turn

NUMBER, FEWER, SIZE = 10_000, 2_000, 64
TL_DIST = Path(sys.executable).parent / "tl-dist"
CONFIG = f"""\
steps: 1
precision: float32
data: {{name: image_folder, path: images, image_size: {SIZE}}}
model: {{backbone: tiny, weights: random, train_from: all}}
optimizer: {{learning_rate: 0.01}}
report: {{tensorboard: false}}
"""


def comparisons() -> Iterator[Comparison]:
    root = Path(tempfile.mkdtemp(prefix="tl-dist-benchmark-"))
    try:
        write(root / "images")
        (root / "small.yaml").write_text(CONFIG)
        seconds(root, "train", "small.yaml")
        some = sorted(map(str, (root / "images" / "test" / "a").iterdir()))[:FEWER]
        fewer_mb = peak_mb(root, "predict", "runs/small", *some, "--out", "fewer.csv")
        predict = ("predict", "runs/small", "images/test", "--out", "all.csv")
        all_mb = peak_mb(root, *predict)
        sides = {
            "predict": lambda: NUMBER / seconds(root, *predict),
            "eval": lambda: NUMBER / seconds(root, "eval", "runs/small"),
        }
        found = in_turn(sides, rounds=3)
        yield Comparison("predict_speed", "images/s", found["predict"], "tl-dist eval", found["eval"], bar=0.95)
        yield Comparison(
            f"predict_speed[memory of {NUMBER:,}]",
            "MB",
            all_mb,
            f"of {FEWER:,}",
            fewer_mb,
            bar=1.05,
            at_most=True,
        )
    finally:
        shutil.rmtree(root)


def write(folder: Path) -> None:
    """A few images to train on and NUMBER to test on, of two classes."""
    noise = np.random.default_rng(0).integers(0, 256, (SIZE + 100, SIZE + 100, 3), dtype=np.uint8)
    for split, number in (("train", 64), ("test", NUMBER)):
        for name in "ab":
            (folder / split / name).mkdir(parents=True)
        for k in range(number):
            y, x = k % 100, k // 100
            Image.fromarray(noise[y : y + SIZE, x : x + SIZE]).save(folder / split / "ab"[k % 2] / f"{k}.jpg")


def seconds(root: Path, *arguments: str) -> float:
    start = time.perf_counter()
    subprocess.run([TL_DIST, *arguments], cwd=root, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def peak_mb(root: Path, *arguments: str) -> float:
    """The largest process of the command, in a child of its own: what its children took is a mark that only rises."""
    reader, writer = os.pipe()
    if not (child := os.fork()):
        seconds(root, *arguments)
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
        os.write(writer, str(peak).encode())
        os._exit(0)
    os.waitpid(child, 0)
    os.close(writer)
    with os.fdopen(reader) as file:
        return int(file.read()) / 1024
