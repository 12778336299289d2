"""VGG (Simonyan and Zisserman, arXiv 1409.1556): VGG16, VGG19."""

from __future__ import annotations

from tl_dist.models.backbones import Backbone, of_keras


def _vgg(constructor: str) -> Backbone:
    return of_keras(
        constructor,
        preprocessing="caffe",
        stages={f"block{k}": f"block{k}_conv1" for k in range(1, 6)},
        block=r"block\d_(conv\d)",
        batch_norm=False,
        prunable=True,
    )


VGG16 = _vgg("VGG16")
VGG19 = _vgg("VGG19")
