"""The towers of SigLIP and CLIP compute what timm's and transformers' do from the same files, at two sizes; SigLIP's
head pools by attention, wherever a network is cut; and a run trains, explains and exports one."""

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import timm
import torch
import transformers
from safetensors.numpy import load_file, save_file

from tests.filled import filled
from tests.small_vit import SMALL_SIGLIP
from tl_dist.config import Config, ModelConfig, registry, rules
from tl_dist.models import attribution, classifier, network, pooling
from tl_dist.models.backbones import Backbone, preprocess, vit

DEPTH, WIDTH, HEADS = 2, 48, 3
NAMES = ("siglip_base", "siglip_so400m", "clip_base16", "clip_base32")


def at_sides(own: int, *others: int) -> list[Any]:
    """Each tower at the side of its grid, and one of each family at others; --full adds the rest."""
    first = ("siglip_base", "clip_base16")
    full = pytest.mark.full
    return [
        pytest.param(name, side, marks=() if side == own or name in first else full)
        for name in NAMES
        for side in (own, *others)
    ]


def small(name: str, **changes: Any) -> Backbone:
    """The record of a tower with two narrow blocks and a smaller grid, so that it costs little."""
    record = registry.backbone(name)
    whole = record.build.args[0]
    mlp = whole.mlp and 200
    shape = replace(whole, width=WIDTH, blocks=DEPTH, heads=HEADS, grid=5, mlp=mlp, **changes)
    return vit.record(name, shape, record.preprocessing)


def shuffled(model: Any) -> Any:
    """The network with weights by seed, none of them as it begins."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter + 0.1 * torch.randn_like(parameter))
    return model.eval()


def of_timm(record: Backbone) -> Any:
    shape = record.build.args[0]
    names = {
        "siglip_base": "vit_base_patch16_siglip_224",
        "siglip_so400m": "vit_so400m_patch14_siglip_224",
        "clip_base16": "vit_base_patch16_clip_quickgelu_224.openai",
        "clip_base32": "vit_base_patch32_clip_quickgelu_224.openai",
    }
    more: dict[str, Any] = {"mlp_ratio": (shape.mlp or 4 * WIDTH) / WIDTH, "dynamic_img_size": True}
    if shape.attention_pool:  # timm has GELU without tanh for most of them, which the authors do not have
        more["act_layer"] = "gelu_tanh"
    size = {"embed_dim": WIDTH, "depth": DEPTH, "num_heads": HEADS, "img_size": 5 * shape.patch}
    return shuffled(timm.create_model(names[record.name], pretrained=False, num_classes=0, **size, **more))


def of_transformers(record: Backbone, *, text: bool = False) -> Any:
    shape = record.build.args[0]
    size = {
        "hidden_size": WIDTH,
        "num_hidden_layers": DEPTH,
        "num_attention_heads": HEADS,
        "intermediate_size": shape.mlp or 4 * WIDTH,
    }
    vision = {**size, "image_size": 5 * shape.patch, "patch_size": shape.patch}
    family = "Siglip" if shape.attention_pool else "CLIP"
    if text:
        config = getattr(transformers, f"{family}Config")(vision_config=vision, text_config={**size, "vocab_size": 99})
        return shuffled(getattr(transformers, f"{family}Model")(config))
    config = getattr(transformers, f"{family}VisionConfig")(**vision)
    return shuffled(getattr(transformers, f"{family}VisionModel")(config))


def images_of(record: Backbone, side: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(2, side * record.patch, side * record.patch, 3)).astype(np.float32)


def torch_of(images: np.ndarray) -> torch.Tensor:
    return torch.tensor(images.transpose(0, 3, 1, 2))


@pytest.mark.parametrize(("name", "side"), at_sides(5, 7, 3))
@torch.no_grad()
def test_tokens_and_the_pooled_token_are_timm_s(name: str, side: int, tmp_path: Path) -> None:
    record = small(name)
    model = of_timm(record)
    save_file({name: tensor.numpy() for name, tensor in model.state_dict().items()}, tmp_path / "timm.safetensors")
    images = images_of(record, side)
    tokens = model.forward_features(torch_of(images))
    pooled = model.forward_head(tokens, pre_logits=True)
    own = np.asarray(filled(record, load_file(tmp_path / "timm.safetensors"), images.shape[1])(images))
    assert own.shape == (2, 1 + side**2, WIDTH)
    np.testing.assert_allclose(own[:, 1:], tokens[:, -(side**2) :], atol=1e-4)
    np.testing.assert_allclose(own[:, 0], pooled, atol=1e-4)


@pytest.mark.parametrize(("name", "side"), at_sides(5, 7))
@torch.no_grad()
def test_tokens_and_the_pooled_token_are_those_of_transformers(name: str, side: int, tmp_path: Path) -> None:
    """It resizes positions without antialiasing; the file of both towers has the same network below another name."""
    record = small(name, antialias=False)
    whole = of_transformers(record, text=True)
    model = whole.vision_model
    whole.save_pretrained(tmp_path / "both")
    model.save_pretrained(tmp_path / "vision")
    images = images_of(record, side)
    answer = model(torch_of(images), interpolate_pos_encoding=True)
    tokens, pooled = answer.last_hidden_state, answer.pooler_output
    if name.startswith("clip"):  # which it normalizes for the class token alone
        tokens = model.post_layernorm(tokens)
    for file in ("both", "vision"):
        stored = load_file(tmp_path / file / "model.safetensors")
        assert any(key.startswith("text_model.") for key in stored) == (file == "both")
        own = np.asarray(filled(record, stored, images.shape[1])(images))
        np.testing.assert_allclose(own[:, 1:], tokens[:, -(side**2) :], atol=1e-4)
        np.testing.assert_allclose(own[:, 0], pooled, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "theirs"),
    [
        ("siglip_base", "vit_base_patch16_siglip_224.v2_webli"),
        ("siglip_large", "vit_large_patch16_siglip_256.v2_webli"),
        ("siglip_so400m", "vit_so400m_patch14_siglip_224.v2_webli"),
        ("clip_base16", "vit_base_patch16_clip_quickgelu_224.openai"),
        ("clip_base32", "vit_base_patch32_clip_quickgelu_224.openai"),
        ("clip_large14", "vit_large_patch14_clip_quickgelu_224.openai"),
    ],
)
def test_the_whole_networks_have_timm_s_shapes(name: str, theirs: str) -> None:
    """Also those of SigLIP 2, which has no network of its own; one block stands for all."""
    record, whole = registry.backbone(name), registry.backbone(name).build.args[0]
    with torch.device("meta"):
        model = timm.create_model(theirs, pretrained=False, num_classes=0)
    assert (len(model.blocks), model.blocks[0].attn.num_heads) == (whole.blocks, whole.heads)
    assert model.blocks[0].norm1.eps == whole.epsilon and model.pretrained_cfg["input_size"][1] == record.input_size
    stored = {key: np.zeros(tensor.shape, np.float16) for key, tensor in model.state_dict().items()}
    shallow = vit.record(name, replace(whole, blocks=1), record.preprocessing)
    converted = shallow.of_torch(stored)  # type: ignore[misc]
    side = record.min_size
    assert {v.path: tuple(v.shape) for v in shallow.build((side, side, 3)).weights} == {
        path: array.shape for path, array in converted.items()
    }
    mean, deviation = (np.array(model.pretrained_cfg[key]) for key in ("mean", "std"))
    image = np.random.default_rng(0).integers(0, 255, (1, 4, 4, 3), np.uint8)
    np.testing.assert_allclose(preprocess(record.preprocessing, image), (image / 255 - mean) / deviation, atol=1e-6)


KINDS = ("attention", "average", "maximum", "both")


@pytest.mark.parametrize("layers", [(), ("block0", "top"), ("block0",)])
@pytest.mark.parametrize("kind", KINDS)
def test_stages_below_the_head_have_patches_alone_wherever_the_network_is_cut(
    kind: str, layers: tuple[str, ...]
) -> None:
    rows = 36
    parts: list[np.ndarray] = []
    settings: dict[str, Any] = {"backbone": "siglip_base", "weights": "random", "layers": layers, "pooling": kind}
    images = np.random.default_rng(0).integers(0, 255, (2, 24, 24, 3), np.uint8)
    whole = classifier.Classifier(SMALL_SIGLIP, ModelConfig(**settings), image_size=24, num_classes=3, seed=0)
    head = whole.first_of_head
    head.kernel.assign(np.random.default_rng(1).normal(size=head.kernel.shape))
    for stage in layers or ("top",):
        end = {"block0": "block0_output", "top": "pooled"}[stage]
        outputs = whole.network.get_layer(end).output
        tokens = np.asarray(network.from_images(SMALL_SIGLIP, whole.network, outputs)(images))
        assert tokens.shape[1] == rows + (stage == "top")
        patches, token = tokens[:, -rows:], tokens[:, 0] if stage == "top" else None
        average, maximum = patches.mean(axis=1), patches.max(axis=1)
        first = average if token is None else token
        both = [average, maximum] if token is None else [token, average]
        parts += {"attention": [first], "average": [average], "maximum": [maximum], "both": both}[kind]
    expected = np.concatenate(parts, axis=1) @ head.kernel.numpy()
    np.testing.assert_allclose(whole(images), expected, atol=1e-4)
    maps, logits = whole.pooled_maps()
    np.testing.assert_allclose(logits(maps(images)), expected, atol=1e-4)
    for first_trained in ("block0", "block1", "top"):
        view = whole.trained_from(first_trained)
        np.testing.assert_allclose(view.suffix(view.prefix(images)), expected, atol=1e-4)
        if not layers:
            assert view.prefix_shape == (rows, 32)


@pytest.mark.parametrize("kind", KINDS)
def test_a_heat_map_passes_through_the_head_that_pools(kind: str) -> None:
    """Against the gradient of the logit by the tokens of patches, computed step by step."""
    settings = ModelConfig(backbone="siglip_base", weights="random", pooling=kind)
    model = classifier.Classifier(SMALL_SIGLIP, settings, image_size=24, num_classes=3, seed=0)
    kernel = np.random.default_rng(1).normal(size=model.first_of_head.kernel.shape).astype(np.float32)
    model.first_of_head.kernel.assign(kernel)
    images = np.random.default_rng(0).integers(0, 255, (1, 24, 24, 3), np.uint8)
    built = model.network
    tokens = network.from_images(SMALL_SIGLIP, built, built.get_layer("norm").output)(images)
    attend, norm, inner, outer = (built.get_layer(f"pool_{layer}") for layer in ("attention", "norm2", "mlp1", "mlp2"))
    with tf.GradientTape() as tape:
        tape.watch(tokens)
        attended = attend(tf.reshape(built.get_layer("probe").kernel, (1, 1, 32)), tokens)
        token = (attended + outer(tf.nn.gelu(inner(norm(attended)), approximate=True)))[:, 0]
        average, maximum = tf.reduce_mean(tokens, axis=1), tf.reduce_max(tokens, axis=1)
        parts = {"attention": [token], "average": [average], "maximum": [maximum], "both": [token, average]}[kind]
        score = (tf.concat(parts, axis=1) @ kernel)[0, 2]
    gradient = tf.nn.relu(tape.gradient(score, tokens))
    expected = tf.nn.relu(tf.reduce_sum(gradient * tokens, axis=-1))
    expected = tf.image.resize(tf.reshape(expected / tf.reduce_max(expected), (1, 6, 6, 1)), (24, 24))[..., 0]
    cam, logits = attribution.class_activation(model)(tf.constant(images), tf.constant([2]))
    np.testing.assert_allclose(logits[0, 2], score, atol=1e-4)
    np.testing.assert_allclose(cam, expected / tf.reduce_max(expected), atol=1e-3)
    assert cam.numpy().std() > 0


def test_pooling_that_a_network_has_not_is_one_line() -> None:
    def refused(backbone: str, pooling: str) -> str:
        model = {"backbone": backbone, "weights": "random", "train_from": "all", "pooling": pooling}
        whole = {"name": "x", "epochs": 1, "model": model, "data": {"name": "digits"}}
        cfg = Config.model_validate({**whole, "optimizer": {"learning_rate": 0.1}})
        return " ".join(f"{rule.what} Fix: {rule.fix}" for rule in rules.broken(cfg))

    siglip, clip = ("siglip_base has no class token for pooling 'token'.", "head that pools by attention")
    assert refused("siglip_base", "token") == f"{siglip} Fix: write 'pooling: attention'."
    assert refused("clip_base32", "attention").endswith(
        f"no {clip} for pooling 'attention'. Fix: write 'pooling: token'."
    )
    assert refused("tiny", "attention").endswith("Fix: write 'pooling: average'.")
    assert (
        refused("siglip_base", "attention") == refused("clip_base32", "token") == refused("siglip_base", "both") == ""
    )


def test_another_grid_and_a_tower_without_its_head_are_one_line(tmp_path: Path) -> None:
    record = small("siglip_base")
    stored = {name: tensor.numpy() for name, tensor in of_timm(record).state_dict().items()}
    for change, why in (
        ({"pos_embed": stored["pos_embed"][:, :24]}, "its 24 positions are not those of 5 x 5 patches"),
        ({"pos_embed": np.zeros((1, 26, WIDTH), np.float32)}, "its 26 positions are not those of 5 x 5 patches"),
        ({"attn_pool.latent": None}, "it has no 'attn_pool.latent', in timm's names or transformers'"),
    ):
        broken = {name: array for name, array in {**stored, **change}.items() if array is not None}
        with pytest.raises(ValueError, match=re.escape(why)):
            record.of_torch(broken)  # type: ignore[misc]


@pytest.mark.parametrize("kind", ["token", "average", "both"])
@torch.no_grad()
def test_attention_rollout_of_clip_is_that_of_transformers_attention(kind: Any) -> None:
    """The product of the blocks' attentions, each half of it the identity, written out."""
    record = small("clip_base16", antialias=False)
    theirs = of_transformers(record)
    theirs.set_attn_implementation("eager")
    stored = {name: tensor.numpy() for name, tensor in theirs.state_dict().items()}
    rollout = rolled_out(record, kind, stored)
    answer = theirs(torch_of(preprocessed(record)), interpolate_pos_encoding=True, output_attentions=True)
    total = np.eye(26)
    for attention in answer.attentions:
        total = (attention[0].mean(dim=0).numpy() + np.eye(26)) / 2 @ total
    token, average = total[0, 1:], total[1:, 1:].mean(axis=0)
    expected = {"token": token, "average": average, "both": (token + average) / 2}[kind]
    compare(rollout, expected)


@torch.no_grad()
def test_attention_rollout_of_siglip_ends_with_its_head() -> None:
    record = small("siglip_base", antialias=False)
    theirs = of_transformers(record)
    theirs.set_attn_implementation("eager")
    stored = {name: tensor.numpy() for name, tensor in theirs.state_dict().items()}
    answer = theirs(torch_of(preprocessed(record)), output_attentions=True)
    total = np.eye(25)
    for attention in answer.attentions:
        total = (attention[0].mean(dim=0).numpy() + np.eye(25)) / 2 @ total
    tokens = answer.last_hidden_state
    _, weights = theirs.head.attention(theirs.head.probe, tokens, tokens)  # torch gives their mean over heads
    compare(rolled_out(record, "attention", stored), (weights[0].numpy() @ total)[0])


def test_rollout_is_of_vision_transformers_alone() -> None:
    settings = ModelConfig(backbone="tiny", weights="random")
    model = classifier.Classifier(registry.backbone("tiny"), settings, image_size=32, num_classes=3, seed=0)
    assert attribution.attention_rollout(model, registry.backbone("tiny"), "average") is None


def test_tokens_of_patches_alone_are_pooled_as_a_map_is() -> None:
    """As a function's network may give them."""
    tokens = np.random.default_rng(0).normal(size=(2, 9, 4)).astype(np.float32)
    for kind in ("average", "maximum", "both", "flatten"):
        np.testing.assert_allclose(
            pooling.pool(tokens, kind), pooling.pool(tokens.reshape(2, 3, 3, 4), kind), rtol=1e-6, err_msg=kind
        )


PHOTOGRAPH = np.random.default_rng(3).integers(0, 255, (1, 80, 80, 3), np.uint8)


def preprocessed(record: Backbone) -> np.ndarray:
    return np.asarray(preprocess(record.preprocessing, PHOTOGRAPH))


def rolled_out(record: Backbone, kind: Any, stored: Mapping[str, Any]) -> np.ndarray:
    settings = ModelConfig(backbone=record.name, weights="random", pooling=kind)
    model = classifier.Classifier(record, settings, image_size=80, num_classes=3, seed=0)
    model.network.set_weights(filled(record, stored, 80).get_weights())
    rollout = attribution.attention_rollout(model, record, kind)
    assert rollout is not None
    maps, logits = rollout(tf.constant(PHOTOGRAPH), tf.constant([1]))
    np.testing.assert_allclose(logits, model(PHOTOGRAPH), atol=1e-5)
    return maps.numpy()[0]


def compare(rollout: np.ndarray, expected: np.ndarray) -> None:
    large = tf.image.resize(expected.reshape(1, 5, 5, 1), (80, 80))[0, ..., 0].numpy()
    np.testing.assert_allclose(rollout, large / large.max(), atol=1e-4)
    assert expected.std() > 0.01 * expected.mean()  # else any map would fit
