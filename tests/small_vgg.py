"""A small network that wants its images as VGG16 does, and has blocks of the same names."""

from dataclasses import replace

from tl_dist.models.backbones.applications import TINY

STAGES = {"block1": "block1_conv1", "block4": "block2_conv1", "block5": "block3_conv1"}
SMALL_VGG = replace(TINY, name="small_vgg", preprocessing="caffe", stages=STAGES)
