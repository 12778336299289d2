"""How far runs drift apart that differ in rounding alone: by two workers, two threads or other kernels.

python -m benchmarks.rounding [DIRECTORY]

It trains configs/smoke.yaml below DIRECTORY (build/rounding), where finished runs are not done again, prints the
figures and draws docs/pages/images/rounding.svg. A sum of float32 numbers depends on its order, by parts in 10 million.
Workers, threads and kernels change that order; training then multiplies what little differs. Whether more workers do
anything else is seen beside what rounding alone does: to one seed, step by step, and to the accuracies of many.
"""

import json
import os
import platform
import re
import subprocess
import sys
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parent.parent
PICTURE = ROOT / "docs" / "pages" / "images" / "rounding.svg"
TL_DIST = str(Path(sys.executable).parent / "tl-dist")
PLAIN = ("report.every_steps=1", "report.tensorboard=false", "runtime.threads=1")
SEEDS = range(8)


@dataclass(frozen=True)
class Variant:
    """What is different from one worker with one thread."""

    label: str
    colour: str
    arguments: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)
    every_seed: bool = False


VARIANTS = {
    "one": Variant("one worker, one thread", "#4d4d4d", every_seed=True),
    "threads": Variant("one worker, two threads", "#0072b2", ("runtime.threads=2",), every_seed=True),
    "two": Variant("two workers", "#d55e00", ("--strategy=collective", "-n2"), every_seed=True),
    "kernels": Variant("one worker, other kernels", "#009e73", environment={"TF_ENABLE_ONEDNN_OPTS": "0"}),
}
"""the kernels are TensorFlow's own, where it otherwise has oneDNN's for this processor"""


@dataclass(frozen=True)
class Figures:
    """Of one run: the loss of each step, and how many test images it is right about in the end."""

    losses: np.ndarray
    num_correct: int
    num_examples: int


def trained(name: str, seed: int, directory: Path) -> Figures:
    """The figures of a variant with a seed; it is trained unless it is there."""
    variant, run = VARIANTS[name], f"{name}-{seed}"
    argv = [TL_DIST, "train", str(ROOT / "configs" / "smoke.yaml"), *PLAIN, f"name={run}", f"seed={seed}"]
    environment = os.environ | variant.environment
    done = subprocess.run(
        [*argv, *variant.arguments],
        cwd=directory,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"{run}: {done.stdout}{done.stderr}")
    lines = (directory / "runs" / run / "metrics.jsonl").read_text().splitlines()
    records: list[dict[str, Any]] = [json.loads(line) for line in lines]
    losses = np.array([one["loss"] for one in records if one["event"] == "train"])
    end = [one for one in records if one["event"] == "evaluation" and one["split"] == "test"][-1]
    return Figures(losses, end["num_correct"], end["num_examples"])


def apart(first: Figures, second: Figures) -> np.ndarray:
    """By how much of the first's loss the two differ, after each step the most so far."""
    most: np.ndarray = np.maximum.accumulate(np.abs(second.losses / first.losses - 1))
    return most


def measured(directory: Path) -> dict[tuple[str, int], Figures]:
    """By variant and seed."""
    found = {}
    for seed in SEEDS:
        for name, variant in VARIANTS.items():
            if variant.every_seed or seed == SEEDS[0]:
                found[name, seed] = trained(name, seed, directory)
                print(
                    name,
                    seed,
                    f"{found[name, seed].num_correct} of {found[name, seed].num_examples}",
                    flush=True,
                )
    return found


def draw(found: dict[tuple[str, int], Figures]) -> None:
    """Left the losses of one seed drift apart, right the accuracies of all seeds."""
    import matplotlib as mpl

    mpl.use("Agg")
    mpl.rcParams |= {
        "font.family": "DejaVu Sans",
        "font.size": 9.5,
        "svg.hashsalt": "rounding",
        "svg.fonttype": "none",
    }
    from matplotlib import pyplot as plt

    sheet, (left, right) = plt.subplots(
        1, 2, figsize=(9.6, 4.3), width_ratios=(1.75, 1), layout="constrained", facecolor="white"
    )
    sheet.get_layout_engine().set(wspace=0.06)
    _drift(left, found)
    _accuracies(right, found)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    sheet.savefig(PICTURE, metadata={"Date": None})
    plt.close(sheet)
    # Nobody sees less than a hundredth of a point; texts have three digits.
    PICTURE.write_text(re.sub(r"(\.\d\d)\d{2,}", r"\1", PICTURE.read_text()))


def _drift(axes: Any, found: dict[tuple[str, int], Figures]) -> None:
    one = found["one", SEEDS[0]]
    steps = np.arange(1, len(one.losses) + 1)
    axes.axhline(2**-24, color="#999999", lw=0.8, ls=(0, (4, 3)))
    axes.text(steps[-1], 2**-24 * 0.8, "one rounding of float32", ha="right", va="top", fontsize=8, color="#555555")
    curves = [(v.label, v.colour, apart(one, found[n, SEEDS[0]])) for n, v in VARIANTS.items() if n != "one"]
    curves.append(("one worker, another seed", "#b9b9b9", apart(one, found["one", SEEDS[1]])))
    for label, colour, values in curves:
        axes.plot(steps, np.maximum(values, 1e-8), color=colour, lw=1.9, label=label, solid_joinstyle="round")
    axes.set(yscale="log", ylim=(1e-8, 10), xlim=(1, steps[-1]), xlabel="step")
    axes.set_ylabel("largest relative difference of a loss so far")
    axes.set_title("One seed: losses drift apart\n", loc="left", fontsize=11, fontweight="bold")
    axes.text(0, 1.02, "from those of one worker with one thread", transform=axes.transAxes, color="#555555")
    axes.legend(loc="lower right", bbox_to_anchor=(1.0, 0.13), frameon=False, handlelength=1.6)
    axes.grid(axis="y", color="#e6e6e6", lw=0.7)
    axes.set_axisbelow(True)


def _accuracies(axes: Any, found: dict[tuple[str, int], Figures]) -> None:
    names = [name for name, variant in VARIANTS.items() if variant.every_seed]
    shares = np.array(
        [[found[name, seed].num_correct / found[name, seed].num_examples for name in names] for seed in SEEDS]
    )
    for row in shares:
        axes.plot(range(len(names)), row, color="#d9d9d9", lw=0.8, zorder=1)
    for k, name in enumerate(names):
        axes.scatter(np.full(len(SEEDS), k), shares[:, k], s=34, color=VARIANTS[name].colour, lw=0, alpha=0.8, zorder=2)
        mean = shares[:, k].mean()
        axes.plot([k - 0.22, k + 0.22], [mean, mean], color=VARIANTS[name].colour, lw=2.4, zorder=3)
        paper = {"facecolor": "white", "edgecolor": "none", "pad": 1}
        axes.text(k + 0.27, mean, f"{mean:.3f}", va="center", fontsize=8.5, color=VARIANTS[name].colour, bbox=paper)
    axes.set_title("Eight seeds: accuracies do not\n", loc="left", fontsize=11, fontweight="bold")
    axes.text(0, 1.02, "bars: means; lines: the same seed", transform=axes.transAxes, color="#555555")
    axes.set_xticks(range(len(names)), [VARIANTS[name].label.replace(", ", ",\n") for name in names])
    axes.set(xlim=(-0.45, len(names) - 0.4), ylabel="accuracy on 449 test images")
    axes.grid(axis="y", color="#e6e6e6", lw=0.7)
    axes.set_axisbelow(True)


def processor() -> str:
    """What the kernel calls it."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.machine())


def main() -> None:
    directory = Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / "build" / "rounding")
    directory.mkdir(parents=True, exist_ok=True)
    found = measured(directory)
    one = found["one", SEEDS[0]]
    print(f"{date.today():%-d %B %Y}, {processor()}, {os.cpu_count()} cores")
    for name, variant in VARIANTS.items():
        drift = apart(one, found[name, SEEDS[0]])
        ends = ", ".join(f"{drift[k - 1]:.1e} at {k}" for k in (10, 20, 50, 100, len(drift)))
        print(f"{variant.label}: {ends}; right {found[name, SEEDS[0]].num_correct}")
        if variant.every_seed and name != "one":
            gaps = np.array([found[name, k].num_correct - found["one", k].num_correct for k in SEEDS])
            error = gaps.std(ddof=1) / np.sqrt(len(gaps))
            print(f"  over {len(gaps)} seeds {gaps.mean():+.1f} images, standard error {error:.1f}: {gaps.tolist()}")
    spread = np.std([found["one", k].num_correct for k in SEEDS], ddof=1)
    print(f"one worker over seeds: standard deviation {spread:.1f} images")
    draw(found)


if __name__ == "__main__":
    main()
