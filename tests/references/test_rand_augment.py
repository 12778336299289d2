"""Colours, RandAugment's operations and strengths against torchvision's; its ranges against timm's."""

import colorsys
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import torch
from PIL import Image
from timm.data import auto_augment
from torchvision.transforms import InterpolationMode, RandAugment, functional
from torchvision.transforms.autoaugment import _apply_op

from tl_dist.data.augment import jittered
from tl_dist.data.rand_augment import OPERATIONS as OPERATIONS_BY_NAME
from tl_dist.data.rand_augment import rand_augmented

NAMES = (
    "Identity", "ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate", "Brightness", "Color", "Contrast",
    "Sharpness", "Posterize", "Solarize", "AutoContrast", "Equalize",
)  # fmt: skip
SIZE = 331  # a translation by 150/331 of it, the largest, is of whole pixels in every bin
BINS = 31
OPERATIONS = list(OPERATIONS_BY_NAME.values())


def picture() -> np.ndarray:
    """Smooth shades with some noise, not all of the range in use."""
    draws = np.random.default_rng(8)
    y, x = np.mgrid[0:SIZE, 0:SIZE] / SIZE
    shades = np.stack([60 + 120 * x, 40 + 150 * y, 90 + 80 * np.sin(9 * x * y)], axis=-1)
    return (shades + draws.integers(0, 12, shades.shape)).astype(np.uint8)


def test_the_list_is_torchvisions() -> None:
    assert tuple(RandAugment()._augmentation_space(BINS, (SIZE, SIZE))) == NAMES


@pytest.mark.parametrize("magnitude", [3, 9, 15, 30])
@pytest.mark.parametrize("name", NAMES)
def test_an_operation_makes_torchvisions_image(name: str, magnitude: int) -> None:
    image = picture()
    strengths, signed = RandAugment()._augmentation_space(BINS, (SIZE, SIZE))[name]
    strength = float(strengths[magnitude]) if strengths.ndim else float(strengths)
    for sign in (1.0, -1.0) if signed else (1.0,):
        operation = OPERATIONS[NAMES.index(name)]
        # A translation here says where a pixel comes from, there where it goes.
        inverse = -1.0 if name.startswith("Translate") else 1.0
        found = operation(tf.constant(image), magnitude / (BINS - 1), tf.constant(sign * inverse)).numpy()
        expected = np.asarray(_apply_op(Image.fromarray(image), name, sign * strength, InterpolationMode.NEAREST, None))
        distance = abs(found.astype(int) - expected)
        if name.startswith("Shear"):
            # torchvision shears about a pixel's corner, tl_dist about its middle: 0.15 of a pixel apart at most, so
            # that the nearest pixel is now and then the one beside it.
            assert (distance > 1).any(axis=-1).mean() <= 0.3 * magnitude / (BINS - 1)
            axis = 1 if name == "ShearX" else 0
            beside = [abs(np.roll(found, by, axis).astype(int) - expected) for by in (-1, 1)]
            distance = np.minimum(distance, np.minimum(*beside))
        differ = (distance > 1).any(axis=-1).mean()
        assert differ <= (0.01 if name in ("ShearX", "ShearY", "Rotate") else 0.0), (name, sign, differ)


def test_timms_ranges_are_these_but_for_the_translation() -> None:
    space = RandAugment()._augmentation_space(BINS, (SIZE, SIZE))
    most = {name: abs(float(values[-1])) for name, (values, _) in space.items() if values.ndim}
    level = 10.0  # timm's highest
    np.random.seed(0)
    assert most["Rotate"] == abs(auto_augment._rotate_level_to_arg(level, {})[0])
    assert most["ShearX"] == pytest.approx(abs(auto_augment._shear_level_to_arg(level, {})[0]))
    increasing = abs(auto_augment._enhance_increasing_level_to_arg(level, {})[0] - 1)
    assert most["Brightness"] == pytest.approx(increasing)
    assert abs(auto_augment._translate_rel_level_to_arg(level, {})[0]) == 0.45  # 150/331 = 0.4532 here


def test_numbers_choose_each_operation_equally_often_and_its_sign_and_all_are_done_in_turn() -> None:
    image, num = tf.constant(picture()[::8, ::8]), len(OPERATIONS)
    drawn, once, twice = [], [], []
    for k, operation in enumerate(OPERATIONS):
        for place, sign in ((1e-4, -1.0), (0.9999, 1.0)):
            drawn.append([(k + place) / num, place, (num - k - 0.5) / num, 1 - place])
            once.append(operation(image, 0.3, tf.constant(sign)))
            twice.append(OPERATIONS[num - 1 - k](once[-1], 0.3, tf.constant(-sign)))
    images, numbers = tf.stack([image] * len(drawn)), tf.constant(drawn, tf.float32)
    for steps, expected in ((1, once), (2, twice)):
        found = rand_augmented(images, lambda width: numbers[:, :width], steps, 9)
        np.testing.assert_array_equal(found, expected)


def jitter(strength: float, hue: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Images of which no colour is clipped, what was drawn for each, and the jittered images."""
    draws = np.random.default_rng(3)
    images = draws.integers(60, 121, (8, 16, 16, 3)).astype(np.uint8)
    drawn = draws.random((8, 4)).astype(np.float32)
    return images, drawn, jittered(tf.constant(images), tf.constant(drawn), strength, hue).numpy()


def test_brightness_contrast_and_saturation_are_torchvisions_adjustments_after_one_another() -> None:
    for image, drawn, found in zip(*jitter(0.3, 0.0), strict=True):
        theirs: Any = torch.tensor(image / 255).permute(2, 0, 1)
        for k, adjust in enumerate(
            (functional.adjust_brightness, functional.adjust_contrast, functional.adjust_saturation)
        ):
            theirs = adjust(theirs, 0.7 + 0.6 * float(drawn[k]))
        assert np.abs(found - 255 * theirs.permute(1, 2, 0).numpy()).max() < 0.6


def test_hue_is_an_angle_between_the_colour_axes_of_pythons_colorsys() -> None:
    """Its axes are rounded otherwise: 0.05 of a radian."""
    for image, drawn, found in zip(*jitter(0.0, 0.2), strict=True):
        before, after = (
            np.array([colorsys.rgb_to_yiq(*pixel) for pixel in pixels.reshape(-1, 3) / 255.0])
            for pixels in (image, found)
        )
        np.testing.assert_allclose(after[:, 0], before[:, 0], atol=0.012)
        vivid = np.hypot(before[:, 1], before[:, 2]) > 0.06
        start, end = (colours[vivid, 1] + 1j * colours[vivid, 2] for colours in (before, after))
        turned = np.angle(end / start)
        assert abs(turned.mean() - 2 * np.pi * 0.2 * (2 * drawn[3] - 1)) < 0.05
