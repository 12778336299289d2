"""Numbers drawn by position: SplitMix64 as published, and statistics of everything that is drawn by small seeds.

Every p-value is compared with ALPHA. There are about 170 of them, so fair draws of other seeds would fail here
less than once in 1,000 times.
"""

import itertools
import zlib

import keras
import numpy as np
import pytest
import tensorflow as tf
from numpy.typing import NDArray
from scipy import stats

from tl_dist.config import ModelConfig, registry
from tl_dist.data import random as draws
from tl_dist.data.augment import drawn_view
from tl_dist.data.order import Order
from tl_dist.models import classifier

ALPHA = 5e-6
PURPOSES = ["flip", "dihedral", "random_resized_crop", "mixing", "dropout", "order/examples"]


def splitmix64(state: int, num: int) -> list[int]:
    """Steele, Lea and Flood, Fast splittable pseudorandom number generators, OOPSLA 2014: mix64variant13."""
    words = []
    for _ in range(num):
        state = (state + 0x9E3779B97F4A7C15) % 2**64
        z = state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) % 2**64
        words.append(z ^ (z >> 31))
    return words


def finalized(z: int) -> int:
    return splitmix64(z - 0x9E3779B97F4A7C15, 1)[0]


def test_splitmix64_gives_the_published_words() -> None:
    """The test vector of the C program of S. Vigna for seed 1234567."""
    assert splitmix64(1234567, 3) == [6457827717110365317, 3203168211198807973, 9817491932198370423]


def test_words_are_those_of_splitmix64_eager_and_traced() -> None:
    """The state of a position is a word of the stream of (seed, purpose); its words are the stream from there on."""
    positions = np.array([0, 1, 2, 1000, 2**40], np.int64)
    for seed, purpose, num in ((0, "flip", 1), (3, "mixing", 5), (2**31 - 1, "dropout", 40)):
        start = finalized((seed << 32) ^ zlib.crc32(purpose.encode()))
        expected = [
            splitmix64(finalized((start + position * 0x9E3779B97F4A7C15) % 2**64), num)
            for position in positions.tolist()
        ]
        traced = tf.function(lambda at, s=seed, p=purpose, n=num: draws.bits(s, at, p, n))
        for found in (draws.bits(seed, positions, purpose, num), traced(tf.constant(positions))):
            np.testing.assert_array_equal(found.numpy(), np.array(expected, np.uint64))


def p_of_correlation(first: NDArray[np.float32], second: NDArray[np.float32]) -> float:
    return float(stats.pearsonr(first.ravel(), second.ravel()).pvalue)


@pytest.mark.parametrize("purpose", PURPOSES)
def test_draws_are_uniform_and_independent_of_their_neighbours(purpose: str) -> None:
    """In seed, position and word; seed 0 is the default."""
    values = [draws.uniform(seed, np.arange(4000), purpose, 4).numpy() for seed in range(3)]
    for of_seed in values:
        assert stats.kstest(of_seed.ravel(), "uniform").pvalue > ALPHA
        assert p_of_correlation(of_seed[1:], of_seed[:-1]) > ALPHA
        assert p_of_correlation(of_seed[:, 1:], of_seed[:, :-1]) > ALPHA
        pairs = (of_seed[:, 0] * 8).astype(int) * 8 + (of_seed[:, 1] * 8).astype(int)
        assert stats.chisquare(np.bincount(pairs, minlength=64)).pvalue > ALPHA
    for first, second in itertools.pairwise(values):
        assert p_of_correlation(first, second) > ALPHA
        assert p_of_correlation(first[1:], second[:-1]) > ALPHA
    other = draws.uniform(0, np.arange(4000), PURPOSES[PURPOSES.index(purpose) - 1], 4).numpy()
    assert p_of_correlation(values[0], other) > ALPHA


def test_every_bit_is_set_half_of_the_time_over_256_seeds() -> None:
    words = np.concatenate([draws.bits(seed, np.arange(40), "x", 2).numpy().ravel() for seed in range(256)])
    ones = np.array([(words >> np.uint64(k) & np.uint64(1)).sum() for k in range(64)], float)
    spread = len(words) / 4
    assert stats.chi2(64).sf(((ones - len(words) / 2) ** 2 / spread).sum()) > ALPHA
    assert len(np.unique(words)) == len(words)


def test_an_example_is_augmented_independently_from_epoch_to_epoch_and_of_its_number() -> None:
    """The views that 2,000 examples get in the first five epochs, through the order."""
    num, epochs = 2000, 5
    positions = np.arange(num * epochs, dtype=np.int64)
    index = Order(0, num, 32).index(positions).numpy().reshape(epochs, num)
    for name, outcomes in (("flip", 2), ("dihedral", 8)):
        drawn = drawn_view(0, positions, name).numpy().reshape(epochs, num)
        view = np.empty_like(drawn)
        for of_epoch, rows, numbers in zip(view, index, drawn, strict=True):
            of_epoch[rows] = numbers
        assert stats.chisquare(np.bincount(view.ravel(), minlength=outcomes)).pvalue > ALPHA
        for first, second in itertools.pairwise(view):
            table = np.bincount(first * outcomes + second, minlength=outcomes**2).reshape(outcomes, outcomes)
            assert stats.chi2_contingency(table).pvalue > ALPHA
        table = np.bincount(view[0] * 2 + np.arange(num) % 2, minlength=2 * outcomes).reshape(-1, 2)
        assert stats.chi2_contingency(table).pvalue > ALPHA


@pytest.mark.parametrize("dropout", [0.1, 0.25, 0.5])
def test_dropout_masks_are_fair_coins_in_each_row_feature_and_seed(dropout: float) -> None:
    masks = np.array([draws.keep_masks(seed, np.arange(600), 50 * [dropout]).numpy() for seed in range(3)])
    rate = 1 - round(dropout * 65536) / 65536
    spread = rate * (1 - rate)
    for axes, num in (((0, 1), 1800), ((0, 2), 150), ((1, 2), 30_000)):
        kept = masks.sum(axis=axes)
        assert stats.chi2(kept.size).sf(((kept - num * rate) ** 2).sum() / (num * spread)) > ALPHA
    for first, second in (
        (masks[:, :, 1:], masks[:, :, :-1]),
        (masks[:, 1:], masks[:, :-1]),
        (masks[1:], masks[:-1]),
    ):
        assert p_of_correlation(first.astype(np.float32), second.astype(np.float32)) > ALPHA


def test_weights_of_neighbouring_seeds_are_independent_and_as_keras_draws_them() -> None:
    """The random start of a backbone and of a hidden layer, by seeds 0 to 3 and 256."""
    config = ModelConfig(backbone="tiny", weights="random", hidden=64)
    backbone = registry.backbone("tiny")
    starts = []
    for seed in (0, 1, 2, 3, 256):
        made = classifier.Classifier(backbone, config, image_size=32, num_classes=3, seed=seed)
        kernels = {path: v.numpy() for path, v in {**made.moving, **made.frozen}.items() if v.shape.rank >= 2}
        hidden = next(value for path, value in kernels.items() if "hidden" in path)
        limit = np.sqrt(6 / sum(hidden.shape))  # Glorot and Bengio 2010, equation 16
        assert stats.kstest(hidden.ravel() / limit, stats.uniform(-1, 2).cdf).pvalue > ALPHA
        starts.append({path: value for path, value in kernels.items() if np.ptp(value) > 0})
    assert len(starts[0]) > 2
    for first, second in itertools.pairwise(starts):
        for path, value in first.items():
            assert p_of_correlation(value, second[path]) > ALPHA, path
    values = list(starts[0].values())
    for one, other in itertools.pairwise(values):
        least = min(one.size, other.size)
        assert p_of_correlation(one.ravel()[:least], other.ravel()[:least]) > ALPHA
    keras.utils.clear_session()
