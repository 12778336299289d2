"""The worker count changes rounding alone: every strategy computes the updates of one device, over some 20 steps."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tests.parallel.conftest import launches_of
from tests.parallel.launch import run_script
from tests.parallel.parity_scenario import (
    GLOBAL_BATCH,
    METHODS,
    NUM_EXAMPLES,
    NUM_METHOD_STEPS,
    NUM_STEPS,
    OVERFLOW_POSITION,
    VARIANTS,
    WIRES,
)

Figures = Callable[[str], dict[str, Any]]
OVERFLOW_STEP = OVERFLOW_POSITION // GLOBAL_BATCH


EXACT = ("plain", "clipped", "accumulated", "overflow", "sync_batch_norm")


@pytest.mark.parametrize(("name", "variant"), launches_of(*EXACT, but="single"))
def test_every_step_has_the_loss_and_the_norm_of_a_single_device(figures: Figures, name: str, variant: str) -> None:
    found, single = figures(name)[variant], figures("single")[variant]
    for key, tolerance in (("losses", 1e-5), ("gradient_norms", 1e-3)):
        assert len(found[key]) == NUM_STEPS
        np.testing.assert_allclose(found[key], single[key], rtol=tolerance, err_msg=key)


@pytest.mark.parametrize(("name", "variant"), launches_of(*METHODS, but="single"))
def test_every_method_computes_the_steps_of_a_single_device(figures: Figures, name: str, variant: str) -> None:
    """Each by itself; the evaluation is of the averaged weights where there are some."""
    found, expected = figures(name)[variant], figures("single")[variant]
    tolerance = 3e-4 if METHODS[variant].get("precision") else 1e-5
    assert len(expected["losses"]) == NUM_METHOD_STEPS
    np.testing.assert_allclose(found["losses"], expected["losses"], rtol=tolerance)
    assert found["evaluation_loss"] == pytest.approx(expected["evaluation_loss"], rel=tolerance)
    assert found["replicas_equal"]


@pytest.mark.parametrize("variant", list(METHODS))
def test_every_method_is_in_force(figures: Figures, variant: str) -> None:
    """Else equal curves would say nothing: the same run without it ends elsewhere."""
    single = figures("single")
    without = single[METHODS[variant]["optimizer"].name]
    assert abs(single[variant]["evaluation_loss"] - without["evaluation_loss"]) > 1e-5


@pytest.mark.parametrize(("name", "variant"), launches_of("float16", "bfloat16", but="single"))
def test_mixed_precision_follows_a_single_device(figures: Figures, name: str, variant: str) -> None:
    """Within the precision of a 16-bit type: a share of another size may be computed by another kernel."""
    np.testing.assert_allclose(figures(name)[variant]["losses"], figures("single")[variant]["losses"], rtol=1e-2)


@pytest.mark.parametrize(("name", "variant"), launches_of(*WIRES))
def test_a_narrow_wire_follows_a_wide_one_within_its_rounding(figures: Figures, name: str, variant: str) -> None:
    """Half the bytes; each gradient is rounded, and their sum: by 2**-9 in bfloat16, by 2**-12 in float16."""
    found, wide = figures(name)[variant], figures(name)["plain"]
    steps, tolerance = (OVERFLOW_STEP, 3e-3) if WIRES[variant].get("overflow") else (NUM_STEPS, 2e-2)
    assert found["losses"][:steps] != wide["losses"][:steps]
    np.testing.assert_allclose(found["losses"][:steps], wide["losses"][:steps], rtol=tolerance)
    assert 2 * found["reduced_bytes"] == wide["reduced_bytes"] > 0
    assert found["replicas_equal"] and found["weights_finite"]


@pytest.mark.parametrize(("name", "variant"), launches_of("sync_batch_norm", but="single"))
def test_synchronized_batch_norm_moves_to_the_statistics_of_a_single_device(
    figures: Figures, name: str, variant: str
) -> None:
    """Those that move with the steps, and those that are recomputed for an evaluation after few of them."""
    found, single = figures(name)[variant], figures("single")[variant]
    assert single["statistics"] != single["precise_statistics"]
    for kind in ("statistics", "precise_statistics"):
        assert len(single[kind]) == 4
        for path, values in found[kind].items():
            np.testing.assert_allclose(values, single[kind][path], rtol=1e-5, atol=1e-6, err_msg=f"{kind} {path}")


def test_accumulation_changes_nothing_but_memory(figures: Figures) -> None:
    single = figures("single")
    np.testing.assert_allclose(single["accumulated"]["losses"], single["plain"]["losses"], rtol=1e-5)
    np.testing.assert_allclose(single["deep_accumulated"]["losses"], single["deep"]["losses"], rtol=1e-5)


def test_precision_changes_no_mask_of_dropped_branches(figures: Figures) -> None:
    """Other masks would change a loss by more than its rounding does."""
    narrow, wide = (figures("single")[variant]["losses"] for variant in ("deep_bfloat16", "deep"))
    assert narrow != wide
    np.testing.assert_allclose(narrow, wide, rtol=3e-4)


def test_clipping_is_in_force(figures: Figures) -> None:
    single = figures("single")
    assert not np.allclose(single["clipped"]["losses"], single["plain"]["losses"], rtol=1e-3)


@pytest.mark.parametrize(("name", "variant"), launches_of(*VARIANTS, but="single"))
def test_all_replicas_end_with_the_same_bits(figures: Figures, name: str, variant: str) -> None:
    assert figures(name)[variant]["replicas_equal"]


@pytest.mark.parametrize(("name", "variant"), launches_of("overflow", "float16", "wire_float16"))
def test_an_overflow_on_one_replica_is_skipped_by_all(figures: Figures, name: str, variant: str) -> None:
    found = figures(name)[variant]
    assert np.isinf(found["losses"][OVERFLOW_STEP])
    assert [step for step, skipped in enumerate(found["skipped"]) if skipped] == [OVERFLOW_STEP]
    assert found["weights_finite"]


@pytest.mark.parametrize(("name", "variant"), launches_of("float16", "wire_float16"))
def test_an_overflow_halves_the_loss_scale_once(figures: Figures, name: str, variant: str) -> None:
    scales = figures(name)[variant]["loss_scale"]
    assert scales == [2.0**15] * OVERFLOW_STEP + [2.0**14] * (NUM_STEPS - OVERFLOW_STEP)


@pytest.mark.parametrize(("name", "variant"), launches_of("plain"))
def test_evaluation_counts_every_example_once_with_equal_figures(figures: Figures, name: str, variant: str) -> None:
    found, expected = figures(name)[variant], figures("single")[variant]
    assert found["num_examples"] == NUM_EXAMPLES == np.sum(found["confusion"])
    assert found["confusion"] == expected["confusion"]
    assert found["num_correct"] == expected["num_correct"]
    np.testing.assert_allclose(found["logits"], expected["logits"], rtol=1e-4, atol=1e-4)
    assert found["evaluation_loss"] == pytest.approx(expected["evaluation_loss"], rel=1e-5)


def test_keras_mirrored_lets_one_replicas_inf_into_all_weights(tmp_path: Any) -> None:
    """Why tl_dist reduces by itself. Fails when Keras mends it: then DESIGN of the optimizer may be reconsidered."""
    found = run_script("keras_mirrored_overflow.py", workers=1, launcher=None, output=tmp_path / "out.json")
    assert found["replica_0_gradient_finite"]
    assert not found["weights_finite"]


def test_horovods_keras_wrapper_averages_nothing(tmp_path: Any) -> None:
    """Why tl_dist uses raw collectives: under Keras 3 two ranks of the wrapper end with different weights."""
    found = run_script("horovod_keras_wrapper.py", workers=2, launcher="ours", output=tmp_path / "out.json")
    assert found["raw_collective_works"]
    assert found["largest_difference_between_ranks"] > 1e-3
