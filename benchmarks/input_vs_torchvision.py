"""Our input pipeline against torchvision's DataLoader doing the same work, both on all cores and the same photographs.

Each side reads files in random order, cuts out a random crop, resizes it to 224, mirrors half of them and makes uint8
batches of 64. torchvision has one worker process for each core, which live through all rounds. An epoch is timed from
its first batch on. It runs in an environment of its own, made at the first run: $TL_DIST_TORCH names another
interpreter that has torchvision.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks.comparison import Comparison, in_turn
from benchmarks.input_jpeg import AUGMENT, BATCH, NUMBER, SIZE, whole_pipeline
from benchmarks.photographs import photographs, rate, write_folder

PACKAGES = ("torch>=2.6,<=2.13", "torchvision>=0.21,<=0.28")

RIVAL = """
import sys, time
import torch, torchvision
from torchvision.transforms import v2

if __name__ == "__main__":
    root, size, batch, workers = sys.argv[1], *map(int, sys.argv[2:])
    transform = v2.Compose([v2.RandomResizedCrop(size, antialias=True), v2.RandomHorizontalFlip(), v2.PILToTensor()])
    torch.set_num_threads(1)
    loader = torch.utils.data.DataLoader(
        torchvision.datasets.ImageFolder(root, transform),
        batch, shuffle=True, drop_last=True, num_workers=workers, persistent_workers=True,
    )
    print(f"torchvision {torchvision.__version__}, torch {torch.__version__}", flush=True)
    for _ in sys.stdin:
        batches, seen = iter(loader), 0
        next(batches)
        start = time.perf_counter()
        for images, labels in batches:
            assert images.shape[1:] == (3, size, size) and images.dtype == torch.uint8
            seen += len(labels)
        print(seen / (time.perf_counter() - start), flush=True)
"""


def comparisons() -> Iterator[Comparison]:
    from tl_dist.datasets.curation.layout import opened_whole

    python = interpreter()
    root = Path(tempfile.mkdtemp(prefix="tl-dist-benchmark-"))
    cores = len(os.sched_getaffinity(0))
    try:
        write_folder(root / "data", photographs(NUMBER))
        (root / "rival.py").write_text(RIVAL)
        source = opened_whole(root / "data")["train"]
        command = [str(python), str(root / "rival.py"), str(root / "data"), *map(str, (SIZE, BATCH, cores))]
        rival = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert rival.stdin is not None and rival.stdout is not None
        try:
            name = rival.stdout.readline().strip()
            theirs = in_subprocess(rival)
            theirs()  # its worker processes start in the first epoch
            number = source.num_examples // BATCH * BATCH
            ours = rate(lambda: whole_pipeline(source, AUGMENT, cores), number)
            found = in_turn({"ours": ours, "theirs": theirs}, rounds=5)
        finally:
            rival.stdin.close()
            rival.wait()
        yield Comparison(
            "input_vs_torchvision[crop, resize, flip]", "images/s", found["ours"], "DataLoader", found["theirs"],
            bar=2.2, note=f"{name}, {cores} worker processes",
        )  # fmt: skip
    finally:
        shutil.rmtree(root)


def in_subprocess(rival: subprocess.Popen[str]) -> Callable[[], float]:
    """Images a second of one epoch of the rival, which runs an epoch for each line that it is sent."""

    def measure() -> float:
        assert rival.stdin is not None and rival.stdout is not None
        rival.stdin.write("\n")
        rival.stdin.flush()
        line = rival.stdout.readline()
        if not line:
            raise RuntimeError(f"the rival ended with {rival.wait()}")
        return float(line)

    return measure


def interpreter() -> Path:
    """A Python with torchvision: the one that is named, or one in a cache directory, made now if it is not there."""
    if named := os.environ.get("TL_DIST_TORCH"):
        return Path(named)
    from tl_dist.files.packages import user_cache

    home = user_cache() / "benchmark-torchvision"
    python = home / "bin" / "python"
    if not (home / "complete").exists():
        print(f"installing {', '.join(PACKAGES)} into {home}", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(home)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", "numpy", *PACKAGES], check=True)
        (home / "complete").touch()
    return python
