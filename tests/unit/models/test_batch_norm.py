"""The fused kernel of batch norm, which GPUs get, computes what the layer computes: outputs, gradients, moments."""

from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from tl_dist.models import batch_norm

CHANNELS = 5


def layer(**settings: Any) -> tuple[Any, Any]:
    """Return a layer with values that no initializer gives, and the network that consists of it."""
    inputs = keras.Input((6, 7, CHANNELS))
    normalizes = keras.layers.BatchNormalization(name="norm", **settings)
    network = keras.Model(inputs, normalizes(inputs))
    batch_norm.adopt(network)
    rng = np.random.default_rng(0)
    for variable in normalizes.weights:
        variable.assign(rng.uniform(0.5, 1.5, CHANNELS))
    return normalizes, network


def computed(
    settings: dict[str, Any], of_batch: bool, *, fused: bool, policy: str = "float32"
) -> dict[str, np.ndarray]:
    """Return outputs and moments of one batch, and gradients of a loss that weighs each element differently."""
    keras.config.set_dtype_policy(policy)
    try:
        normalizes, network = layer(**settings)
    finally:
        keras.config.set_dtype_policy("float32")
    rng = np.random.default_rng(1)
    inputs = tf.constant(rng.normal(3, 2, size=(4, 6, 7, CHANNELS)), normalizes.compute_dtype)
    weights = tf.constant(rng.normal(size=inputs.shape), tf.float32)
    learned = {
        name: getattr(normalizes, name).value for name in ("gamma", "beta") if getattr(normalizes, name) is not None
    }
    with tf.GradientTape() as tape, batch_norm.collecting(["norm"] * of_batch, None, fused=fused) as moments:
        tape.watch(inputs)
        outputs = network(inputs)
        loss = tf.reduce_sum(tf.cast(outputs, tf.float32) * weights)
    assert outputs.dtype == normalizes.compute_dtype
    values = [outputs, *tape.gradient(loss, [inputs, *learned.values()]), *moments.of.get("norm", ())]
    names = ["outputs", "inputs", *learned, *(["mean", "variance"] if of_batch else [])]
    return {name: tf.cast(v, tf.float32).numpy() for name, v in zip(names, values, strict=True)}


@pytest.mark.parametrize("of_batch", [True, False], ids=["batch", "stored"])
@pytest.mark.parametrize("settings", [{}, {"scale": False, "epsilon": 1e-5}], ids=["all", "no scale"])
def test_the_fused_kernel_computes_what_the_layer_computes(settings: dict[str, Any], of_batch: bool) -> None:
    expected, fused_results = (computed(settings, of_batch, fused=fused) for fused in (False, True))
    assert len(fused_results) == len(expected) == 4 - ("scale" in settings) + 2 * of_batch
    for (name, value), other in zip(expected.items(), fused_results.values(), strict=True):
        np.testing.assert_allclose(other, value, rtol=1e-4, atol=1e-4, err_msg=name)
    assert not np.array_equal(fused_results["outputs"], expected["outputs"]), "the same kernel twice"


def test_its_sums_are_float32_where_its_inputs_are_not() -> None:
    expected, fused_results = (computed({}, True, fused=fused, policy="mixed_bfloat16") for fused in (False, True))
    for name in ("mean", "variance"):
        np.testing.assert_allclose(fused_results[name], expected[name], rtol=1e-4, err_msg=name)
    np.testing.assert_allclose(fused_results["outputs"], expected["outputs"], rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize(
    ("settings", "shape", "total"),
    [
        ({"epsilon": 1e-6}, (4, 6, 7, CHANNELS), None),  # cuDNN takes no less than 1e-5
        ({}, (4, CHANNELS), None),
        ({}, (4, 6, 7, CHANNELS), lambda value, name: value),  # sums over replicas
    ],
)
def test_what_the_kernel_cannot_do_is_done_without(settings: dict[str, Any], shape: Any, total: Any) -> None:
    normalizes, _ = layer(**settings)
    assert not batch_norm.Moments(["norm"], total, fused=True).fuses(normalizes, tf.zeros(shape))
