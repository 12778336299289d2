"""Rates by block against timm's groups and those of ConvNeXt's authors, of the same networks.

The two libraries name layers differently but hold the same kernels, so a block is known by how many numbers it has.
"""

import itertools
from typing import Any

import pytest
import timm
import torch
from timm.optim import param_groups_layer_decay

from tl_dist.config import ModelConfig, OptimizerConfig, registry
from tl_dist.models import classifier
from tl_dist.training import optim

DECAY = 0.8
Blocks = list[tuple[float, int]]
"""(part of the rate, numbers in kernels) of each block, from the stem to the last; the head is left out"""


def ours(name: str) -> Blocks:
    backbone = registry.backbone(name)
    config = ModelConfig(backbone=name, weights="random", train_from="all")
    net = classifier.Classifier(backbone, config, image_size=backbone.min_size, num_classes=3, seed=0)
    settings = OptimizerConfig(learning_rate=0.1, layer_decay=DECAY)
    rules = optim.rules(settings, net.trainable, net.depths)
    assert {rule.rate for path, rule in rules.items() if path.startswith("head/")} == {1.0}
    return summed(
        (rules[path].rate, int(variable.shape.num_elements()))
        for path, variable in net.trainable.items()
        if path.startswith("backbone/") and len(variable.shape) > 1
    )


def on_no_device(name: str) -> Any:
    with torch.device("meta"):
        return timm.create_model(name)


def of_timm(name: str) -> Blocks:
    groups = param_groups_layer_decay(on_no_device(name), layer_decay=DECAY)
    return summed((g["lr_scale"], p.numel()) for g in groups for p in g["params"] if p.ndim > 1)[:-1]


def summed(numbers: Any) -> Blocks:
    found: dict[float, int] = {}
    for rate, size in numbers:
        found[round(rate, 12)] = found.get(round(rate, 12), 0) + size
    return sorted(found.items())


@pytest.mark.parametrize(
    ("name", "theirs", "stem"),
    [
        ("resnet50", "resnet50", 17),
        ("resnet50v2", "resnetv2_50", 17),
        ("vgg16", "vgg16", 13),
        ("efficientnetb0", "efficientnet_b0", 17),
        ("mobilenetv2", "mobilenetv2_100", 18),
        ("xception", "legacy_xception", 14),
    ],
)
def test_every_block_learns_at_the_rate_that_timm_gives_it(name: str, theirs: str, stem: int) -> None:
    found = ours(name)
    assert found == of_timm(theirs)
    assert found[0][0] == pytest.approx(DECAY**stem)


def test_of_more_than_25_blocks_three_of_a_stage_that_timm_tells_apart_are_one() -> None:
    """DenseNet-121: 58 dense layers, of which timm's lowest rate is 1.9e-6."""
    found, theirs = ours("densenet121"), of_timm("densenet121")
    assert len(theirs) == 1 + 6 + 12 + 24 + 16
    sizes = iter(size for _, size in theirs)
    expected = [sum(itertools.islice(sizes, n)) for n in (1, 3, 3, *[3] * 4, *[3] * 8, *[3] * 5, 1)]
    assert [size for _, size in found] == expected
    assert [rate for rate, _ in found] == pytest.approx([DECAY**k for k in range(len(found), 0, -1)])


def of_the_authors(parameter: str) -> int:
    """Their number of a layer, 0 to 12, of ConvNeXt's small size and above (optim_factory.py, in own words)."""
    kind, number, *rest = parameter.split(".")
    if kind == "stem":
        return 0
    stage = int(number)
    if stage == 3:
        return 12
    if stage < 2:
        return stage + 1
    return 3 + (0 if rest[0] == "downsample" else int(rest[1]) // 3)


def test_the_authors_12_groups_of_convnext_small_are_ours() -> None:
    kernels = [(n, p.numel()) for n, p in on_no_device("convnext_small").named_parameters() if p.ndim > 1]
    theirs = summed((DECAY ** (13 - of_the_authors(n)), p) for n, p in kernels if not n.startswith("head"))
    found = ours("convnextsmall")
    assert [size for _, size in found] == [size for _, size in theirs]
    assert [rate for rate, _ in found] == pytest.approx([rate for rate, _ in theirs])
    assert found[0][0] == pytest.approx(0.055, abs=1e-3)


def test_mobilenetv3_has_its_last_convolution_in_the_last_block_where_timm_has_it_alone() -> None:
    found, theirs = ours("mobilenetv3small"), of_timm("mobilenetv3_small_100")
    (_, last), (_, on_top) = theirs[-2:]
    assert [size for _, size in found] == [*(size for _, size in theirs[:-2]), last + on_top]


def test_inception_counts_its_mixed_blocks_and_one_stem_where_timm_has_two() -> None:
    found, theirs = ours("inceptionv3"), of_timm("inception_v3")
    stem = sum(size for _, size in theirs[:-11])
    assert len(found) == 12 and found[0][1] == stem
    assert found[1:] == theirs[-11:]
