"""What comes with weights decides how images become inputs: timm's and transformers' own, from their descriptions."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import timm
from PIL import Image
from sklearn.datasets import load_sample_image
from transformers import (
    BitImageProcessorPil,
    CLIPImageProcessorPil,
    ConvNextImageProcessorPil,
    SiglipImageProcessorPil,
    ViTImageProcessorPil,
)

import tl_dist as tl
from tl_dist.config import Config, DataConfig, registry
from tl_dist.config import file as config_file
from tl_dist.data.resize import resize
from tl_dist.launcher import train
from tl_dist.models.backbones import preprocess
from tl_dist.models.weights import descriptions
from tl_dist.refusal import Refusal
from tl_dist.tools.augment import work as preview

SIDE = 224
HALF, IMAGENET = [0.5] * 3, [0.485, 0.456, 0.406]
PROCESSORS = {
    "vit": ViTImageProcessorPil(size={"height": SIDE, "width": SIDE}, image_mean=HALF, image_std=HALF),
    "clip": CLIPImageProcessorPil(),
    "dinov2": BitImageProcessorPil(size={"shortest_edge": 256}, crop_size={"height": SIDE, "width": SIDE}, resample=3),
    "siglip": SiglipImageProcessorPil(size={"height": SIDE, "width": SIDE}, resample=3),
    "convnext": ConvNextImageProcessorPil(size={"shortest_edge": SIDE}, crop_pct=0.9, resample=3),
    "convnext_whole": ConvNextImageProcessorPil(size={"shortest_edge": 384}, resample=3),
    "not_rescaled": ViTImageProcessorPil(do_rescale=False, image_mean=[127.5] * 3, image_std=[127.5] * 3, resample=2),
}
TIMMS = ("vit_small_patch16_224.augreg_in21k", "convnext_tiny.fb_in1k", "tf_efficientnet_lite0.in1k")


@pytest.fixture(scope="module")
def photograph() -> np.ndarray:
    """Of a shape of which an even number of columns is cut: transformers rounds the half of an odd one down."""
    return np.asarray(load_sample_image("flower.jpg"))[:, 22:]


def config(folder: Path, backbone: str, *overrides: str) -> Config:
    """The config that a command would train with the weights in the folder."""
    (folder / "x.safetensors").touch()
    text = f"steps: 1\ndata: {{name: digits}}\noptimizer: {{learning_rate: 0.1}}\nmodel: {{backbone: {backbone}"
    (folder / "x.yaml").write_text(f"{text}, weights: {folder / 'x.safetensors'}}}\n")
    return train.Request(folder / "x.yaml", overrides).load()


def inputs(cfg: Config, pixels: np.ndarray, side: int) -> Any:
    """What the network gets for an image, or has inside after its own layers for that."""
    square = resize(tf.constant(pixels), side, cfg.data.square)
    kind = registry.backbone(cfg.network).preprocessing
    return np.asarray(preprocess("torch" if kind == "inside" else kind, square[None])[0])


def assert_close(ours: np.ndarray, theirs: np.ndarray, std: float) -> None:
    """To one level of 255, but for one value in 3,000: Pillow clips between its passes what bicubic overshoots."""
    assert ours.shape == theirs.shape
    assert (np.abs(ours - theirs) > 1.01 / 255 / std).mean() < 3e-4


@pytest.mark.parametrize("name", PROCESSORS)
def test_inputs_are_those_of_an_image_processor(name: str, photograph: np.ndarray, tmp_path: Path) -> None:
    PROCESSORS[name].save_pretrained(tmp_path)
    cfg = config(tmp_path, {"dinov2": "dinov2_small"}.get(name, "vit_small"), "data.image_size=224")
    theirs = PROCESSORS[name](Image.fromarray(photograph), return_tensors="np")["pixel_values"][0].transpose(1, 2, 0)
    images = descriptions.beside(tmp_path / "x.safetensors")
    assert images is not None
    assert_close(inputs(cfg, photograph, len(theirs)), theirs, min(images["std"]))


@pytest.mark.parametrize("name", TIMMS)
def test_inputs_are_those_of_timm_s_evaluation(name: str, photograph: np.ndarray, tmp_path: Path) -> None:
    model: Any = timm.create_model(name.partition(".")[0], pretrained=False, pretrained_cfg=name.partition(".")[2])
    timm.models.save_for_hf(model, str(tmp_path))
    cfg = config(tmp_path, {"vit": "vit_small", "con": "convnexttiny"}.get(name[:3], "efficientnet_lite0"))
    assert cfg.data.square == (model.pretrained_cfg["crop_pct"], model.pretrained_cfg["interpolation"])
    evaluated = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
    theirs = evaluated(Image.fromarray(photograph)).numpy().transpose(1, 2, 0)
    assert_close(inputs(cfg, photograph, SIDE), theirs, min(model.pretrained_cfg["std"]))


def test_every_way_to_a_run_takes_them_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A config of Python, a tool's request with one, training from Python, and the preview of augmentations."""
    described = {"mean": HALF, "std": HALF, "crop_pct": 0.9, "interpolation": "bicubic"}
    (tmp_path / "config.json").write_text(json.dumps(described))
    values = config(tmp_path, "deit_small", "data.augment=[flip]").model_dump(
        include={"name": ..., "steps": ..., "model": {"backbone", "weights"}, "data": {"name", "augment"}}
    )
    cfg = Config.model_validate(values | {"optimizer": {"learning_rate": 0.1}})
    met: list[Config] = []
    monkeypatch.setattr(train, "train_config", lambda cfg, *others, **more: met.append(cfg) or 0)
    monkeypatch.setattr(preview, "preview", lambda cfg, rows: met.append(cfg) or np.zeros((4, 4, 3), np.uint8))
    with pytest.raises(Refusal, match="is not a run"):
        tl.train(cfg, runs=tmp_path)
    assert preview.main([str(tmp_path / "x.yaml"), str(tmp_path / "grid.png"), "1"]) == 0
    for each in (*met, train.Request(cfg).load()):
        assert each.data.square == (0.9, "bicubic") and each.model.preprocessing is not None
    assert len(met) == 2 and train.Request(cfg, ["data.resize=stretch"]).load().data.square == (None, "bicubic")


def test_what_the_config_says_counts_and_what_is_unknown_is_left(tmp_path: Path) -> None:
    described = {"mean": HALF, "std": HALF, "crop_pct": 0.9, "interpolation": "bicubic"}
    (tmp_path / "config.json").write_text(json.dumps({"pretrained_cfg": described}))
    cfg = config(tmp_path, "vit_small")
    assert cfg.data.square == (0.9, "bicubic") and cfg.model.preprocessing is None  # which vit_small has of itself
    assert config(tmp_path, "deit_small").model.preprocessing.mean == (0.5, 0.5, 0.5)  # type: ignore[union-attr]
    assert config(tmp_path, "vit_small", "data.resize=stretch").data.square == (None, "bicubic")
    assert config(tmp_path, "vit_small", "data.interpolation=bilinear").data.square == (0.9, "bilinear")
    assert config_file.load(tmp_path / "x.yaml").data.square == (None, "bilinear")
    text = config_file.dump(cfg)
    (tmp_path / "x.yaml").write_text(text)
    assert train.Request(tmp_path / "x.yaml").load() == cfg
    words = "mean [0.5, 0.5, 0.5], std [0.5, 0.5, 0.5], interpolation bicubic, resize crop, crop_fraction 0.9"
    images = descriptions.beside(tmp_path / "x") or {}
    assert train._images(cfg.data, images).endswith(f" had them ({words})")
    for data, differing in (
        (DataConfig(name="digits"), "resize stretch, interpolation bilinear"),
        (DataConfig(name="digits", resize="crop", interpolation="bicubic"), "crop_fraction 0.875"),
    ):
        assert train._images(data, images).endswith(f"{words}), but for {differing} here")
    keras_s = config(tmp_path, "convnexttiny")  # whose own layers would scale once more
    assert keras_s.model.preprocessing is None
    with pytest.raises(Refusal, match="use weights for images of that mean and std"):
        descriptions.refuse_other_scaling("x", "convnexttiny", "inside", images)
    for change in ({"crop_mode": "border"}, {"crop_pct": 0}, {"interpolation": "random"}, {"interpolation": 3}):
        (tmp_path / "config.json").write_text(json.dumps(described | change))
        images = descriptions.beside(tmp_path / "x") or {}
        assert images["mean"] == HALF and len(images) < 5
    for text in ("", "[]", '{"mean": 0}', json.dumps(described | {"std": [0, 1, 1]}), '{"image_mean": [NaN, 1, 1]}'):
        (tmp_path / "config.json").write_text(text)
        assert descriptions.beside(tmp_path / "x") is None
