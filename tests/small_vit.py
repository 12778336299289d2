"""A small vision transformer: two blocks of 32, patches of 4, a register, positions of another grid than its images."""

from tl_dist.models.backbones import vit

SHAPE = vit.Shape(32, 2, 2, patch=4, grid=4, registers=1, scaled=True, antialias=False, offset=0.1)
SMALL_VIT = vit.record("small_vit", SHAPE, "torch")
