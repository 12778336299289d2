"""Stand-ins and small real objects that more than one test module uses."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import tensorflow as tf
from PIL import Image
from sklearn.datasets import load_digits

from tests.normalised import NORMALISED
from tl_dist.config import Config, DataConfig, ModelConfig, OptimizerConfig, registry
from tl_dist.config.stages import Stage, plan
from tl_dist.data.order import Order
from tl_dist.data.pipeline import Read
from tl_dist.datasets import Source, arrays
from tl_dist.datasets.split import folds_of
from tl_dist.datasets.store import EncodedStore, Location
from tl_dist.features import extraction
from tl_dist.models import classifier
from tl_dist.parallel.single import SingleDevice
from tl_dist.runs.checkpoint import Checkpointer
from tl_dist.runs.directory import RunDir
from tl_dist.trainer.examples import Examples
from tl_dist.trainer.run_writer import RunWriter
from tl_dist.trainer.setup import Setup, StageInput
from tl_dist.training.state import TrainState

OPTIMIZER = OptimizerConfig(name="sgd", learning_rate=0.1)
CONFIG = Config(
    name="x",
    steps=1,
    data=DataConfig(name="digits"),
    model=ModelConfig(backbone="tiny"),
    optimizer=OPTIMIZER,
)
PARALLEL = SingleDevice(CONFIG)


def memory_source(num_examples: int, size: int = 8, num_classes: int = 3) -> Source:
    """Random images of `size` pixels; label k belongs to image k modulo the number of classes."""
    images = np.random.default_rng(0).integers(0, 256, (num_examples, size, size, 3), dtype=np.uint8)
    return labelled(images, num_classes)


def labelled(images: np.ndarray, num_classes: int = 3) -> Source:
    """The same with images of one's own."""
    labels = (np.arange(len(images)) % num_classes).astype(np.int32)
    names = [f"class {k}" for k in range(num_classes)]
    return arrays.array_source(images, labels, names, [str(k) for k in range(len(images))])


@dataclass(frozen=True, eq=False)
class HeldFiles(EncodedStore):
    """Encoded images that lie in no file."""

    contents: Sequence[bytes]

    def fingerprint(self, source: Source) -> str:
        return hashlib.sha256(b"".join(self.contents)).hexdigest()

    def encoded_rows(self, rows: Any) -> Any:
        return tf.gather(tf.constant(self.contents), rows)

    def location(self, row: int) -> Location:
        raise NotImplementedError


def array_source(num: int = 60, num_classes: int = 3) -> Source:
    images = np.random.default_rng(0).integers(0, 256, (num, 4, 5, 3), dtype=np.uint8)
    labels = np.arange(num, dtype=np.int32) % num_classes
    return arrays.array_source(
        images, labels, [f"class {k}" for k in range(num_classes)], [f"row:{k}" for k in range(num)]
    )


def build(backbone: str = "tiny", *, image_size: int = 32, **settings: Any) -> classifier.Classifier:
    config = ModelConfig(backbone=backbone, weights="random", **settings)
    record = registry.backbone(backbone)
    return classifier.Classifier(record, config, image_size=image_size, num_classes=3, seed=0)


def normalised(train_from: str, batch_norm: str, *, num_classes: int = 3, **settings: Any) -> classifier.Classifier:
    config = ModelConfig(backbone="normalised", train_from=train_from, batch_norm=batch_norm, **settings)
    return classifier.Classifier(NORMALISED, config, image_size=32, num_classes=num_classes, seed=0)


def drawn(classes: int, num: int = 120, views: int = 2) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Few examples of many features at unlike scales, of which six say something."""
    rng = np.random.default_rng(classes)
    labels = (np.arange(num) % classes).astype(np.int32)
    values = rng.normal(size=(num, views, 40))
    values[:, :, :6] += rng.normal(size=(classes, 6))[labels][:, None] / 2
    values = (values * np.geomspace(0.1, 100, 40) + np.linspace(-500, 500, 40)).astype(np.float32)
    return values, labels, folds_of(labels, 4, 0)


FEATURE_SOURCE = memory_source(11, size=8)


def compute_features(images: Any) -> Any:
    """Something that tells images apart, and left from right: the pixels themselves, in bfloat16."""
    return tf.cast(images[:, :4, :, 0], tf.bfloat16)


PREFIX = extraction.Prefix(compute_features, 8, {"frozen_sha256": "abc", "cut": "block5_conv1", "precision": "float32"})


def extract(root: Path, views: tuple[str, ...] = (), prefix: extraction.Prefix = PREFIX, **changes: Any) -> Any:
    said: list[Any] = []
    settings: dict[str, Any] = {"stop_requested": lambda: False, "say": said.append, **changes}
    source = settings.pop("source", FEATURE_SOURCE)
    places: dict[str, Any] = {"root": root, "split": "train", "parallel": PARALLEL}
    return extraction.Extraction(source, prefix, views, **places, **settings).features(), said


def setup_of(
    cfg: Config,
    splits: Mapping[str, Any],
    net: Any = None,
    *,
    run: RunDir | None = None,
    parallel: Any = PARALLEL,
    step: int = 0,
    bad: Sequence[Any] = (),
    digest: str | None = None,
) -> Setup:
    """A setup that has read `splits` and built `net`, and whose optimizer nobody uses."""
    run = run or RunDir(Path("runs/x"))
    order = Order(cfg.seed, splits["train"].num_examples, cfg.global_batch)
    examples = Examples(run, splits, splits, list(bad), 100, digest, threads=1)
    optimizer: Any = SimpleNamespace(start={}, variables={})
    stages = plan(cfg, order.steps)
    return Setup(
        run, cfg, parallel, 1, "float32", examples, order, stages,
        net, optimizer, {}, None, None, TrainState({}, step),
    )  # fmt: skip


def given_to(setup: Setup, *, net: Any = None, stage: Stage | None = None, features: Any = None) -> StageInput:
    """The input of a stage (the first) of images that nobody reads."""
    return StageInput(stage or setup.stages[0], net or setup.model, Read(lambda *_: (None, None)), {}, features)


def run_writer(run: RunDir, step: int = 0, *, tensorboard: bool = False, **changes: Any) -> RunWriter:
    """The writer of a run of two workers and classes, which saves nothing."""
    cfg = CONFIG.model_copy(update={"report": CONFIG.report.model_copy(update={"tensorboard": tensorboard})})
    settings: dict[str, Any] = {
        "total_steps": 100,
        "steps_per_epoch": 20.0,
        "num_workers": 2,
        "class_names": ["cat", "dog"],
        "meta": {},
    }
    checkpointer = Checkpointer(run, keep=1, owned=lambda: True)
    return RunWriter(run, cfg, TrainState({}, step), checkpointer, **(settings | changes))


def digit_files(folder: Path, num: int, size: tuple[int, int] = (20, 24), *, jpeg_every: int = 0) -> Path:
    """`num` of scikit-learn's digits, resized, in a folder for each class: PNG, each `jpeg_every`-th a JPEG."""
    found = load_digits()
    for k in range(num):
        directory = folder / f"digit {found.target[k]}"
        directory.mkdir(parents=True, exist_ok=True)
        image = Image.fromarray((found.images[k] * 15).astype(np.uint8)).resize(size, Image.Resampling.BICUBIC)
        suffix = "jpg" if jpeg_every and k % jpeg_every == 0 else "png"
        image.convert("RGB").save(directory / f"{k:04d}.{suffix}")
    return folder
