"""Stochastic depth is timm's: the same loss and gradients under the same masks."""

import re
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import timm
import torch
from keras.src.applications.convnext import ConvNeXt
from timm.layers import DropPath

from tests.one_step import LABELS, RATE, ROWS, assert_equal, batch_of, built, gradients_of
from tests.small_vit import SMALL_SIGLIP
from tl_dist.config import registry
from tl_dist.models import drop_path
from tl_dist.models.backbones import Backbone, preprocess, vit
from tl_dist.models.backbones.applications import convnext_of_torch


def timm_s(name: str, side: int) -> tuple[Any, Backbone]:
    """A network of timm with weights by seed, none of them as it begins, and the record of ours."""
    depths, widths = (1, 1, 2, 1), (16, 32, 64, 128)
    options: dict[str, Any] = {"include_top": False, "weights": None, "name": "convnext_tiny"}
    record = replace(
        registry.backbone("convnexttiny"),
        build=lambda shape: ConvNeXt(depths=depths, projection_dims=widths, input_shape=shape, **options),
        of_torch=partial(convnext_of_torch, "Tiny", depths),
    )
    depth: dict[str, Any] = {"depths": depths, "dims": widths}
    if name.startswith("deit"):
        depth = {"depth": 3, "img_size": side}
        shape = replace(registry.backbone("deit_small").build.args[0], blocks=3, grid=side // 16)
        record = vit.record(name, shape, "torch")
    torch.manual_seed(0)
    model = timm.create_model(name, pretrained=False, drop_path_rate=RATE, **depth)
    with torch.no_grad():
        for path, parameter in model.named_parameters():
            parameter.add_((1.0 if path.endswith("gamma") else 0.05) * torch.randn_like(parameter))
    return model, record


def masked(shares: np.ndarray, x: torch.Tensor) -> torch.Tensor:
    return x * torch.tensor(shares, dtype=torch.float32).reshape(-1, *[1] * (x.ndim - 1))


@pytest.mark.parametrize(("name", "side"), [("deit_small_patch16_224", 48), ("convnext_tiny", 32)])
def test_a_step_has_timm_s_loss_and_gradients_under_equal_masks(name: str, side: int) -> None:
    model, record = timm_s(name, side)
    assert record.of_torch is not None
    net = built(record, side, drop_path=RATE, pooling="token" if record.leading_tokens else "average")
    arrays = record.of_torch({path: tensor.numpy() for path, tensor in model.state_dict().items()})
    for path, array in arrays.items():
        (net.trainable | net.frozen)[f"backbone/{path}"].assign(array)
    batch = batch_of(net, side)
    rates = {path: drop.rate for path, drop in net.drops.items()}
    rated = [path for path, rate in rates.items() if rate]
    masks = dict(zip(rates, batch.masks.numpy().T, strict=True))
    assert {True, False} == {bool(mask) for path in rated for mask in masks[path]}
    paths = [module for module in model.modules() if isinstance(module, DropPath)]
    for module, path in zip(paths, rated, strict=True):
        assert module.drop_prob == pytest.approx(rates[path])
        module.forward = partial(masked, masks[path] / (1 - rates[path]))  # type: ignore[method-assign]
    model.train().requires_grad_(True)
    pixels = np.asarray(preprocess("torch", batch.images)).transpose(0, 3, 1, 2)
    features = model.forward_features(torch.tensor(pixels))
    features = features[:, 0] if record.leading_tokens else model.head.norm(features).mean((2, 3))
    kernel, bias = (torch.tensor(net.trainable[f"head/logits/{part}"].numpy()) for part in ("kernel", "bias"))
    loss = torch.nn.functional.cross_entropy(features @ kernel + bias, torch.tensor(LABELS))
    loss.backward()
    own_loss, own = gradients_of(net, side)
    assert own_loss / ROWS == pytest.approx(loss.item(), rel=1e-5)
    zero = {path: np.zeros(tensor.shape, np.float32) for path, tensor in model.state_dict().items()}
    of_torch = zero | {path: p.grad.numpy() for path, p in model.named_parameters() if p.grad is not None}
    theirs = {f"backbone/{path}": array for path, array in record.of_torch(of_torch).items()}
    theirs.pop("backbone/tokens/kernel", None)  # which is the sum of two of timm's
    assert_equal(own, {path: array for path, array in theirs.items() if path in own}, 1e-5)


LAST = re.compile(
    r"/(block\d+_attention/attention_output|block\d+_mlp2|.*_layer_scale)/|"
    r"/(block[1-7][b-z]_project_bn|block\d+_project_bn)/(gamma|beta)"
)
"""variables without which a residual branch gives 0"""


@pytest.mark.parametrize("name", ["siglip", "efficientnetb0", "efficientnetv2b0", "efficientnet_lite0"])
def test_without_its_branches_a_network_is_what_it_is_where_they_give_0(name: str) -> None:
    record = SMALL_SIGLIP if name == "siglip" else registry.backbone(name)
    net = built(record, record.min_size, batch_norm="inference", drop_path=RATE)
    images = batch_of(net, record.min_size).images
    before = net(images)
    with drop_path.dropping(net.drops, tf.zeros((ROWS, len(net.mask_rates)), tf.bool)):
        without = net(images).numpy()
    np.testing.assert_array_equal(net(images), before)  # once a step is over
    block_of = {re.match(record.residual or "", path)[1] for path in net.drops}  # type: ignore[index]
    zeroed = 0
    for path, variable in net.trainable.items():
        if LAST.search(path) and any(f"{block}_" in path for block in block_of):
            variable.assign(tf.zeros(variable.shape))
            zeroed += 1
    assert zeroed >= len(net.drops) > 1
    np.testing.assert_allclose(without, net(images), rtol=1e-5)
    assert np.abs(without - before).max() > 1e-4
