"""VGG (Simonyan and Zisserman, arXiv 1409.1556): VGG16, VGG19."""

from __future__ import annotations

from functools import partial

from tl_dist.models.backbones import Backbone, application


def _vgg(constructor: str) -> Backbone:
    return Backbone(
        name=constructor.lower(),
        build=partial(application, constructor),
        input_size=224,
        min_size=32,
        preprocessing="caffe",
        stages={f"block{k}": f"block{k}_conv1" for k in range(1, 6)},
        block=r"block\d_(conv\d)",
        pretrained=partial(application, constructor, weights="imagenet"),
        batch_norm=False,
        prunable=True,
    )


VGG16 = _vgg("VGG16")
VGG19 = _vgg("VGG19")
