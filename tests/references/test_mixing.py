"""Mixup and cutmix against timm.data.Mixup: images and targets exactly, shares and boxes in distribution."""

import numpy as np
import pytest
import tensorflow as tf
import torch
from scipy.stats import beta, ks_2samp
from timm.data.mixup import Mixup, mixup_target
from timm.loss import SoftTargetCrossEntropy

from tl_dist.data.batch import Batch
from tl_dist.data.mixing import Mixing
from tl_dist.training.losses import Objective

PAIRS, SIZE = 1500, 64
P_MIN = 1e-3  # the draws are fixed: this passes or fails for good


def ours(mixup: float, cutmix: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Images that are 0 in even rows and 255 in odd ones, mixed; the shares of the rows' own labels."""
    images = np.zeros((2 * PAIRS, SIZE, SIZE, 1), np.uint8)
    images[1::2] = 255
    positions = tf.range(2 * PAIRS, dtype=tf.int64)
    labels = tf.cast(positions % 2, tf.int32)
    mixed, others, shares = Mixing(seed, mixup, cutmix).mixed(tf.constant(images), labels, positions)
    np.testing.assert_array_equal(others, 1 - labels.numpy())
    return mixed.numpy(), shares.numpy()


def timms_shares(mixup: float, cutmix: float) -> np.ndarray:
    np.random.seed(1)
    made = Mixup(mixup_alpha=mixup, cutmix_alpha=cutmix, mode="elem", num_classes=2)
    shares, cut = made._params_per_elem(PAIRS)
    for k in np.flatnonzero(cut):
        *_, shares[k] = _box(made, shares[k])
    return shares


def _box(made: Mixup, share: float) -> tuple[tuple[int, ...], float]:
    from timm.data.mixup import cutmix_bbox_and_lam

    return cutmix_bbox_and_lam((1, SIZE, SIZE), share, ratio_minmax=None, correct_lam=made.correct_lam)


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.2, 0.0), (0.8, 0.0), (1.0, 0.0), (0.0, 1.0), (0.4, 1.0)])
def test_shares_have_timms_distribution(mixup: float, cutmix: float) -> None:
    _, shares = ours(mixup, cutmix)
    np.testing.assert_array_equal(shares[0::2], shares[1::2])  # a pair is mixed both ways
    assert ks_2samp(shares[::2], timms_shares(mixup, cutmix)).pvalue > P_MIN
    if not cutmix:
        assert shares[::2].var() == pytest.approx(beta(mixup, mixup).var(), rel=0.08)


def test_boxes_lie_and_measure_as_timms() -> None:
    mixed, _ = ours(0.0, 1.0)
    inside = mixed[0::2, :, :, 0] == 255
    np.random.seed(2)
    made = Mixup(cutmix_alpha=1.0, mixup_alpha=0.0)
    boxes = np.array([_box(made, np.random.beta(1.0, 1.0))[0] for _ in range(PAIRS)])
    for axis, (begin, end) in ((1, boxes[:, :2].T), (2, boxes[:, 2:].T)):
        occupied = inside.any(axis=3 - axis)
        extent = occupied.sum(axis=1)
        some = extent > 0
        where = (occupied * (np.arange(SIZE) + 0.5)).sum(axis=1)[some] / extent[some]
        theirs = end > begin
        middle = ((begin + end) / 2)[theirs]
        # A box of timm's is up to a pixel narrower, since it is cut to whole pixels: half a pixel of 64 on average.
        assert abs(extent.mean() - (end - begin).mean()) < 1.5
        assert ks_2samp(where, middle).statistic < 0.06


@pytest.mark.parametrize("alpha", [0.2, 1.0])
def test_given_the_share_pixels_and_loss_are_timms(alpha: float) -> None:
    draws = np.random.default_rng(4)
    images = draws.integers(0, 256, (32, 8, 8, 3), dtype=np.uint8)
    labels = draws.integers(0, 5, 32).astype(np.int32)
    mixed, others, shares = Mixing(3, alpha, 0.0).mixed(
        tf.constant(images), tf.constant(labels), tf.range(32, dtype=tf.int64)
    )
    logits = draws.normal(size=(32, 5)).astype(np.float32)
    ones = np.ones(32, np.float32)
    batch = Batch(mixed, tf.constant(labels), ones, np.arange(32), np.zeros((32, 0)), others, shares)
    for smoothing in (0.0, 0.1):
        losses = Objective(5, 32, smoothing, mixed=True).losses(tf.constant(logits), batch).numpy()
        for pair in range(16):
            rows, share = slice(2 * pair, 2 * pair + 2), float(shares[2 * pair])
            x = torch.tensor(images[rows], dtype=torch.float64)
            blended = x * share + x.flip(0) * (1 - share)  # Mixup._mix_batch
            np.testing.assert_allclose(mixed[rows], blended.numpy(), atol=0.5 + 1e-3)
            # A batch of two, whose flip is the partner; timm draws one share for it.
            target = mixup_target(torch.tensor(labels[rows], dtype=torch.int64), 5, share, smoothing)
            expected = SoftTargetCrossEntropy()(torch.tensor(logits[rows]), target)
            assert losses[rows].mean() == pytest.approx(float(expected), rel=1e-5)
