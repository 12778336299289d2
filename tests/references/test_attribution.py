"""LayerCAM and Grad-CAM against torchcam, on a network of equal weights in PyTorch."""

from typing import Any

import numpy as np
import pytest

from tests.doubles import build
from tl_dist.models.attribution import class_activation

torch = pytest.importorskip("torch", reason="the extra `references`")
methods = pytest.importorskip("torchcam.methods", reason="the extra `references`")

SIZE = 32


class TwoStages(torch.nn.Module):  # type: ignore[misc]
    """Pools what leaves its second stage and its third; as in ours, what the third says is no reason for the second."""

    def __init__(self, parts: list[Any], linear: Any) -> None:
        super().__init__()
        self.early, self.late = torch.nn.Sequential(*parts[:6]), torch.nn.Sequential(*parts[6:])
        self.linear = linear

    def forward(self, images: Any) -> Any:
        early = self.early(images)
        late = self.late(early.detach())
        return self.linear(torch.cat([one.mean(dim=(2, 3)) for one in (early, late)], dim=1))


def networks_of(**settings: Any) -> tuple[Any, list[Any], Any]:
    """`tiny` with a head, and its layers and the head in PyTorch."""
    ours = build("tiny", image_size=SIZE, **settings)
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
    linear = torch.nn.Linear(ours.num_features, 3)
    linear.weight.data = torch.tensor(ours.trainable["head/logits/kernel"].numpy().T.copy())
    linear.bias.data = torch.tensor(ours.trainable["head/logits/bias"].numpy())
    return ours, parts, linear


IMAGES = np.random.default_rng(0).integers(0, 256, (3, SIZE, SIZE, 3)).astype(np.uint8)
IMAGES[:, : SIZE // 2, : SIZE // 2] //= 4
CLASSES = np.array([0, 1, 2], np.int32)


@pytest.mark.parametrize(("kind", "name"), [("layercam", "LayerCAM"), ("gradcam", "GradCAM")])
def test_the_same_map(kind: Any, name: str) -> None:
    ours, parts, linear = networks_of()
    theirs = torch.nn.Sequential(
        torch.nn.Sequential(*parts), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), linear
    ).eval()
    images, classes = IMAGES, CLASSES
    maps, logits = class_activation(ours, kind)(images, classes)
    inputs = torch.tensor(images.astype(np.float32).transpose(0, 3, 1, 2) / 127.5 - 1)
    for k, image in enumerate(inputs):
        with getattr(methods, name)(theirs, target_layer=theirs[0]) as extractor:
            scores = theirs(image[None])
            expected = extractor(int(classes[k]), scores, normalized=False)[0][0]
        np.testing.assert_allclose(logits[k].numpy(), scores[0].detach().numpy(), atol=1e-4)
        large = torch.nn.functional.interpolate(
            expected[None, None], (SIZE, SIZE), mode="bilinear", align_corners=False
        )[0, 0].numpy()
        assert large.max() > 0  # else any map would fit
        np.testing.assert_allclose(maps[k].numpy(), large / large.max(), atol=1e-4)


@pytest.mark.parametrize(("kind", "name"), [("layercam", "LayerCAM"), ("gradcam", "GradCAM")])
def test_maps_of_several_stages_are_joined_as_layercams_authors_do(kind: Any, name: str) -> None:
    """Equation 9 of the paper, which scales the maps of shallow layers alone; Grad-CAM has no such rule."""
    ours, parts, linear = networks_of(layers=("block2", "block3"))
    theirs, method = TwoStages(parts, linear).eval(), getattr(methods, name)
    maps, logits = class_activation(ours, kind)(IMAGES, CLASSES)
    inputs = torch.tensor(IMAGES.astype(np.float32).transpose(0, 3, 1, 2) / 127.5 - 1)
    by_stage = []
    for k, image in enumerate(inputs):
        with method(theirs, target_layer=[theirs.early, theirs.late]) as extractor:
            scores = theirs(image[None])
            early, late = extractor(int(CLASSES[k]), scores, normalized=False)
        np.testing.assert_allclose(logits[k].numpy(), scores[0].detach().numpy(), atol=1e-4)
        early, late = early / early.max(), late / late.max()
        by_stage.append((early, late))
        if kind == "layercam":
            (early,) = methods.LayerCAM._scale_cams([early])
        joined = methods.LayerCAM._fuse_cams([early, late], (SIZE, SIZE))[0].numpy()
        np.testing.assert_allclose(maps[k].numpy(), joined / joined.max(), atol=1e-4)
    plain = methods.LayerCAM._fuse_cams([torch.cat(stage) for stage in zip(*by_stage, strict=True)], (SIZE, SIZE))
    assert kind == "gradcam" or abs(maps.numpy() - plain.numpy()).max() > 0.1  # the rule makes a difference here
