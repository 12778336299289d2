"""Fine-tuning all of VGG16 at 32 px, batch 32: tl_dist against `model.fit` as one writes it, in float32."""

import time
from collections.abc import Callable, Iterator

from benchmarks.comparison import Comparison, in_turn

STEPS = 10
BARS = {"float32": 1.0, "mixed_bfloat16": 1.4}


def comparisons() -> Iterator[Comparison]:
    from tl_dist.models.precision import cpu_has_bfloat16

    precisions = [name for name in BARS if name == "float32" or cpu_has_bfloat16()]
    sides = {name: ours(name) for name in precisions}
    sides |= {f"fit {name}": fit(name) for name in precisions}
    for side in sides.values():
        side()  # compile
    found = in_turn(sides, rounds=7)
    for name in precisions:
        note = "" if name == "float32" else f"model.fit under {name}: {found[f'fit {name}']:.4g} images/s"
        yield Comparison(
            f"vs_keras_fit[{name}]", "images/s", found[name], "model.fit float32", found["fit float32"],
            bar=BARS[name], note=note,
        )  # fmt: skip


def ours(precision: str) -> Callable[[], float]:
    from benchmarks.trainer import Trainer, advance, config
    from tl_dist.parallel.single import SingleDevice

    cfg = config()
    reports = Trainer(cfg, SingleDevice(cfg), precision).reports(STEPS)

    def measure() -> float:
        start = time.perf_counter()
        pulled = advance(reports, STEPS)
        return sum(report.num_examples for report in pulled) / (time.perf_counter() - start)

    return measure


def fit(precision: str) -> Callable[[], float]:
    import keras
    import tensorflow as tf

    from benchmarks.trainer import config, synthetic_images

    keras.config.set_dtype_policy(precision)
    images, labels = synthetic_images(config())
    inputs = keras.Input((32, 32, 3))
    x = keras.applications.vgg16.preprocess_input(inputs)
    x = keras.applications.VGG16(include_top=False, weights=None, input_tensor=x).output
    x = keras.layers.GlobalAveragePooling2D()(x)
    net = keras.Model(inputs, keras.layers.Dense(10, dtype="float32")(x))
    net.compile(
        optimizer=keras.optimizers.SGD(1e-4, momentum=0.9),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    data = tf.data.Dataset.from_tensor_slices((images, labels)).shuffle(len(labels)).repeat().batch(32).prefetch(2)

    def measure() -> float:
        start = time.perf_counter()
        net.fit(data, steps_per_epoch=STEPS, epochs=1, verbose=0)
        return STEPS * 32 / (time.perf_counter() - start)

    return measure
