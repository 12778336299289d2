"""Vision transformers compute what timm's do from the same file, at several sizes, with timm's names or transformers';
positions are resized as torch does; and a run trains, resumes and exports one."""

import re
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.numpy import save_file
from timm.layers import resample_abs_pos_embed
from torch.nn.functional import interpolate

from tests.filled import filled
from tl_dist.config import Config, ModelConfig, registry, rules
from tl_dist.models import classifier, network, pooling, weights
from tl_dist.models.backbones import Backbone, preprocess, seam, vit
from tl_dist.models.weights import sources
from tl_dist.refusal import Refusal

DEPTH = 3
FAMILIES = {
    "vit_small": "vit_small_patch16_224",
    "deit_small": "deit_small_patch16_224",
    "dinov2_small": "vit_small_patch14_dinov2",
    "dinov2_reg_small": "vit_small_patch14_reg4_dinov2",
}


def shallow(name: str) -> Backbone:
    """The record of a family with three blocks, so that it costs little."""
    shape = replace(registry.backbone(name).build.args[0], blocks=DEPTH)
    return vit.record(name, shape, registry.backbone(name).preprocessing)


def theirs(name: str, **more: Any) -> Any:
    """Timm's network with weights by seed, none of them as it begins."""
    torch.manual_seed(0)
    model = timm.create_model(FAMILIES[name], pretrained=False, num_classes=0, depth=DEPTH, **more).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def arrays(model: Any) -> dict[str, np.ndarray]:
    return {name: tensor.numpy() for name, tensor in model.state_dict().items()}


def tokens_of(model: Any, images: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return model.forward_features(torch.tensor(images.transpose(0, 3, 1, 2))).numpy()


@pytest.mark.parametrize(
    ("name", "side"), [*((name, 6) for name in FAMILIES), ("deit_small", 14), ("dinov2_small", 37)]
)
def test_the_tokens_are_timm_s(name: str, side: int) -> None:
    """At another number of patches along a side than in pretraining, and at its own."""
    record, whole = shallow(name), theirs(name)
    own, size = whole.patch_embed.img_size[0], side * record.patch
    model, state = theirs(name, img_size=size), whole.state_dict()
    if size != own:
        of_tokens = state["pos_embed"].shape[1] - whole.patch_embed.num_patches
        leading, grid = state["pos_embed"][:, :of_tokens], state["pos_embed"][:, of_tokens:]
        if name == "dinov2_small":  # the hub's own way: a slightly larger scale, and no antialiasing
            square = grid.reshape(1, 37, 37, -1).permute(0, 3, 1, 2)
            scaled = interpolate(square, scale_factor=(6 + 0.1) / 37, mode="bicubic", antialias=False)
            placed = torch.cat([leading, scaled.permute(0, 2, 3, 1).flatten(1, 2)], dim=1)
        else:
            placed = resample_abs_pos_embed(state["pos_embed"], new_size=[6, 6], num_prefix_tokens=of_tokens)
        state = {**state, "pos_embed": placed}
    model.load_state_dict(state)
    images = np.random.default_rng(0).normal(size=(2, size, size, 3)).astype(np.float32)
    own_tokens = np.asarray(filled(record, arrays(whole), size)(images))
    np.testing.assert_allclose(own_tokens, tokens_of(model, images), atol=1e-4)


@pytest.mark.parametrize(("num", "to"), [(37, 16), (37, 8), (14, 7), (14, 24), (14, 14)])
@pytest.mark.parametrize("antialias", [False, True])
def test_positions_are_resized_as_torch_does(num: int, to: int, antialias: bool) -> None:
    values = np.random.default_rng(1).normal(size=(num, num)).astype(np.float32)
    matrix = vit.resized(num, to, antialias=antialias)
    whole = torch.tensor(values)[None, None]
    expected = interpolate(whole, size=(to, to), mode="bicubic", antialias=antialias)[0, 0].numpy()
    np.testing.assert_allclose(matrix @ values @ matrix.T, expected, atol=1e-5)


TRANSFORMERS = (
    (r"^cls_token$", "embeddings.cls_token"),
    (r"^reg_token$", "embeddings.register_tokens"),
    (r"^pos_embed$", "embeddings.position_embeddings"),
    (r"^patch_embed\.proj", "embeddings.patch_embeddings.projection"),
    (r"^blocks", "encoder.layer"),
    (r"^norm", "layernorm"),
    (r"ls(\d)\.gamma", r"layer_scale\1.lambda1"),
    (r"attn\.proj", "attention.output.dense"),
)
OF_VIT = (
    ("norm1", "layernorm_before"),
    ("norm2", "layernorm_after"),
    (r"mlp\.fc1", "intermediate.dense"),
    (r"mlp\.fc2", "output.dense"),
)


@pytest.mark.parametrize("name", ["vit_small", "dinov2_reg_small"])
def test_transformers_names_lead_to_the_same_arrays(name: str) -> None:
    """As `ViTModel` and `Dinov2WithRegistersModel` save them: query, key and value apart, and a pooler beside them."""
    record, stored = shallow(name), arrays(theirs(name))
    renamed = {"pooler.dense.weight": np.zeros((2, 2), np.float32)}
    for own, array in stored.items():
        parts = {own: array}
        if ".attn.qkv." in own:
            pieces = zip(("query", "key", "value"), np.split(array, 3), strict=True)
            parts = {own.replace("attn.qkv", f"attention.attention.{part}"): piece for part, piece in pieces}
        for each, piece in parts.items():
            for pattern, other in (*TRANSFORMERS, *(OF_VIT if name == "vit_small" else ())):
                each = re.sub(pattern, other, each)
            renamed[f"vit.{each}" if name == "vit_small" else each] = piece
    expected, found = record.of_torch(stored), record.of_torch(renamed)  # type: ignore[misc]
    assert expected.keys() == found.keys()
    for path, array in expected.items():
        np.testing.assert_array_equal(found[path], array, err_msg=path)


def test_every_block_can_be_cut_and_every_kind_of_pooling_is_of_its_tokens() -> None:
    record = shallow("dinov2_reg_small")
    built = filled(record, arrays(theirs("dinov2_reg_small")), 42)
    ends = network.stage_ends(record, built)
    assert list(ends) == ["stem", "block0", "block1", "block2", "top"]
    assert all(seam(built, end).shape == (None, 5 + 9, 384) for end in ends.values())
    tokens = np.random.default_rng(0).normal(size=(2, 14, 384)).astype(np.float32)
    parts = {
        "token": tokens[:, 0],
        "average": tokens[:, 5:].mean(axis=1),
        "maximum": tokens[:, 5:].max(axis=1),
        "both": np.concatenate([tokens[:, 0], tokens[:, 5:].mean(axis=1)], axis=1),
    }
    for kind, expected in parts.items():
        np.testing.assert_allclose(pooling.pool(tokens, kind, 9), expected, rtol=1e-5)
    for first in ("block1", "top"):
        config = ModelConfig(backbone="dinov2_reg_small", weights="random", train_from=first, pooling="both")
        whole = classifier.Classifier(record, config, image_size=42, num_classes=3, seed=0)
        images = np.random.default_rng(0).integers(0, 255, (2, 42, 42, 3), np.uint8)
        cut = whole.suffix(whole.prefix(images))
        np.testing.assert_allclose(cut, whole(images), atol=1e-6)
        assert whole.prefix_shape == (14, 384) and whole.num_features == 768


def test_a_file_of_timm_is_a_source_of_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record, stored = shallow("deit_small"), arrays(theirs("deit_small"))
    monkeypatch.setattr(registry, "backbone", lambda name: record)
    save_file({**stored, "head.weight": np.zeros((10, 384), np.float32)}, tmp_path / "deit.safetensors")
    file = weights.convert(str(tmp_path / "deit.safetensors"), "deit_small", cache=tmp_path / "cache")
    assert file is not None
    built = record.build((64, 64, 3))
    weights.load(built, file)
    images = np.random.default_rng(0).integers(0, 255, (2, 64, 64, 3), np.uint8)
    expected = np.asarray(filled(record, stored, 64)(preprocess("torch", images)))
    np.testing.assert_array_equal(np.asarray(built(preprocess("torch", images))), expected)
    for change, why in (
        ({"pos_embed": stored["pos_embed"][:, :101]}, "its 101 positions are not those of 14 x 14 patches"),
        ({"cls_token": None}, "it has no 'cls_token', in timm's names or transformers'"),
        ({"blocks.1.mlp.fc1.weight": np.zeros((7, 384), np.float32)}, "1 arrays differ, first 'block1_mlp1/kernel'"),
    ):
        broken = {name: array for name, array in {**stored, **change}.items() if array is not None}
        save_file(broken, tmp_path / "broken.safetensors")
        scratch = Path(tempfile.mkdtemp(dir=tmp_path))
        with pytest.raises(Refusal, match=re.escape(why)):
            sources.read([tmp_path / "broken.safetensors"], record, lambda digest: None, scratch)


def test_a_size_that_is_no_whole_number_of_patches_is_one_line() -> None:
    def refused(**settings: Any) -> str:
        model = {"backbone": "dinov2_small", "weights": "random", "train_from": "all"}
        data = {"name": "digits", "image_size": 224}
        whole = {"name": "x", "epochs": 1, "model": model, "data": data, "optimizer": {"learning_rate": 0.1}}
        for key, value in settings.items():
            section, _, name = key.partition("__")
            whole[section] = {**whole[section], name: value}  # type: ignore[dict-item]
        return " ".join(f"{rule.what} Fix: {rule.fix}" for rule in rules.broken(Config.model_validate(whole)))

    assert "are no whole number of dinov2_small's patches of 14. Fix: write 'image_size: 98'." in refused(
        data__image_size=100
    )
    assert refused() == "" and "has feature maps" in refused(model__backbone="tiny", model__pooling="token")
    assert "Fix: write 'weights: FILE.safetensors'" in refused(model__weights="imagenet")
