"""Which kernels get adapters, what a network computes with them, and in one line why a choice has none."""

from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.doubles import build
from tests.small_vit import SMALL_VIT
from tl_dist.config import ModelConfig
from tl_dist.config.lora import LoraConfig
from tl_dist.models import classifier, lora
from tl_dist.refusal import ExitCode, Refusal

IMAGES = tf.constant(np.random.default_rng(0).integers(0, 256, (4, 24, 24, 3), dtype=np.uint8))


def transformer(train_from: str = "all", *, parts: tuple[str, ...] = (), **settings: Any) -> classifier.Classifier:
    config = ModelConfig(backbone="small_vit", train_from=train_from, adapt=LoraConfig(**settings))
    return classifier.Classifier(SMALL_VIT, config, image_size=24, num_classes=3, seed=0, parts=parts)


def adapted(net: classifier.Classifier) -> set[str]:
    """The adapted layers of the trained part, and nothing else but the head is trained."""
    paths = {path for path in net.trainable if path.startswith("backbone/")}
    assert all(path.endswith(lora.NAMES) for path in paths) and len(paths) % 2 == 0
    return {path.removeprefix("backbone/").rpartition("/")[0] for path in paths}


def learnt(net: classifier.Classifier) -> None:
    """Let every adapter have learnt something."""
    random = np.random.default_rng(1)
    for path, variable in net.trainable.items():
        if path.endswith("lora_b") or path.startswith("head/"):
            variable.assign(random.normal(size=variable.shape) / 10)


def test_only_the_trained_part_is_adapted_and_no_kernel_smaller_than_its_adapter() -> None:
    parts = {f"attention/{part}" for part in ("query", "key", "value", "attention_output")} | {"mlp1", "mlp2"}
    assert adapted(transformer("block1", lora=4)) == {f"block1_{part}" for part in parts}
    # Positions, tokens and the scales of LayerScale are kernels of a single input.
    assert adapted(transformer("all", lora=4)) == {
        "patch_embed",
        *(f"block{k}_{part}" for k in (0, 1) for part in parts),
    }
    assert adapted(transformer("all", lora=16)) == {
        "patch_embed",
        *(f"block{k}_mlp{n}" for k in (0, 1) for n in (1, 2)),
    }


def test_a_pattern_is_searched_in_the_names_of_layers_within_layers() -> None:
    assert adapted(transformer(lora=2, layers="block0.*/(query|value)$")) == {
        "block0_attention/query", "block0_attention/value"
    }  # fmt: skip


def test_a_stage_trains_its_own_adapters_and_keeps_those_below() -> None:
    whole = transformer("head", parts=("block0", "block1"), lora=2, layers="mlp1")
    assert adapted(whole) == set() and not whole.frozen.keys() & whole.trainable.keys()
    assert adapted(whole.trained_from("block0")) == {"block0_mlp1", "block1_mlp1"}
    later = whole.trained_from("block1")
    assert adapted(later) == {"block1_mlp1"} and "backbone/block0_mlp1/lora_b" in later.frozen
    before = later.prefix_digest()
    later.trainable["backbone/block1_mlp1/lora_b"].assign_add(tf.ones([2, 128]))
    assert later.prefix_digest() == before
    later.frozen["backbone/block0_mlp1/lora_b"].assign_add(tf.ones([2, 128]))
    assert later.prefix_digest() != before
    assert whole.depths["backbone/block0_mlp1/lora_a"] == whole.depths["backbone/block0_mlp1/kernel"]


def test_grouped_and_depthwise_convolutions_and_other_einsums_are_left_as_they_are() -> None:
    inputs = keras.Input((8, 8, 16))
    x = keras.layers.Conv2D(16, 3, groups=4, name="grouped")(inputs)
    x = keras.layers.DepthwiseConv2D(3, name="depthwise")(x)
    x = keras.layers.EinsumDense("bhwc,hcd->bhwd", (4, 4, 16), name="by_row")(x)
    x = keras.layers.EinsumDense("bhwc,dc->bhwd", (4, 4, 16), name="transposed")(x)
    x = keras.layers.Conv2D(16, 1, name="plain")(x)
    network = keras.Model(inputs, x)
    assert [*lora.add(network.layers, LoraConfig(lora=2), 0)] == ["plain"]


def test_the_start_is_the_network_and_a_depends_on_the_seed_alone() -> None:
    adapters = LoraConfig(lora=4)
    plain, ours = (build(image_size=24, train_from="block2") for _ in range(2))
    lora.add(ours.network.layers[3:], adapters, 0)
    np.testing.assert_array_equal(ours(IMAGES), plain(IMAGES))
    first, again, other = (lora.add(build().network.layers, adapters, seed)["block2_conv1"] for seed in (1, 1, 2))
    for name in first:
        np.testing.assert_array_equal(first[name], again[name])
    assert not np.array_equal(*(table["backbone/block2_conv1/lora_a"] for table in (first, other)))


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
@pytest.mark.parametrize("name", ["transformer", "convolutions"])
def test_merged_it_computes_the_same(name: str, policy: str) -> None:
    """In 16 bits as well, where both round the same sum, which may differ in its last bit."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        adapters, image_size = LoraConfig(lora=3, alpha=6), 24
        settings: dict[str, Any] = {"lora": 3, "alpha": 6}
        ours = transformer(**settings) if name == "transformer" else _convolutions(adapters)
        learnt(ours)
        arrays = {path: v.numpy() for path, v in ours.moving.items()}
        config = ours._config.model_copy(update={"adapt": "all"})
        plain = classifier.Classifier(ours._backbone, config, image_size=image_size, num_classes=3, seed=0)
    finally:
        keras.config.set_dtype_policy(before)
    start = plain(IMAGES).numpy()
    for path, value in arrays.items():
        if path in plain.trainable:
            plain.trainable[path].assign(value)
    lora.merge(plain.trainable, arrays, adapters)
    logits = tf.function(ours)(IMAGES).numpy()
    tolerance = 1e-6 if policy == "float32" else 2e-2
    np.testing.assert_allclose(tf.function(plain)(IMAGES), logits, rtol=tolerance, atol=tolerance)
    assert np.abs(logits - start).max() > 0.1


def _convolutions(adapters: LoraConfig) -> classifier.Classifier:
    return build(image_size=24, train_from="all", adapt=adapters)


@pytest.mark.parametrize(
    ("train_from", "settings", "what"),
    [
        (
            "block1",
            {"lora": 4, "layers": "block0"},
            "model.adapt.layers 'block0' matches no layer that is trained and can have an adapter. Fix: write a part "
            "of their names, which are block1_attention/query, block1_attention/key, block1_attention/value ...",
        ),
        (
            "block1",
            {"lora": 40, "layers": "attention"},
            "model.adapt.lora is 40, at which no adapter would be smaller than its kernel. Fix: write 'lora: 15' or "
            "less.",
        ),
        (
            "top",
            {"lora": 4},
            "model.adapt: no layer that is trained has a kernel for which LoRA has an adapter. Fix: train more of the "
            "backbone with model.train_from, or remove 'adapt'.",
        ),
    ],
)
def test_a_choice_without_adapters_is_refused(train_from: str, settings: dict[str, Any], what: str) -> None:
    with pytest.raises(Refusal) as caught:
        transformer(train_from, **settings)
    assert str(caught.value).startswith(what) and caught.value.code == ExitCode.USAGE


def test_the_largest_rank_that_a_refusal_names_is_taken() -> None:
    assert len(adapted(transformer("block1", lora=15, layers="attention"))) == 4
