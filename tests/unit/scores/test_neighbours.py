"""Images are told from others by the distance of their features, with the same bits in pieces of any length."""

from pathlib import Path

import numpy as np
import pytest

from tl_dist.files.npz import save_npz
from tl_dist.refusal import Refusal
from tl_dist.scores import neighbours
from tl_dist.scores.neighbours import Neighbours

RNG = np.random.default_rng(7)
TRAIN = neighbours.normalised(RNG.normal(size=(500, 40)).astype(np.float32) + 2)
KNOWN = RNG.normal(size=(70, 40)).astype(np.float32) + 2
STRANGE = RNG.normal(size=(70, 40)).astype(np.float32)


def test_what_is_unlike_is_farther() -> None:
    bank = Neighbours("aa", TRAIN, np.zeros(3, np.float32))
    near, far = bank.distances(KNOWN, 8), bank.distances(STRANGE, 8)
    assert (near[:, None] < far[None, :]).mean() > 0.99


def test_pieces_of_whole_batches_have_the_bits_of_the_whole() -> None:
    """As a prediction comes in pieces of any length, by the clock."""
    bank, batch = Neighbours("aa", TRAIN, np.zeros(3, np.float32)), 14
    together = bank.distances(KNOWN, batch)
    for pieces in ([70], [14] * 5, [28, 42], [56, 14]):
        ends = np.cumsum(pieces)
        parts = [bank.distances(KNOWN[e - n : e], batch) for n, e in zip(pieces, ends, strict=True)]
        assert np.concatenate(parts).tobytes() == together.tobytes()
    assert bank.distances(KNOWN[56:60], batch).tobytes() == together[56:60].tobytes()  # the last batch is padded


def test_zeros_are_far_from_all() -> None:
    zeros = neighbours.normalised(np.zeros((1, 40), np.float32))
    assert neighbours.distances(TRAIN, zeros, 4)[0] == pytest.approx(1)


def test_no_more_is_kept_than_there_is_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    assert neighbours.chosen(100, 8, seed=1).tolist() == list(range(100))
    monkeypatch.setattr(neighbours, "MOST_BYTES", 4 * 8 * 30)
    some = neighbours.chosen(100, 8, seed=1)
    assert len(some) == len(set(some.tolist())) == 30 and (np.diff(some) > 0).all()
    assert some.tolist() != neighbours.chosen(100, 8, seed=2).tolist()


def test_the_file_is_of_one_checkpoint(tmp_path: Path) -> None:
    assert neighbours.of_checkpoint(tmp_path, "aa") is None
    kept = Neighbours("aa", TRAIN, np.ones(3, np.float32))
    save_npz(tmp_path / neighbours.FILE, **kept.arrays())
    found = neighbours.of_checkpoint(tmp_path, "aa")
    assert found is not None and (found.features == TRAIN).all()
    assert neighbours.of_checkpoint(tmp_path, "ab") is None
    save_npz(tmp_path / neighbours.FILE, **kept.arrays() | {"features": TRAIN[0]})
    with pytest.raises(Refusal, match=r"holds no neighbours .* Fix: make it again"):
        neighbours.of_checkpoint(tmp_path, "aa")
