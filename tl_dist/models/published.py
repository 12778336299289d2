"""Published top-1 accuracy on ImageNet of Keras's own weights, which `weights: imagenet` means.

From the table of https://keras.io/api/applications; MobileNetV3 from keras/src/applications/mobilenet_v3.py. Nothing
here was measured by us. `rank` shows it as a plain baseline, and chooses by it among candidates that its folds cannot
distinguish from the best; no score is computed from it.
"""

from __future__ import annotations

from collections.abc import Mapping

IMAGENET_TOP1: Mapping[str, float] = {
    "vgg16": 0.713, "vgg19": 0.713,
    "resnet50": 0.749, "resnet101": 0.764, "resnet152": 0.766,
    "resnet50v2": 0.760, "resnet101v2": 0.772, "resnet152v2": 0.780,
    "inceptionv3": 0.779, "inceptionresnetv2": 0.803, "xception": 0.790,
    "mobilenetv2": 0.713, "mobilenetv3small": 0.681, "mobilenetv3large": 0.756,
    "densenet121": 0.750, "densenet169": 0.762, "densenet201": 0.773,
    "efficientnetb0": 0.771, "efficientnetb1": 0.791, "efficientnetb2": 0.801, "efficientnetb3": 0.816,
    "efficientnetb4": 0.829, "efficientnetb5": 0.836, "efficientnetb6": 0.840, "efficientnetb7": 0.843,
    "efficientnetv2b0": 0.787, "efficientnetv2b1": 0.798, "efficientnetv2b2": 0.805, "efficientnetv2b3": 0.820,
    "efficientnetv2s": 0.839, "efficientnetv2m": 0.853, "efficientnetv2l": 0.857,
    "convnexttiny": 0.813, "convnextsmall": 0.823, "convnextbase": 0.853, "convnextlarge": 0.863,
    "convnextxlarge": 0.867,
}  # fmt: skip
