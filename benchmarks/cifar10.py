"""CIFAR-10: the classic settings, a better recipe, the usual wrong preprocessing, and the cost in plain Keras.

`TL_DIST_CIFAR10` names a directory: train/CLASS/IMAGE and test/CLASS/IMAGE. Takes hours. Times are of the CPU, so that
other work on the machine counts little.
"""

import json
import os
import resource
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.comparison import Comparison, NotHereError

CONFIGS = Path(__file__).parents[1] / "configs"
VARIABLE = "TL_DIST_CIFAR10"
POINTS = 0.03
KERAS_EPOCHS = 1


def comparisons() -> Iterator[Comparison]:
    from benchmarks.cells import WEIGHTS
    from benchmarks.vs_keras_accuracy import answer, keras_script, weights
    from tl_dist.models.precision import cpu_has_bfloat16

    if VARIABLE not in os.environ:
        raise NotHereError(f"it needs the images: {VARIABLE}=DIRECTORY, with train/CLASS/IMAGE and test/CLASS/IMAGE")
    images = Path(os.environ[VARIABLE]).absolute()
    data = ("data.name=image_folder", f"data.path={json.dumps(str(images))}", f"model.weights={WEIGHTS}")
    directory = Path(tempfile.mkdtemp(prefix="tl-dist-benchmark-"))
    try:
        classic, classic_s = _trained(CONFIGS / "vgg16_cifar10_finetune.yaml", directory, *data)
        best, best_s = _trained(CONFIGS / "vgg16_cifar10_best.yaml", directory, *data)
        yield Comparison(
            "cifar10[recipe]", "(accuracy)", best["accuracy"], "classic fine-tuning", classic["accuracy"],
            bar=(classic["accuracy"] + POINTS) / classic["accuracy"],
            note=f"{_interval(best)} against {_interval(classic)} of {best['num_examples']:,} test images",
        )  # fmt: skip
        yield Comparison(
            "cifar10[time]",
            "CPU min",
            best_s / 60,
            "classic fine-tuning",
            classic_s / 60,
            bar=1.0,
            at_most=True,
        )
        policy = "mixed_bfloat16" if cpu_has_bfloat16() else "float32"  # what tl_dist takes
        script = ("--epochs", str(KERAS_EPOCHS), "--policy", policy)
        keras = json.loads(answer(keras_script("cifar10.py", weights(), str(images), *script)))
        keras_s = 10 * keras["cpu_seconds"] / KERAS_EPOCHS
        yield Comparison(
            "cifar10[plain Keras]", "CPU min", classic_s / 60, "10 epochs of fit", keras_s / 60,
            bar=1.0, at_most=True,
            note=f"Keras by its first {KERAS_EPOCHS}, which ends at accuracy {keras['accuracy']:.4f}",
        )  # fmt: skip
        features, _ = _trained(CONFIGS / "vgg16_cifar10_features.yaml", directory, *data)
        right, wrong = _preprocessed(images)
        yield Comparison(
            "cifar10[preprocessing]", "(accuracy)", right, "divided by 255", wrong, bar=1.2,
            note=f"the classic head on frozen features; the config's own run {_interval(features)}",
        )  # fmt: skip
    finally:
        shutil.rmtree(directory)


def _trained(config: Path, directory: Path, *overrides: str) -> tuple[dict[str, Any], float]:
    """The figures of the test split of a config, and the CPU seconds of its run from start to end."""
    from benchmarks.cells import tl_dist

    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    tl_dist("train", str(config), *overrides, cwd=directory)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = json.loads((directory / "runs" / config.stem / "DONE").read_text())
    return done["figures"]["test"], after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def _preprocessed(images: Path) -> tuple[float, float]:
    """Test accuracies of the classic head on features of rightly preprocessed images, and of those divided by 255."""
    from benchmarks.preprocessing import accuracy, features
    from tl_dist.config import DataConfig, registry

    opened = registry.dataset("image_folder").open(DataConfig(name="image_folder", path=str(images)))
    values = {name: features(opened[name]) for name in ("train", "test")}
    labels = {name: np.asarray(opened[name].labels) for name in values}
    found = [
        accuracy((values["train"][side], labels["train"]), (values["test"][side], labels["test"]), 0) for side in (0, 1)
    ]
    return found[0], found[1]


def _interval(figures: dict[str, Any]) -> str:
    low, high = figures["interval"]
    return f"{figures['accuracy']:.4f} ({low:.4f} to {high:.4f})"
