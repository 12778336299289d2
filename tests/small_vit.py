"""Small vision transformers: two blocks of 32, patches of 4, positions of another grid than their images."""

from tl_dist.models.backbones import Scaling, vit

SHAPE = vit.Shape(32, 2, 2, patch=4, grid=4, registers=1, scaled=True, antialias=False, offset=0.1)
SMALL_VIT = vit.record("small_vit", SHAPE, "torch")

SIGLIP = vit.Shape(32, 2, 2, patch=4, grid=4, mlp=72, activation="gelu_tanh", attention_pool=True)
SMALL_SIGLIP = vit.record("small_siglip", SIGLIP, "tf")
CLIP = vit.Shape(32, 2, 2, patch=4, grid=4, activation="quick_gelu", epsilon=1e-5, pre_norm=True)
SMALL_CLIP = vit.record("small_clip", CLIP, Scaling((0.5, 0.4, 0.3), (0.3, 0.2, 0.4)))
