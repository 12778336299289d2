"""A small network that wants its images as VGG16 does: for what takes minutes with that one, and proves no more."""

from dataclasses import replace

from tl_dist.models.backbones.applications import TINY

SMALL_VGG = replace(TINY, name="small_vgg", preprocessing="caffe")
