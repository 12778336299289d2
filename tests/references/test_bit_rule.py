"""`recipe: auto` against BiT-HyperRule as its authors publish it, for their batch and for others.

Source: bit_hyperrule.py of github.com/google-research/big_transfer (Apache-2.0), in own words; Kolesnikov et al., arXiv
1912.11370, section 3.3.
"""

from typing import Any

import pytest
import tensorflow as tf

from tl_dist.config import OptimizerConfig, ScheduleConfig, auto
from tl_dist.training import optim

# fewer examples than | end of warm-up, tenths after, end | mixup
TABLE = (
    (20_000, [100, 200, 300, 400, 500], 0.0),
    (500_000, [500, 3_000, 6_000, 9_000, 10_000], 0.1),
    (float("inf"), [500, 6_000, 12_000, 18_000, 20_000], 0.1),
)
RESOLUTIONS = {
    True: (160, 128),
    False: (512, 480),
}  # area below 96 x 96: size before the crop, and of the crop
SIZES = [1_400, 19_999, 20_000, 499_999, 500_000, 1_281_167]


def authors_milestones(num_examples: int) -> list[int]:
    return next(steps for below, steps, _ in TABLE if num_examples < below)


def authors_rate(step: float, num_examples: int) -> float:
    warm, *drops, end = authors_milestones(num_examples)
    assert step < end
    if step < warm:
        return 0.003 * step / warm
    return 0.003 * 0.1 ** sum(step > drop for drop in drops)


def ours(num_examples: int, batch: int) -> tuple[dict[str, Any], Any]:
    found = auto.auto({"global_batch": batch}, num_examples, 300 * 300, 480)
    optimizer = found["optimizer"]
    schedule = ScheduleConfig(
        **{**optimizer["schedule"], "drop_at_epochs": tuple(optimizer["schedule"]["drop_at_epochs"])}
    )
    config = OptimizerConfig(**{**optimizer, "schedule": schedule})
    rate = tf.function(
        lambda steps: optim.learning_rate(
            config, steps, steps_per_epoch=num_examples / batch, total_steps=found["steps"]
        ),
        input_signature=[tf.TensorSpec([], tf.int64)],
    )
    return found, lambda step: float(rate(tf.constant(step, tf.int64)))


@pytest.mark.parametrize("batch", [512, 128, 32])
@pytest.mark.parametrize("num_examples", SIZES)
def test_rate_and_length_are_the_authors_on_as_many_images(num_examples: int, batch: int) -> None:
    found, rate = ours(num_examples, batch)
    milestones = authors_milestones(num_examples)
    assert found["steps"] * batch == milestones[-1] * 512
    assert found["optimizer"]["momentum"] == 0.9
    longer = 512 // batch
    # Step s has here the rate that the authors' script gives to s + 1: none is made at rate 0. A drop may come a step
    # late, by the rounding of epochs.
    for step in range(0, found["steps"] - longer, found["steps"] // 400):
        if all(abs(step - drop * longer) > 1 for drop in milestones[1:]):
            expected = authors_rate((step + 1) / longer, num_examples) * batch / 512
            assert rate(step) == pytest.approx(expected, rel=1e-4), step


@pytest.mark.parametrize("num_examples", SIZES)
def test_mixup_follows_the_number_of_examples(num_examples: int) -> None:
    found, _ = ours(num_examples, 512)
    assert found["data"]["augmentation"]["mixup"] == next(mix for below, _, mix in TABLE if num_examples < below)


@pytest.mark.parametrize("area", [32 * 32, 96 * 96 - 1, 96 * 96, 500 * 375])
def test_resolutions_are_the_authors_for_a_backbone_that_takes_them(area: int) -> None:
    before, size = RESOLUTIONS[area < 96 * 96]
    data = auto.auto({}, 1000, area, 480)["data"]
    assert data["image_size"] == size
    assert data["augmentation"]["crop_area"][0] == pytest.approx((size / before) ** 2, abs=1e-4)
