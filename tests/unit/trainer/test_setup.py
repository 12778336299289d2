"""How numbers are rounded is as the config says, on a device and on the wire; a notebook's way is given back."""

from pathlib import Path

import pytest
import tensorflow as tf

from tests.doubles import CONFIG
from tests.end_to_end.harness import Workspace, records
from tl_dist.config import RuntimeConfig
from tl_dist.trainer.load_model import process_as_it_was, start_tensorflow


@pytest.mark.parametrize(("config", "of_the_process"), [(False, True), (True, False), (False, False)])
def test_tf32_is_as_the_config_says_and_then_as_it_was(config: bool, of_the_process: bool) -> None:
    enabled = tf.config.experimental.tensor_float_32_execution_enabled
    before = enabled()
    try:
        tf.config.experimental.enable_tensor_float_32_execution(of_the_process)
        with process_as_it_was():
            start_tensorflow(CONFIG.model_copy(update={"runtime": RuntimeConfig(tf32=config)}), None)
            assert enabled() is config
        assert enabled() is of_the_process
    finally:
        tf.config.experimental.enable_tensor_float_32_execution(before)


def test_what_travels_in_float16_is_scaled_as_what_is_computed_in_it(tmp_path: Path) -> None:
    run = Workspace(tmp_path).train_here("scaled", "steps=2", "runtime.wire=float16")
    assert [record["loss_scale"] for record in records(run, "train")] == [2.0**15] * 2
    assert run.read_identity()["trajectory"]["runtime"]["wire"] == "float16"  # type: ignore[index]
