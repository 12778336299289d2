"""What is frozen does not move, bit for bit; what is trained does; batch norm keeps its statistics."""

from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.doubles import OPTIMIZER, PARALLEL, build, memory_source, normalised
from tests.normalised import NORMALISED
from tl_dist.config import ModelConfig
from tl_dist.data.order import Order
from tl_dist.data.pipeline import dropout_masks, plain, train_batches
from tl_dist.models import batch_norm, classifier
from tl_dist.models.classifier import digest
from tl_dist.refusal import Refusal
from tl_dist.training import chunk, losses, optim, step
from tl_dist.training.losses import class_weights


def train(net: classifier.Classifier, steps: int = 3, *, image_size: int = 32, **settings: Any) -> dict[str, float]:
    source, order = memory_source(12, size=image_size), Order(0, 12, 4)
    transforms = [dropout_masks(order, net.mask_rates)] if net.mask_rates else []
    batches = train_batches(plain(source, image_size), order, rows=range(4), steps=range(steps), transforms=transforms)
    optimizer = optim.Optimizer(OPTIMIZER, net.trainable, scale_loss=False)
    run = chunk.train_chunk(
        step.TrainStep(net, optimizer, losses.Objective(3, 4), PARALLEL, lambda s: tf.constant(0.1), **settings)
    )
    sums = run(iter(batches), tf.constant(0, tf.int64), tf.constant(steps, tf.int64))
    return {key: float(value) for key, value in sums.items()}


def moved(net: classifier.Classifier, before: dict[str, np.ndarray]) -> set[str]:
    now = {path: v.numpy() for path, v in {**net.trainable, **net.frozen}.items()}
    return {path for path, value in now.items() if not np.array_equal(value, before[path])}


@pytest.mark.parametrize(
    ("train_from", "trained"),
    [
        ("head", ()),
        ("block3", ("block3",)),
        ("block2_conv1", ("block2", "block3")),
        ("all", ("block1", "block2", "block3")),
    ],
)
def test_exactly_the_chosen_variables_move(train_from: str, trained: tuple[str, ...]) -> None:
    net = build(train_from=train_from, hidden=8)
    before = {path: v.numpy().copy() for path, v in {**net.trainable, **net.frozen}.items()}
    train(net)
    expected = {f"backbone/{block}_conv1/{name}" for block in trained for name in ("kernel", "bias")}
    expected |= {f"head/{layer}/{name}" for layer in ("hidden", "logits") for name in ("kernel", "bias")}
    assert moved(net, before) == set(net.trainable) == expected


@pytest.mark.parametrize(
    ("train_from", "layers", "has_prefix"),
    [
        ("block3", ("block2", "block3"), True),  # what leaves the frozen part is pooled as well
        ("block2", ("block2", "block3"), True),
        ("block3", ("block3", "block1"), False),  # block1 is pooled below the place where training begins
        ("all", ("block1", "block3"), False),
        ("head", ("block1", "block3"), True),
    ],
)
def test_stages_are_pooled_in_the_trained_part_as_in_the_frozen_one(
    train_from: str, layers: tuple[str, ...], has_prefix: bool
) -> None:
    settings = {"layers": layers, "pooling": "both", "normalize": True}
    net = build(train_from=train_from, **settings)
    kernel = net.trainable["head/logits/kernel"]
    kernel.assign(np.random.default_rng(0).normal(size=kernel.shape))
    images = tf.constant(np.random.default_rng(1).integers(0, 256, (2, 32, 32, 3), np.uint8))

    frozen = net.network
    outputs = [frozen.get_layer(f"{name}_pool").output for name in sorted(layers)]
    maps = keras.Model(frozen.inputs, outputs)(tf.cast(images, tf.float32) / 127.5 - 1.0)
    pooled = [np.concatenate([np.mean(m, (1, 2)), np.max(m, (1, 2))], axis=-1) for m in maps]
    scaled = [(p - p.mean(-1, keepdims=True)) / np.sqrt(p.var(-1, keepdims=True) + 1e-6) for p in pooled]
    expected = np.concatenate(scaled, axis=-1) @ kernel.numpy()

    assert net.has_prefix == has_prefix
    assert net.stage_names == sorted(layers)
    assert net.stage_channels == [output.shape[-1] for output in outputs]
    np.testing.assert_allclose(net(images), expected, rtol=1e-4, atol=1e-4)
    before = {path: v.numpy().copy() for path, v in {**net.trainable, **net.frozen}.items()}
    train(net)
    assert moved(net, before) == set(net.trainable)
    if not has_prefix:
        with pytest.raises(Refusal, match="no frozen part that ends in one tensor"):
            net.on_features()


def test_reinitialized_layers_keep_the_random_start_of_the_seed_and_the_rest_is_loaded() -> None:
    nets = [build(train_from="block2", reinitialize="block3") for _ in range(2)]
    for net in nets:
        start = {path: v.numpy() for path, v in {**net.trainable, **net.frozen}.items()}
        with net.keeping_new():
            for variable in net.network.weights:
                variable.assign(np.full(variable.shape, 7.0))
        new = {f"backbone/block3_conv1/{name}" for name in ("kernel", "bias")}
        for path, variable in {**net.trainable, **net.frozen}.items():
            if path.startswith("backbone"):
                np.testing.assert_array_equal(variable, start[path] if path in new else 7.0, err_msg=path)
        assert net.new == new
    path = "backbone/block3_conv1/kernel"
    np.testing.assert_array_equal(nets[0].trainable[path], nets[1].trainable[path])


def test_reinitialized_layers_must_be_trained() -> None:
    build(train_from="block2", reinitialize="block2").refuse_frozen_random()
    with pytest.raises(Refusal, match=r"'block1' reaches below train_from 'block2': backbone/block1_conv1"):
        build(train_from="block2", reinitialize="block1").refuse_frozen_random()
    with pytest.raises(Refusal, match=r"model\.reinitialize is 'block9', which is no stage or layer"):
        build(train_from="all", reinitialize="block9")


def test_views_share_their_variables_and_the_widest_has_those_of_all() -> None:
    net = build(train_from="block3")
    views = [net.trained_from(part) for part in ("head", "all", "block2")]
    assert [len(view.trainable) for view in views] == [2, 8, 6]
    assert classifier.widest(views) is views[1] and len(net.trainable) == 4
    assert all(view.trainable[path] is views[1].trainable[path] for view in views for path in view.trainable)


@pytest.mark.parametrize(
    ("train_from", "blocks", "policy"),
    [
        *(("all", (1, 2), policy) for policy in ("frozen", "inference", "train", "sync")),
        *(("two", (2,), policy) for policy in ("frozen", "sync")),
        ("head", (), "sync"),
    ],
)
def test_batch_norm_moves_what_its_policy_says_and_nothing_in_a_frozen_part(
    train_from: str, blocks: tuple[int, ...], policy: str
) -> None:
    net = normalised(train_from, policy)
    before = {path: v.numpy().copy() for path, v in {**net.moving, **net.frozen}.items()}
    train(net)
    expected = {"head/logits/kernel", "head/logits/bias"}
    for k in blocks:
        expected |= {f"backbone/conv{k}/{name}" for name in ("kernel", "bias")}
        if policy != "frozen":
            expected |= {f"backbone/norm{k}/{name}" for name in ("gamma", "beta")}
        if policy in ("train", "sync"):
            # The batch's own mean takes the bias of the convolution out again: no gradient reaches it.
            expected -= {f"backbone/conv{k}/bias"}
            expected |= {f"backbone/norm{k}/moving_{name}" for name in ("mean", "variance")}
    now = {path: v.numpy() for path, v in {**net.moving, **net.frozen}.items()}
    moved = {path for path, value in now.items() if not np.array_equal(value, before[path])}
    biases = {"backbone/conv1/bias", "backbone/conv2/bias"} if policy in ("train", "sync") else set()
    assert moved - biases == expected - biases
    assert not {path for path in moved if path in net.frozen}
    assert set(net.statistics) == {path for path in expected if "moving" in path}


def test_a_skipped_step_moves_no_statistic() -> None:
    net = normalised("all", "sync")
    still = {path: v.numpy() for path, v in net.statistics.items()}
    net.move_statistics([tf.fill(v.shape, np.nan) for v in net.statistics.values()], tf.constant(1.0))
    for path, value in still.items():
        np.testing.assert_array_equal(net.statistics[path], value)


@pytest.mark.parametrize(
    ("train_from", "settings", "synchronized"),
    [
        ("all", {"weights": "random"}, {"norm1", "norm2"}),
        ("two", {"weights": "random"}, {"norm2"}),
        ("all", {}, set()),
        ("all", {"reinitialize": "two"}, {"norm2"}),
    ],
)
def test_left_to_itself_a_trained_layer_is_synchronized_where_its_statistics_are_not_pretrained(
    train_from: str, settings: dict[str, Any], synchronized: set[str]
) -> None:
    net = normalised(train_from, "auto", **settings)
    assert {path.split("/")[1] for path in net.statistics} == synchronized
    pretrained = {"norm1", "norm2"} - synchronized if train_from == "all" else {"norm2"} - synchronized
    assert {f"backbone/{name}/gamma" for name in synchronized | pretrained} <= set(net.trainable)


def test_a_backbone_that_another_run_has_trained_has_its_statistics() -> None:
    config = ModelConfig(backbone="normalised", weights="random", train_from="all")
    net = classifier.Classifier(NORMALISED, config, image_size=32, num_classes=3, seed=0, carried=True)
    assert not net.statistics


def test_the_momentum_of_the_statistics_is_the_networks_own_unless_one_is_given() -> None:
    default, configured = normalised("all", "sync"), normalised("all", "sync", batch_norm_momentum=0.5)
    assert set(default.momentum.values()) == {0.9} and set(configured.momentum.values()) == {0.5}
    assert default.momentum.keys() == default.statistics.keys()


@pytest.mark.parametrize(("pooling", "features"), [("average", 64), ("maximum", 64), ("both", 128), ("flatten", 1024)])
def test_pooling_gives_its_features_to_the_head(pooling: str, features: int) -> None:
    net = build(pooling=pooling, dropout=0.5)
    assert (net.mask_features, net.stage_names, net.stage_channels) == (features, ["block3"], [64])
    kernel = net.trainable["head/logits/kernel"]
    assert kernel.shape == (features, 3)
    kernel.assign(np.random.default_rng(0).normal(size=kernel.shape))
    images = tf.constant(memory_source(2, size=32).store.images)
    maps = net.network(tf.cast(images, tf.float32) / 127.5 - 1.0)
    pools = {
        "average": [keras.layers.GlobalAveragePooling2D()],
        "maximum": [keras.layers.GlobalMaxPooling2D()],
        "both": [keras.layers.GlobalAveragePooling2D(), keras.layers.GlobalMaxPooling2D()],
        "flatten": [keras.layers.Flatten()],
    }
    expected = tf.concat([layer(maps) for layer in pools[pooling]], axis=1) @ kernel
    np.testing.assert_allclose(net(images), expected, rtol=1e-4, atol=1e-4)


def test_checksums_are_the_sums_of_the_bits_of_each_variable_modulo_a_power_of_two() -> None:
    net = build(train_from="block2")
    checksums = step.weight_checksums(net, PARALLEL)().numpy()
    bits = [variable.numpy().view(np.int32).ravel().tolist() for variable in net.moving.values()]
    assert checksums.tolist() == [[sum(words) % 2**40 for words in bits]]


def test_classic_head_is_flatten_dense_relu_dense() -> None:
    net = build(pooling="flatten", hidden=128)
    images = tf.constant(memory_source(2, size=32).store.images)
    features = tf.reshape(net.network(tf.cast(images, tf.float32) / 127.5 - 1.0), [2, -1])
    weights = net.trainable
    hidden = tf.nn.relu(features @ weights["head/hidden/kernel"] + weights["head/hidden/bias"])
    expected = hidden @ weights["head/logits/kernel"] + weights["head/logits/bias"]
    np.testing.assert_allclose(net(images), expected, rtol=1e-4, atol=1e-5)


def test_without_a_mask_the_logits_are_the_mean_of_those_with_complementary_masks() -> None:
    net = build(dropout=0.5)
    kernel = net.trainable["head/logits/kernel"]
    kernel.assign(np.random.default_rng(0).normal(size=kernel.shape))
    images = tf.constant(memory_source(2, size=32).store.images)
    half = tf.constant([[True] * 32 + [False] * 32] * 2)
    outputs = net.prefix(images)
    mean = (net.suffix(outputs, half) + net.suffix(outputs, tf.logical_not(half))) / 2
    np.testing.assert_allclose(net(images), mean, rtol=1e-4, atol=1e-5)


def test_xla_compiles_forward_and_backward_to_the_same_step() -> None:
    plain, compiled = build(train_from="all"), build(train_from="all")
    losses = [train(plain)["loss"], train(compiled, xla=True)["loss"]]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    for path, variable in plain.trainable.items():
        np.testing.assert_allclose(variable, compiled.trainable[path], rtol=1e-4, atol=1e-6)


def test_logits_are_float32_under_mixed_precision() -> None:
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        net = build(train_from="all", hidden=8)
        assert net(tf.constant(memory_source(2, size=32).store.images)).dtype == tf.float32
        assert {v.dtype for v in net.trainable.values()} == {tf.float32}
    finally:
        keras.config.set_dtype_policy("float32")


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_gradient_that_is_bfloat16_travels_as_such_and_a_sum_of_several_as_float32(
    accumulate: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    reduced: list[Any] = []

    def reduce(grads: list[Any]) -> list[Any]:
        reduced.extend(grads)
        return [tf.cast(grad, tf.float32) for grad in grads]

    monkeypatch.setattr(PARALLEL, "reduce_gradients", reduce)
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        net = build(train_from="block3", hidden=8)
        train(net, steps=1, accumulate=accumulate)
    finally:
        keras.config.set_dtype_policy("float32")
    narrow = {path for path, grad in zip(net.trainable, reduced, strict=True) if grad.dtype == tf.bfloat16}
    backbone = {path for path in net.trainable if path.startswith("backbone/")}
    assert narrow == (backbone if accumulate == 1 else set())


def test_an_unknown_stage_is_refused_with_the_stages() -> None:
    with pytest.raises(Refusal, match=r"'block9'.*Fix: use head, all, or one of block1, block2, block3\."):
        build(train_from="block9")


def test_label_smoothing_and_class_weights_against_numpy() -> None:
    logits = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
    labels, weights = np.array([0, 1, 2, 2]), np.array([1.0, 2.0, 0.5])
    log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    targets = np.eye(3)[labels] * 0.9 + 0.1 / 3
    expected = -(targets * log_p).sum(1) * weights[labels]
    objective = losses.Objective(3, 4, label_smoothing=0.1, class_weights=list(weights))
    batch = step.Batch(None, tf.constant(labels, tf.int32), tf.ones(4), None, None, None, None)
    np.testing.assert_allclose(objective.losses(tf.constant(logits), batch), expected, rtol=1e-5)


def test_balanced_class_weights_give_each_class_the_same_sum() -> None:
    assert class_weights("balanced", [0, 0, 0, 1], 3) == pytest.approx([4 / 6, 4 / 2, 0.0])


def test_a_digest_tells_arrays_apart_whose_bytes_are_the_same() -> None:
    kernel, wide = np.zeros((2, 3), np.float32), np.arange(8).reshape(2, 4)
    alike = [
        {"a": kernel}, {"b": kernel}, {"a": kernel.T}, {"a": kernel.view(np.int32)}, {"a": kernel[:1], "b": kernel[1:]},
    ]  # fmt: skip
    assert len({digest(arrays) for arrays in alike}) == len(alike)
    assert digest({"a": kernel, "b": wide.T}) == digest({"b": wide.T.copy(), "a": kernel})


def test_batch_norm_over_another_axis_than_the_last_is_not_taken_for_one_that_can_be_trained() -> None:
    inputs = keras.Input((4, 4, 3))
    network = keras.Model(inputs, keras.layers.BatchNormalization(axis=1, name="rows")(inputs))
    with pytest.raises(ValueError, match="rows normalizes axis 1, not the last"):
        batch_norm.adopt(network)
