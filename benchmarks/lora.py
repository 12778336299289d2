"""LoRA of rank 8 on VGG16's block 5 against training all of that block, on two Horovod workers.

Bytes: what each step sends. Accuracy: of 5,000 test images of CIFAR-10 at 32 px, after 450 training images of each
class, by a paired test; the head alone says what the adapters add. The rates were chosen on validation images.
`TL_DIST_CIFAR10` names a directory with train/CLASS/IMAGE and test/CLASS/IMAGE. Some 10 minutes on 2 CPU cores.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks.cells import WEIGHTS, tl_dist
from benchmarks.cifar10 import VARIABLE
from benchmarks.comparison import Comparison, NotHereError
from benchmarks.horovod_workers import GLOO, ROOT

LORA = "{lora: 8}"
IMAGES = {"train": 500, "test": 500}  # of each class; a tenth of the first is for validation
CONFIG = f"""\
global_batch: 64
epochs: 6
precision: float32
strategy: horovod
workers: 2
data: {{name: image_folder, path: data, image_size: 32, validation_fraction: 0.1, augment: [flip]}}
model:
  backbone: vgg16
  weights: "{WEIGHTS}"
  train_from: block5
  pooling: both
  normalize: true
  dropout: 0.25
optimizer:
  name: adamw
  learning_rate: 1e-3
  weight_decay: 0.01
  schedule: {{name: cosine, warmup_epochs: 0.5}}
runtime: {{prefix_cache: "on"}}
report: {{tensorboard: false}}
"""
RUNS = {
    "whole": ("optimizer.learning_rate=1e-3",),
    "adapters": (f"model.adapt={LORA}", "optimizer.learning_rate=3e-3"),
    "head": ("model.train_from=head", "optimizer.learning_rate=3e-3"),
}


def comparisons() -> Iterator[Comparison]:
    from tl_dist.scores import text
    from tl_dist.tools.compare.command import compare

    sent = {adapt: _bytes(adapt) for adapt in ("all", LORA)}
    yield Comparison(
        "lora[bytes]", "MB per step", sent[LORA] / 1e6, "all of block5", sent["all"] / 1e6, bar=1 / 20, at_most=True
    )
    if VARIABLE not in os.environ:
        raise NotHereError(f"it needs the images: {VARIABLE}=DIRECTORY, with train/CLASS/IMAGE and test/CLASS/IMAGE")
    with tempfile.TemporaryDirectory(prefix="tl-dist-benchmark-") as scratch:
        directory = Path(scratch)
        _copy_part(Path(os.environ[VARIABLE]), directory / "data")
        (directory / "trial.yaml").write_text(CONFIG)
        for name, settings in RUNS.items():
            tl_dist("train", "trial.yaml", f"name={name}", *settings, cwd=directory)
        runs = directory / "runs"
        paired = {name: compare(runs / name, runs / "adapters", "test") for name in ("head", "whole")}
        sizes = {
            name: max(file.stat().st_size for file in (runs / name).rglob("state.safetensors")) / 1e6
            for name in ("adapters", "whole")
        }
    for name, rival, bar in (("head", "the head alone", 1.0), ("whole", "all of block5", 0.95)):
        theirs, ours = (100 * accuracy for accuracy in paired[name]["accuracies"])
        low, high = (100 * end for end in paired[name]["interval"])
        yield Comparison(
            f"lora[accuracy, {name}]", "% right", ours, rival, theirs, bar=bar,
            note=f"difference {ours - theirs:+.2f} points, 95 % interval {low:+.2f} to {high:+.2f}, "
            f"{text.paired_test(paired[name])}, {paired[name]['num_examples']:,} images",
        )  # fmt: skip
    yield Comparison(
        "lora[checkpoint]", "MB", sizes["adapters"], "all of block5", sizes["whole"], bar=1 / 20, at_most=True
    )


def _copy_part(images: Path, target: Path) -> None:
    """Copy the first images of each class, by name."""
    for split, number in IMAGES.items():
        for folder in sorted((images / split).iterdir()):
            (target / split / folder.name).mkdir(parents=True)
            for file in sorted(folder.iterdir())[:number]:
                shutil.copy(file, target / split / folder.name)


def _bytes(adapt: str) -> float:
    """The bytes of gradients that a worker sends in a step."""
    with tempfile.TemporaryDirectory() as scratch:
        output = Path(scratch) / "sent.json"
        env = dict(os.environ, TF_CPP_MIN_LOG_LEVEL="2", PYTHONPATH=str(ROOT))
        argv = [*GLOO, sys.executable, "-m", "benchmarks.lora", adapt, str(output)]
        done = subprocess.run(argv, env=env, cwd=ROOT, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(done.stdout + done.stderr)
        return float(json.loads(output.read_text()))


def main(adapt: str, output: str) -> None:
    """Train two steps as one of the workers; rank 0 writes what a step has sent."""
    from benchmarks.trainer import Trainer, advance, config, use_threads
    from tl_dist.config import file as config_file
    from tl_dist.config import registry

    use_threads(1)
    cfg = config("horovod", batch=8, train_from="block5")
    # Named only, since the rules want pretrained weights for adapters: nothing here loads them.
    model = config_file.changed(cfg, ["model.weights=imagenet", f"model.adapt={adapt}"]).model
    cfg = cfg.model_copy(update={"model": model})
    parallel = registry.strategy("horovod").start(cfg)
    trainer = Trainer(cfg, parallel, "float32", threads=1)
    parallel.broadcast(list(trainer.state.variables.values()))
    with parallel.naming_lost_peers():
        advance(trainer.reports(1), 2)
        if parallel.rank == 0:
            Path(output).write_text(json.dumps(parallel.reduced_bytes))


if __name__ == "__main__":
    main(*sys.argv[1:])
