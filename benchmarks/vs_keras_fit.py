"""Fine-tuning all of VGG16 at 32 px, batch 32: tl_dist against `model.fit` as one writes it, in float32."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from benchmarks.comparison import Comparison, in_turn

if TYPE_CHECKING:
    from tl_dist.config import Config

STEPS = 10
BARS = {"float32": 1.0, "mixed_bfloat16": 1.4}


def comparisons() -> Iterator[Comparison]:
    from benchmarks.trainer import config
    from tl_dist.models.precision import cpu_has_bfloat16

    cfg = config()
    precisions = [name for name in BARS if name == "float32" or cpu_has_bfloat16()]
    sides = {name: ours(name, cfg) for name in precisions}
    sides |= {f"fit {name}": fit(name, cfg, vgg16) for name in precisions}
    for side in sides.values():
        side()  # compile
    found = in_turn(sides, rounds=7)
    for name in precisions:
        note = "" if name == "float32" else f"model.fit under {name}: {found[f'fit {name}']:.4g} images/s"
        yield Comparison(
            f"vs_keras_fit[{name}]", "images/s", found[name], "model.fit float32", found["fit float32"],
            bar=BARS[name], note=note,
        )  # fmt: skip


def vgg16(inputs: Any) -> Any:
    """Return the features of the images as one writes it."""
    import keras

    x = keras.applications.vgg16.preprocess_input(inputs)
    x = keras.applications.VGG16(include_top=False, weights=None, input_tensor=x).output
    return keras.layers.GlobalAveragePooling2D()(x)


def ours(precision: str, cfg: Config, steps: int = STEPS) -> Callable[[], float]:
    """Return what measures the images per second of tl_dist's loop."""
    from benchmarks.trainer import Trainer, advance
    from tl_dist.parallel.single import SingleDevice

    reports = Trainer(cfg, SingleDevice(cfg), precision).reports(steps)

    def measure() -> float:
        start = time.perf_counter()
        pulled = advance(reports, steps)
        return sum(report.num_examples for report in pulled) / (time.perf_counter() - start)

    return measure


def fit(precision: str, cfg: Config, features: Callable[[Any], Any], steps: int = STEPS) -> Callable[[], float]:
    """Return what measures the images per second of `model.fit` with a head on these features."""
    import keras
    import tensorflow as tf

    from benchmarks.trainer import synthetic_images

    keras.config.set_dtype_policy(precision)
    (images, labels), batch = synthetic_images(cfg), cfg.global_batch
    inputs = keras.Input(images.shape[1:])
    net = keras.Model(inputs, keras.layers.Dense(10, dtype="float32")(features(inputs)))
    net.compile(
        optimizer=keras.optimizers.SGD(1e-4, momentum=0.9),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    data = tf.data.Dataset.from_tensor_slices((images, labels)).shuffle(len(labels)).repeat().batch(batch).prefetch(2)

    def measure() -> float:
        start = time.perf_counter()
        net.fit(data, steps_per_epoch=steps, epochs=1, verbose=0)
        return steps * batch / (time.perf_counter() - start)

    return measure
