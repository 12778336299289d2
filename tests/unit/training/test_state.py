"""A snapshot is a private copy: training that goes on does not reach it."""

import numpy as np
import tensorflow as tf

from tl_dist.training.state import TrainState


def test_later_updates_do_not_reach_a_snapshot() -> None:
    variables = {"kernel": tf.Variable(tf.ones([1000, 100])), "step": tf.Variable(3, dtype=tf.int64)}
    snapshot = TrainState(variables).arrays()
    variables["kernel"].assign_add(tf.ones([1000, 100]))
    variables["step"].assign_add(1)
    tf.raw_ops.ResourceApplyGradientDescent(var=variables["kernel"].handle, alpha=1.0, delta=tf.ones([1000, 100]))
    np.testing.assert_array_equal(snapshot["kernel"], np.ones([1000, 100]))
    assert snapshot["step"] == 3
    assert snapshot["step"].dtype == np.int64


def test_the_next_snapshot_takes_no_new_memory() -> None:
    state = TrainState({"kernel": tf.Variable(tf.zeros([100]))})
    first = state.arrays()["kernel"]
    state.variables["kernel"].assign(tf.ones([100]))
    assert state.arrays()["kernel"] is first
    np.testing.assert_array_equal(first, np.ones(100))


def test_what_a_snapshot_holds_is_put_back_into_every_variable() -> None:
    state = TrainState({"kernel": tf.Variable([[1.5, -2.0]]), "step": tf.Variable(3, dtype=tf.int64)})
    kept = {path: value.copy() for path, value in state.arrays().items()}
    for variable in state.variables.values():
        variable.assign(tf.zeros_like(variable))
    state.resume(kept, step=7, history={"best": 1.0})
    assert (state.step, state.history) == (7, {"best": 1.0})
    np.testing.assert_array_equal(state.variables["kernel"], [[1.5, -2.0]])
    assert state.variables["step"].numpy() == 3
