"""A VGG16 of solar cells and two smaller ones that it teaches: the points that they lose, and what they weigh.

The teacher is configs/elpv_lpft.yaml. Both students are its own network with fewer channels in every convolution: half
of them, which leaves a quarter of the parameters, and three tenths, which leaves less than a tenth.
"""

from __future__ import annotations

import io
import tempfile
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path

import tl_dist as tl
from benchmarks.comparison import Comparison
from benchmarks.trainer import trained
from tl_dist.cli.compare import compare

TEACHER = Path(__file__).parents[1] / "configs" / "elpv_lpft.yaml"
STUDENT = """\
global_batch: 32
epochs: 15
data: {name: elpv, image_size: 128, augment: [flip]}
model: {backbone: vgg16, train_from: all, pooling: both, normalize: true, dropout: 0.25}
optimizer:
  {name: adamw, learning_rate: 1e-3, weight_decay: 0.01, ema: 0.99, schedule: {name: cosine, warmup_epochs: 0.5}}
runtime: {decoded_images: memory}
report: {tensorboard: false}
"""


def comparisons() -> Iterator[Comparison]:
    with tempfile.TemporaryDirectory(prefix="tl-dist-benchmark-") as directory:
        runs = Path(directory) / "runs"
        teacher = trained(tl.load_config(TEACHER, "name=teacher", "report.tensorboard=false"), runs)
        config = Path(directory) / "student.yaml"
        config.write_text(STUDENT)
        of_teacher = (f"source.run={teacher.path}", "source.head=true", f"distill.teacher={teacher.path}")
        for name, prune, most in (("half", 0.5, 1.0), ("tenth", 0.7, 1.5)):
            cfg = tl.load_config(config, f"name={name}", f"model.prune={prune}", *of_teacher)
            yield from _of(name, trained(cfg, runs), teacher, most)


def _of(name: str, student: tl.Run, teacher: tl.Run, most: float) -> Iterator[Comparison]:
    """Points of accuracy that are lost, `most` of them allowed, and the share of the parameters that is left."""
    found = compare(teacher.path, student.path, "test")
    theirs, ours = found["accuracies"]
    low, high = (100 * end for end in found["interval"])
    with redirect_stdout(io.StringIO()):
        sizes = [run.keras_model().count_params() for run in (student, teacher)]
    yield Comparison(
        f"distill[{name}, accuracy]", "points", 100 * ours, "teacher less the bar", 100 * theirs - most, bar=1.0,
        note=f"teacher {100 * theirs:.2f}; difference {100 * found['difference']:+.2f}, 95 % interval {low:+.2f} to "
        f"{high:+.2f} (paired bootstrap), {found['num_examples']} images",
    )  # fmt: skip
    yield Comparison(
        f"distill[{name}, parameters]", "million", sizes[0] / 1e6, "teacher", sizes[1] / 1e6,
        bar=0.26 if name == "half" else 0.1, at_most=True,
    )  # fmt: skip
