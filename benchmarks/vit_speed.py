"""Fine-tuning all of ViT-S/16 at 112 px, batch 16, float32: tl_dist against `model.fit` of the same layers, and timm.

Both rivals have the same head, loss and SGD with momentum, and all use both cores. timm's is PyTorch's fused attention.
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.comparison import Comparison, in_turn

SIZE, BATCH, STEPS, ROUNDS = 112, 16, 5, 5

RIVAL = """
import sys, time
import timm, torch

size, batch, steps, threads = map(int, sys.argv[1:])
torch.set_num_threads(threads)
net = timm.create_model("vit_small_patch16_224", img_size=size, num_classes=10).train()
optimizer = torch.optim.SGD(net.parameters(), lr=1e-4, momentum=0.9)
loss_of = torch.nn.CrossEntropyLoss()
images = torch.randint(0, 256, (1024, 3, size, size), dtype=torch.uint8)
labels = torch.randint(0, 10, (1024,))

def run(steps):
    for _ in range(steps):
        rows = torch.randint(0, len(images), (batch,))
        optimizer.zero_grad(set_to_none=True)
        loss_of(net((images[rows].float() / 255 - 0.5) / 0.5), labels[rows]).backward()
        optimizer.step()

run(2)
print(f"torch {torch.__version__}, timm {timm.__version__}", flush=True)
for _ in sys.stdin:
    start = time.perf_counter()
    run(steps)
    print(steps * batch / (time.perf_counter() - start), flush=True)
"""


def comparisons() -> Iterator[Comparison]:
    from benchmarks.input_vs_torchvision import in_subprocess
    from benchmarks.trainer import config
    from benchmarks.vs_keras_fit import fit, ours

    cfg = config(backbone="vit_small", batch=BATCH, image_size=SIZE)
    sides = {"ours": ours("float32", cfg, STEPS), "fit": fit("float32", cfg, vit_small, STEPS)}
    for side in sides.values():
        side()  # compile
    with tempfile.TemporaryDirectory(prefix="tl-dist-benchmark-") as directory:
        rival_file = Path(directory) / "rival.py"
        rival_file.write_text(RIVAL)
        numbers = map(str, (SIZE, BATCH, STEPS, len(os.sched_getaffinity(0))))
        command = [sys.executable, str(rival_file), *numbers]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as rival:
            assert rival.stdin is not None and rival.stdout is not None
            name = rival.stdout.readline().strip()
            found = in_turn({**sides, "timm": in_subprocess(rival)}, ROUNDS)
            rival.stdin.close()
    yield Comparison("vit_speed[fit]", "images/s", found["ours"], "model.fit", found["fit"], bar=1.0)
    yield Comparison("vit_speed[timm]", "images/s", found["ours"], "timm", found["timm"], bar=0.9, note=name)


def vit_small(inputs: Any) -> Any:
    """Return the class token of the images, of the same layers as ours."""
    import keras

    from tl_dist.config import registry

    x = keras.layers.Rescaling(1 / 127.5, offset=-1)(inputs)
    return registry.backbone("vit_small").build((SIZE, SIZE, 3))(x)[:, 0]
