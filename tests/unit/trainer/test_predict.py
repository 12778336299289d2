"""An image that only one worker finds undecodable is as if it had never been there, on all of them."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any

import numpy as np
import tensorflow as tf
from PIL import Image

from tests.damaged_images import wrong_checksum
from tests.doubles import OPTIMIZER, PARALLEL, build
from tl_dist.config import Config, DataConfig, EvaluationConfig, ModelConfig
from tl_dist.datasets.files import unlabelled
from tl_dist.parallel.single import SingleDevice
from tl_dist.runs.directory import RunDir
from tl_dist.trainer.load_model import Loaded
from tl_dist.trainer.predict import Found, predict

NAMES = ("a", "b", "c")
CONFIG = Config(
    name="x",
    steps=1,
    data=DataConfig(name="digits", image_size=32),
    model=ModelConfig(backbone="tiny"),
    optimizer=OPTIMIZER,
    evaluation=EvaluationConfig(batch=4),
)
NET = build("tiny")


class Thread(SingleDevice):
    """One of two workers that are threads of this process."""

    world_size = num_replicas = 2

    def __init__(self, rank: int, barrier: Barrier, told: dict[int, bytes]) -> None:
        self.rank, self._barrier, self._told = rank, barrier, told

    def gather(self, text: bytes) -> list[bytes]:
        self._told[self.rank] = text
        self._barrier.wait(60)
        everyone = [self._told[rank] for rank in range(2)]
        self._barrier.wait(60)
        return everyone


def parts_of(paths: Sequence[str], parallel: Any) -> list[Found]:
    model = Loaded(RunDir(Path("runs/x")), CONFIG, parallel, 1, NET, NAMES, 1)
    return list(predict(model, unlabelled(paths, NAMES)))


def on_two(paths: Sequence[str]) -> list[list[Found]]:
    barrier, told = Barrier(2), dict[int, bytes]()
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(lambda rank: parts_of(paths, Thread(rank, barrier, told)), range(2)))


def rows(parts: Sequence[Found]) -> tuple[list[int], np.ndarray, dict[int, str]]:
    """The examples that have logits, these, and the reasons of the others."""
    good = [each for each in parts if not each.faults]
    faults = {k: reason for each in parts for k, reason in each.faults.items()}
    return [k for each in good for k in each.examples], np.concatenate([each.logits for each in good]), faults


def test_the_others_have_the_bits_that_they_have_without_it(tmp_path: Path) -> None:
    kernel = NET.trainable["head/logits/kernel"]
    kernel.assign(tf.random.stateless_normal(kernel.shape, [1, 2]))
    paths = [str(tmp_path / f"{k}.png") for k in range(19)]
    bad = {5, 6, 18}  # rows 0 and 1 of each four are of the first worker, the others of the second
    for k, path in enumerate(paths):
        pixels = np.random.default_rng(k).integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
        if k in bad:
            Path(path).write_bytes(wrong_checksum())
    good = [path for k, path in enumerate(paths) if k not in bad]
    first, second = on_two(paths)
    examples, logits, faults = rows(first)
    assert examples == [k for k in range(19) if k not in bad] and faults.keys() == bad
    assert all(reason.startswith("cannot be decoded: ") for reason in faults.values())
    expected = rows(on_two(good)[0])[1]
    assert logits.shape == (16, 3) and len(np.unique(logits)) > 40
    assert logits.tobytes() == expected.tobytes()
    np.testing.assert_allclose(logits, rows(parts_of(good, PARALLEL))[1], rtol=1e-4, atol=1e-4)
    assert rows(second)[::2] == (examples, faults) and not rows(second)[1].size
