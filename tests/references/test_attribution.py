"""LayerCAM and Grad-CAM against torchcam, on a network of equal weights in PyTorch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.doubles import build
from tl_dist.models.attribution import class_activation

torch = pytest.importorskip("torch", reason="the extra `references`")
methods = pytest.importorskip("torchcam.methods", reason="the extra `references`")

SIZE = 32


@pytest.fixture(scope="module")
def networks() -> tuple[Any, Any]:
    """`tiny` with a head, and the same in PyTorch."""
    ours = build("tiny", image_size=SIZE)
    rng = np.random.default_rng(1)
    for path, variable in ours.trainable.items():
        if "bias" in path or "logits" in path:
            variable.assign(rng.normal(0.1, 0.3, variable.shape))
    parts: list[Any] = []
    for k in (1, 2, 3):
        kernel, bias = ours.network.get_layer(f"block{k}_conv1").get_weights()
        convolution = torch.nn.Conv2d(kernel.shape[2], kernel.shape[3], 3, padding=1)
        convolution.weight.data = torch.tensor(kernel.transpose(3, 2, 0, 1).copy())
        convolution.bias.data = torch.tensor(bias)
        parts += [convolution, torch.nn.ReLU(), torch.nn.MaxPool2d(2)]
    linear = torch.nn.Linear(64, 3)
    linear.weight.data = torch.tensor(ours.trainable["head/logits/kernel"].numpy().T.copy())
    linear.bias.data = torch.tensor(ours.trainable["head/logits/bias"].numpy())
    theirs = torch.nn.Sequential(
        torch.nn.Sequential(*parts), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), linear
    )
    return ours, theirs.eval()


@pytest.mark.parametrize(("kind", "name"), [("layercam", "LayerCAM"), ("gradcam", "GradCAM")])
def test_the_same_map(networks: tuple[Any, Any], kind: Any, name: str) -> None:
    ours, theirs = networks
    images = np.random.default_rng(0).integers(0, 256, (3, SIZE, SIZE, 3)).astype(np.uint8)
    images[:, : SIZE // 2, : SIZE // 2] //= 4
    classes = np.array([0, 1, 2], np.int32)
    found, logits = class_activation(ours, kind)(images, classes)
    inputs = torch.tensor(images.astype(np.float32).transpose(0, 3, 1, 2) / 127.5 - 1)
    for k, image in enumerate(inputs):
        with getattr(methods, name)(theirs, target_layer=theirs[0]) as extractor:
            said = theirs(image[None])
            expected = extractor(int(classes[k]), said, normalized=False)[0][0]
        np.testing.assert_allclose(logits[k].numpy(), said[0].detach().numpy(), atol=1e-4)
        large = torch.nn.functional.interpolate(
            expected[None, None], (SIZE, SIZE), mode="bilinear", align_corners=False
        )[0, 0].numpy()
        assert large.max() > 0  # else any map would fit
        np.testing.assert_allclose(found[k].numpy(), large / large.max(), atol=1e-4)
