"""Blocks that are computed again for their gradient give the same gradient, in less memory."""

from typing import Any

import pytest

from tests.normalised import NORMALISED
from tests.one_step import RATE, assert_equal, built, gradients_of
from tests.peak_memory import taken_by
from tests.small_vit import SMALL_SIGLIP, SMALL_VIT
from tl_dist.config.lora import LoraConfig
from tl_dist.models.backbones import Backbone

FULL = pytest.mark.full  # XLA compiles any network in the same way, and for half a minute
SETTINGS: tuple[tuple[Backbone, dict[str, Any], Any], ...] = (
    (SMALL_VIT, {"drop_path": RATE, "dropout": 0.2}, ()),
    (SMALL_VIT, {"train_from": "block1", "adapt": LoraConfig(lora=2)}, FULL),
    (SMALL_SIGLIP, {"layers": ("block0", "top"), "pooling": "both"}, FULL),
    (SMALL_VIT, {"train_from": "block1_mlp2"}, FULL),
    (NORMALISED, {"batch_norm": "train"}, ()),
)


@pytest.mark.parametrize(
    ("record", "settings", "xla"),
    [pytest.param(*more, xla, marks=mark if xla else ()) for xla in (False, True) for *more, mark in SETTINGS],
)
def test_blocks_that_are_computed_again_give_the_same_gradients(
    record: Backbone, settings: dict[str, Any], xla: bool
) -> None:
    (loss, once), (again_loss, again) = (
        gradients_of(built(record, 24, recomputes=recomputes, **settings), 24, xla=xla) for recomputes in (False, True)
    )
    assert again_loss == pytest.approx(loss, rel=1e-6)
    assert_equal(again, once, 1e-6)


STEP = """
from tests.one_step import built, gradients_of
from tl_dist.models.backbones import vit

shape = vit.Shape(64, 8, 4, patch=4, grid=16)
net = built(vit.record("deep", shape, "tf"), 96, recomputes={})
"""


def test_blocks_that_are_computed_again_take_less_memory() -> None:
    once, again = (taken_by("gradients_of(net, 96)", setup=STEP.format(recomputes)) for recomputes in (False, True))
    assert again.grown_mb < 0.6 * once.grown_mb
