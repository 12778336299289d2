"""Training all of VGG16 at 32 px, batch 64, in bfloat16: tl_dist against PyTorch as its users write it.

torchvision's network with the same head, channels_last, autocast, cross-entropy, SGD with momentum, both on all cores.
The rival runs in the environment of input_vs_torchvision.

Measured: 122 images/s against 129 (0.94). On one thread a step takes 950 ms against 695. Forward convolutions take
203 ms against 176, all of the backward ones 686 against 418, of which TensorFlow's gradient of the filters 488;
everything that is no convolution some 60 ms against 100. So the gap is in TensorFlow's kernel for that gradient: by
itself, layer after layer, it takes 343 ms, and PyTorch's, from the same library, 286. Other settings of malloc, huge
pages included, changed nothing.
"""

import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks.comparison import Comparison, NotHereError, in_turn

BATCH, STEPS, ROUNDS = 64, 10, 7

RIVAL = """
import sys, time
import torch, torchvision

batch, steps, threads = map(int, sys.argv[1:])
torch.set_num_threads(threads)
features = torchvision.models.vgg16(weights=None).features
head = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(512, 10))
net = torch.nn.Sequential(features, head).to(memory_format=torch.channels_last).train()
optimizer = torch.optim.SGD(net.parameters(), lr=1e-4, momentum=0.9)
loss_of = torch.nn.CrossEntropyLoss()
mean = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1)
deviation = torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1)
images = torch.randint(0, 256, (1024, 3, 32, 32), dtype=torch.uint8).contiguous(memory_format=torch.channels_last)
labels = torch.randint(0, 10, (1024,))

def run(steps):
    for _ in range(steps):
        rows = torch.randint(0, len(images), (batch,))
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = net((images[rows].float() / 255 - mean) / deviation)
            loss = loss_of(found, labels[rows])
        loss.backward()
        optimizer.step()

run(2)
print(f"torch {torch.__version__}, torchvision {torchvision.__version__}", flush=True)
for _ in sys.stdin:
    start = time.perf_counter()
    run(steps)
    print(steps * batch / (time.perf_counter() - start), flush=True)
"""


def comparisons() -> Iterator[Comparison]:
    from benchmarks.input_vs_torchvision import in_subprocess, interpreter
    from tl_dist.models.precision import cpu_has_bfloat16

    if not cpu_has_bfloat16():
        raise NotHereError("this processor has no bfloat16")
    cores = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory(prefix="tl-dist-benchmark-") as directory:
        (Path(directory) / "rival.py").write_text(RIVAL)
        command = [str(interpreter()), str(Path(directory) / "rival.py"), *map(str, (BATCH, STEPS, cores))]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as rival:
            assert rival.stdin is not None and rival.stdout is not None
            name = rival.stdout.readline().strip()
            sides = {"ours": ours(cores), "theirs": in_subprocess(rival)}
            found = in_turn(sides, ROUNDS)
            rival.stdin.close()
    yield Comparison(
        "vs_pytorch[vgg16, bfloat16]",
        "images/s",
        found["ours"],
        "PyTorch",
        found["theirs"],
        bar=1.0,
        note=name,
    )


def ours(cores: int) -> Callable[[], float]:
    from benchmarks.trainer import Trainer, advance, config, use_threads
    from tl_dist.parallel.single import SingleDevice

    use_threads(cores)
    cfg = config(batch=BATCH)
    reports = Trainer(cfg, SingleDevice(cfg), "mixed_bfloat16", threads=cores).reports(STEPS)
    advance(reports, STEPS + 1)  # the first report comes after one step

    def measure() -> float:
        start = time.perf_counter()
        pulled = advance(reports, STEPS)
        return sum(report.num_examples for report in pulled) / (time.perf_counter() - start)

    return measure
