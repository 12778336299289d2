"""LoRA trains what PEFT trains: from an equal start, twenty steps of a convolutional network and of a transformer."""

import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
import torch
from peft import LoraConfig as TheirConfig
from peft import get_peft_model
from safetensors.numpy import load_file
from torch import nn
from transformers import ViTConfig, ViTModel

from tests.doubles import PARALLEL, labelled
from tl_dist.config import ModelConfig, OptimizerConfig, registry
from tl_dist.config.lora import LoraConfig
from tl_dist.data.order import Order
from tl_dist.data.pipeline import plain, train_batches
from tl_dist.models import classifier, lora
from tl_dist.models.backbones import preprocess, vit
from tl_dist.training import chunk, losses, optim, step

NUM_STEPS, BATCH, SIZE, CLASSES, RANK, ALPHA = 20, 8, 24, 3, 3, 6
NOISE = np.random.default_rng(0).integers(0, 256, (40, SIZE, SIZE, 3), dtype=np.uint8)
SHADES = (80 * (np.arange(40) % CLASSES)[:, None, None, None]).astype(np.uint8)
SOURCE = labelled(NOISE // 3 + SHADES, CLASSES)
SGD = OptimizerConfig(name="sgd", learning_rate=0.05, momentum=0.9)
TRANSFORMER = vit.record("vit", vit.Shape(32, 2, 2, patch=4, grid=6), "tf")
PARTS = {
    "attention/query": "attention.q_proj",
    "attention/key": "attention.k_proj",
    "attention/value": "attention.v_proj",
    "attention/attention_output": "attention.o_proj",
    "mlp1": "mlp.fc1",
    "mlp2": "mlp.fc2",
}
"""names of a block's dense layers, ours and those of transformers"""


class Convolutions(nn.Module):
    """The network `tiny`, with its head."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        for k, (inputs, outputs) in enumerate(((3, 16), (16, 32), (32, 64)), start=1):
            layer = nn.Conv2d(inputs, outputs, 3, padding=1)
            kernel, bias = (torch.tensor(v.numpy()) for v in network.get_layer(f"block{k}_conv1").weights)
            layer.weight.data, layer.bias.data = kernel.permute(3, 2, 0, 1).contiguous(), bias
            self.add_module(f"block{k}_conv1", layer)
        self.head = zeros(64)

    def forward(self, images: Any) -> Any:
        for k in (1, 2, 3):
            images = nn.functional.max_pool2d(torch.relu(self.get_submodule(f"block{k}_conv1")(images)), 2)
        return self.head(images.mean(dim=(2, 3)))


class Transformer(nn.Module):
    """Transformers' ViT with a head on the average of the patches; `network` gets its weights."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        config = ViTConfig(
            hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=128, image_size=SIZE,
            patch_size=4, layer_norm_eps=1e-6,
        )  # fmt: skip
        self.vit, self.head = ViTModel(config, add_pooling_layer=False), zeros(32)
        with torch.no_grad():
            for parameter in self.vit.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))
        with tempfile.TemporaryDirectory() as directory:  # names in a file are not those in memory
            self.vit.save_pretrained(directory)
            arrays = TRANSFORMER.of_torch(load_file(Path(directory) / "model.safetensors"))  # type: ignore[misc]
        for variable in network.weights:
            variable.assign(arrays[variable.path])

    def forward(self, images: Any) -> Any:
        return self.head(self.vit(images).last_hidden_state[:, 1:].mean(dim=1))


def zeros(inputs: int) -> Any:
    head = nn.Linear(inputs, CLASSES)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    return head


def theirs_of(path: str) -> str:
    """The name of a layer in torch, from that of our adapter without `backbone/`."""
    block, _, part = path.partition("_")
    return f"vit.layers.{block.removeprefix('block')}.{PARTS[part]}" if part in PARTS else path


def as_torch(array: np.ndarray, shape: tuple[int, ...]) -> Any:
    """A or B in the layout of torch's layer: [outputs, inputs], or [outputs, inputs, height, width]."""
    sides = shape[2:]
    axes = (3, 2, 0, 1) if sides else (1, 0)
    return torch.tensor(np.ascontiguousarray(array.reshape(*sides, shape[1], shape[0]).transpose(axes)))


def both(name: str, layers: str) -> tuple[classifier.Classifier, Any, dict[str, Any]]:
    """Ours, PEFT's with the same weights, and PEFT's matrices by our paths."""
    record = TRANSFORMER if name == "vit" else registry.backbone(name)
    adapt = LoraConfig(lora=RANK, layers=layers, alpha=ALPHA)
    start = "block2" if name == "tiny" else "block0"
    config = ModelConfig(backbone=name, train_from=start, adapt=adapt)
    ours = classifier.Classifier(record, config, image_size=SIZE, num_classes=CLASSES, seed=3)
    model = (Transformer if name == "vit" else Convolutions)(ours.network)
    adapters = {path: v for path, v in ours.trainable.items() if path.endswith(lora.NAMES)}
    names = sorted({theirs_of(path.removeprefix("backbone/").rpartition("/")[0]) for path in adapters})
    settings = TheirConfig(r=RANK, lora_alpha=ALPHA, target_modules=names, modules_to_save=["head"], lora_dropout=0.0)
    peft, matrices = get_peft_model(model, settings), {}
    for path, variable in adapters.items():
        layer, _, matrix = path.removeprefix("backbone/").rpartition("/")
        theirs = peft.base_model.model.get_submodule(theirs_of(layer)).get_submodule(
            f"lora_{matrix[-1].upper()}.default"
        )
        theirs.weight.data = as_torch(variable.numpy(), tuple(theirs.weight.shape))
        matrices[path] = theirs.weight
    trained = sum(p.numel() for p in peft.parameters() if p.requires_grad)
    assert trained == sum(int(v.shape.num_elements()) for v in ours.trainable.values())
    return ours, peft, matrices


def batches() -> tf.data.Dataset:
    return train_batches(plain(SOURCE, SIZE), Order(0, 40, BATCH), rows=range(BATCH), steps=range(NUM_STEPS))


def steps_of_ours(net: classifier.Classifier) -> list[float]:
    optimizer = optim.Optimizer(SGD, net.trainable, scale_loss=False)
    rate = partial(optim.learning_rate, SGD, steps_per_epoch=5, total_steps=NUM_STEPS)
    run_steps = chunk.train_chunk(step.TrainStep(net, optimizer, losses.Objective(CLASSES, BATCH), PARALLEL, rate))
    feed, one = iter(batches()), tf.constant(1, tf.int64)
    return [float(run_steps(feed, tf.constant(k, tf.int64), one)["loss"]) / BATCH for k in range(NUM_STEPS)]


def as_theirs(images: Any) -> Any:
    return torch.tensor(keras.ops.convert_to_numpy(preprocess("tf", images)).transpose(0, 3, 1, 2))


def steps_of_theirs(model: Any) -> list[float]:
    rule = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.05, momentum=0.9)
    curve = []
    for batch in batches():
        rule.zero_grad()
        loss = nn.functional.cross_entropy(model(as_theirs(batch.images)), torch.tensor(batch.labels.numpy()).long())
        loss.backward()
        rule.step()
        curve.append(float(loss.detach()))
    return curve


@pytest.mark.parametrize(
    ("name", "layers", "adapters"),
    [("tiny", "", 2), ("vit", "", 12), ("vit", "block1_attention/(query|value)$", 2)],
    ids=["convolutions", "transformer", "queries and values of a block"],
)
def test_twenty_steps_are_peft_s(name: str, layers: str, adapters: int) -> None:
    ours, peft, matrices = both(name, layers)
    assert len(matrices) == 2 * adapters
    frozen = ours.frozen_digest()
    images = tf.constant(SOURCE.store.images)
    curve = steps_of_ours(ours)
    np.testing.assert_allclose(curve, steps_of_theirs(peft), rtol=1e-5)
    assert curve[-1] < 0.9 * curve[0]
    for path, theirs in matrices.items():
        value = as_torch(ours.trainable[path].numpy(), tuple(theirs.shape)).numpy()
        np.testing.assert_allclose(value, theirs.detach().numpy(), rtol=1e-5, atol=1e-5, err_msg=path)
        assert path.endswith("lora_a") or np.abs(value).max() > 1e-4
    with torch.no_grad():
        np.testing.assert_allclose(ours(images), peft(as_theirs(images)), rtol=1e-5, atol=1e-5)
    assert ours.frozen_digest() == frozen


def test_a_begins_as_peft_s_does_in_spread_and_b_at_zero() -> None:
    ours, peft, _ = both("vit", "")
    fresh = get_peft_model(Transformer(ours.network), peft.peft_config["default"]).state_dict()
    for part, inputs in (("mlp1", 32), ("mlp2", 128), ("attention/attention_output", 32)):
        own = ours.trainable[f"backbone/block1_{part}/lora_a"].numpy()
        (theirs,) = (v for name, v in fresh.items() if f"layers.1.{PARTS[part]}.lora_A" in name)
        for values in (own, theirs.numpy()):
            assert 0.8 * inputs**-0.5 < np.abs(values).max() <= inputs**-0.5
        assert not ours.trainable[f"backbone/block1_{part}/lora_b"].numpy().any()
