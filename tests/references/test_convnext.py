"""Keras's ConvNeXt computes what timm's and transformers' do from the same file, whichever names it has."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import transformers

from tests.filled import filled
from tl_dist.config import registry
from tl_dist.models.backbones import preprocess
from tl_dist.models.weights import torch_files

SIDES = (64, 100)
AUTHORS = (
    (r"^stem\.", "downsample_layers.0."),
    (r"^stages\.(\d)\.downsample\.", r"downsample_layers.\1."),
    (r"\.blocks\.", "."),
    (r"\.conv_dw\.", ".dwconv."),
    (r"\.mlp\.fc(\d)\.", r".pwconv\1."),
    (r"^head\.norm\.", "norm."),
    (r"^head\.fc\.", "head."),
)
"""timm's names, as regular expressions, and those of facebookresearch/ConvNeXt"""


def scrambled(model: Any) -> Any:
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            by_scale = "gamma" in name or "layer_scale" in name
            parameter.copy_(torch.randn_like(parameter)) if by_scale else parameter.add_(
                0.05 * torch.randn_like(parameter)
            )
    return model.eval()


def images(side: int) -> tuple[np.ndarray, torch.Tensor]:
    """Of 0 to 255, which Keras's graph scales itself, and as torch's take them."""
    pixels = np.random.default_rng(0).integers(0, 256, (2, side, side, 3)).astype(np.uint8)
    return pixels.astype(np.float32), torch.tensor(np.asarray(preprocess("torch", pixels)).transpose(0, 3, 1, 2))


def as_arrays(model: Any) -> dict[str, Any]:
    return {name: tensor.numpy() for name, tensor in model.state_dict().items()}


def test_features_are_timm_s_and_the_norm_of_its_head(tmp_path: Path) -> None:
    model = scrambled(timm.create_model("convnext_tiny", pretrained=False))
    stored = as_arrays(model)
    for side in SIDES:
        pixels, scaled = images(side)
        with torch.no_grad():
            expected = model.head.norm(model.forward_features(scaled)).numpy().transpose(0, 2, 3, 1)
        np.testing.assert_allclose(filled(registry.backbone("convnexttiny"), stored, side)(pixels), expected, atol=1e-4)
    renamed = {}
    for name, array in stored.items():
        for pattern, other in AUTHORS:
            name = re.sub(pattern, other, name)
        renamed[name] = array
    assert "downsample_layers.1.0.weight" in renamed and "stages.0.0.pwconv1.weight" in renamed
    torch.save({"model": {name: torch.tensor(array) for name, array in renamed.items()}}, tmp_path / "authors.pth")
    of_torch = registry.backbone("convnexttiny").of_torch
    assert of_torch is not None
    of_timm, of_authors = of_torch(stored), of_torch(torch_files.read(tmp_path / "authors.pth"))
    assert of_timm.keys() == of_authors.keys()
    assert all(np.array_equal(of_timm[path], of_authors[path]) for path in of_timm)


def test_features_are_transformers_s() -> None:
    model = scrambled(transformers.ConvNextForImageClassification(transformers.ConvNextConfig()))
    pixels, scaled = images(SIDES[0])
    with torch.no_grad():
        last = model.convnext(scaled).last_hidden_state.permute(0, 2, 3, 1)
        expected = torch.nn.functional.layer_norm(
            last, last.shape[-1:], model.convnext.layernorm.weight, model.convnext.layernorm.bias, 1e-6
        )
    for stored in (as_arrays(model), as_arrays(model.convnext) | {"classifier.bias": np.zeros(1)}):
        np.testing.assert_allclose(
            filled(registry.backbone("convnexttiny"), stored, SIDES[0])(pixels), expected.numpy(), atol=1e-4
        )


@pytest.mark.parametrize("name", ["convnext_small", "convnextv2_atto", "convnext_tiny_hnf"])
def test_other_networks_are_refused(name: str) -> None:
    stored = as_arrays(timm.create_model(name, pretrained=False))
    with pytest.raises(ValueError, match=r"it has (no )?'(stages|head.norm)"):
        registry.backbone("convnexttiny").of_torch(stored)  # type: ignore[misc]


@pytest.mark.full
@pytest.mark.parametrize("size", ["small", "base", "large"])
def test_larger_ones_have_the_same_names(size: str) -> None:
    stored = as_arrays(timm.create_model(f"convnext_{size}", pretrained=False))
    network = registry.backbone(f"convnext{size}").build((32, 32, 3))
    arrays = registry.backbone(f"convnext{size}").of_torch(stored)  # type: ignore[misc]
    assert {v.path: tuple(v.shape) for v in network.weights} == {path: array.shape for path, array in arrays.items()}
