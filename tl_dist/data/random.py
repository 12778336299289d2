"""Random numbers as a pure function of (run seed, position, purpose): the same on any worker and in any batch.

SplitMix64 (Steele, Lea and Flood, OOPSLA 2014) with its own state for each position, computed for a whole batch in a
dozen vector operations. TensorFlow's stateless generators take one seed per call, so each row would need a call.
"""

import zlib
from typing import Any

import numpy as np
import tensorflow as tf

_GOLDEN = 0x9E3779B97F4A7C15
_MASK = (1 << 64) - 1


def bits(run_seed: int, positions: Any, purpose: str, num: int) -> Any:
    """Draw `num` words for each of `positions` (int64 [rows]): uint64 [rows, num]."""
    start = _mixed_int((run_seed << 32) ^ zlib.crc32(purpose.encode()))
    states = _mixed(tf.cast(positions, tf.uint64) * _word(_GOLDEN) + _word(start))
    # An array: a traced function would convert a list of integers above and below 2^63 to float64, and round them.
    steps = tf.constant(np.array([(k + 1) * _GOLDEN & _MASK for k in range(num)], np.uint64))
    return _mixed(states[:, None] + steps[None, :])


def uniform(run_seed: int, positions: Any, purpose: str, num: int) -> Any:
    """Draw `num` numbers in [0, 1) for each of `positions`: float32 [rows, num]."""
    words = tf.bitwise.right_shift(bits(run_seed, positions, purpose, num), _word(40))
    return tf.cast(tf.cast(words, tf.int32), tf.float32) * 2.0**-24


def keep_masks(run_seed: int, positions: Any, rates: list[float]) -> Any:
    """Draw masks, bool [rows, rates], that are False with the probability of their column (rounded to 1/65,536)."""
    words = bits(run_seed, positions, "dropout", -(-len(rates) // 4))
    draws = tf.reshape(tf.bitcast(words, tf.uint16), [-1, 4 * words.shape[1]])[:, : len(rates)]
    return tf.cast(draws, tf.int32) >= [round(rate * 65536) for rate in rates]


def _word(value: int) -> Any:
    return tf.constant(value, tf.uint64)


def _mixed(z: Any) -> Any:
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        z = tf.bitwise.bitwise_xor(z, tf.bitwise.right_shift(z, _word(shift))) * _word(factor)
    return tf.bitwise.bitwise_xor(z, tf.bitwise.right_shift(z, _word(31)))


def _mixed_int(z: int) -> int:
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        z = ((z ^ (z >> shift)) * factor) & _MASK
    return z ^ (z >> 31)
