"""A corruption depends on the image, its position and the severity alone, and grows with the severity."""

import numpy as np
import pytest
import tensorflow as tf
from sklearn.datasets import load_sample_image

from tests.doubles import memory_source
from tl_dist.data import corruptions, pipeline
from tl_dist.parallel import rows_of
from tl_dist.refusal import ExitCode, Refusal
from tl_dist.tools.evaluate.work import corrupted

IMAGE = load_sample_image("flower.jpg")[100:164, 250:314]
ELSEWHERE = ("frost", "elastic_transform")
"""tests/references has them: the one is fetched, the other is strongest at 1 and 2, as in ImageNet-C"""


@pytest.mark.parametrize("name", [name for name in corruptions.CORRUPTIONS if name not in ELSEWHERE])
def test_it_grows_with_the_severity(name: str) -> None:
    def distance(severity: int) -> float:
        made = [corruptions.corrupted(IMAGE, name, severity, place) for place in range(4)]
        assert all(one.shape == IMAGE.shape and one.dtype == np.uint8 for one in made)
        return float(np.mean([abs(one.astype(float) - IMAGE).mean() for one in made]))

    assert 0 < distance(1) < distance(5)


def test_positions_and_severities_have_draws_of_their_own() -> None:
    first = corruptions.corrupted(IMAGE, "gaussian_noise", 1, 0)
    assert (first == corruptions.corrupted(IMAGE, "gaussian_noise", 1, 0)).all()
    assert (first != corruptions.corrupted(IMAGE, "gaussian_noise", 1, 1)).mean() > 0.5


@pytest.mark.parametrize("name", ["shot_noise", "rotate", "pixelate", "elastic_transform"])
def test_any_number_of_workers_makes_the_same_images(name: str) -> None:
    source = memory_source(11, size=32)
    read = corrupted(pipeline.plain(source, 32), name, 3)

    def images(workers: int) -> np.ndarray:
        parts = [
            [
                batch.images.numpy()
                for batch in pipeline.evaluation_batches(
                    read, source.num_examples, rows=rows_of(rank, workers, 4), global_batch=4, threads=2
                )
            ]
            for rank in range(workers)
        ]
        return np.concatenate([np.concatenate(batch) for batch in zip(*parts, strict=True)])

    alone = images(1)
    assert (images(2) == alone).all() and (images(4) == alone).all()
    plain = np.stack([source.read(tf.constant(k, tf.int64))[0].numpy() for k in range(11)])
    expected = [corruptions.corrupted(image, name, 3, k) for k, image in enumerate(plain)]
    assert (alone[:11] == np.stack(expected)).all()


def test_words_of_the_command_line() -> None:
    assert corruptions.named("all") == list(corruptions.CORRUPTIONS)
    assert corruptions.named("noise,fog,shot_noise") == [*corruptions.CATEGORIES["noise"], "fog"]
    with pytest.raises(Refusal, match=r"'smog' is not a corruption\. Fix: use all, noise") as caught:
        corruptions.named("noise,smog")
    assert caught.value.code == ExitCode.USAGE


def test_corruptions_have_one_order_however_they_are_named() -> None:
    """Else two runs with the same ones could not be compared."""
    assert corruptions.named("rotate,fog,noise,shot_noise") == [
        "gaussian_noise", "shot_noise", "impulse_noise", "fog", "rotate",
    ]  # fmt: skip
    assert corruptions.named("all") == [name for names in corruptions.CATEGORIES.values() for name in names]
