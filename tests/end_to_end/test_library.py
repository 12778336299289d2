"""From Python as from the command line: a run trained in this process, its figures, and its model as plain Keras."""

import json
import os
import random
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

import tl_dist as tl
from tests.end_to_end.harness import TL_DIST, bits
from tests.normalised import NORMALISED
from tests.small_vit import SMALL_CLIP, SMALL_SIGLIP
from tl_dist.config import Config, DataConfig, ModelConfig, OptimizerConfig, registry
from tl_dist.data.resize import resize
from tl_dist.models import classifier
from tl_dist.models.backbones import Backbone
from tl_dist.models.backbones.applications import TINY
from tl_dist.models.network import assemble
from tl_dist.runs.directory import RunDir

CONFIG = """\
steps: 30
global_batch: 32
precision: float32
data: {name: digits, image_size: 16, validation_fraction: 0.1}
model: {backbone: tiny, weights: random, train_from: all, pooling: both, normalize: true, hidden: 8, dropout: 0.1}
optimizer: {name: adam, learning_rate: 0.01, ema: 0.9}
report: {tensorboard: false, every_steps: 1}
runtime: {threads: 1}
"""


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("library") / "digits.yaml"
    file.write_text(CONFIG)
    return file


@pytest.fixture(scope="module")
def run(config: Path) -> tl.Run:
    return tl.train(tl.load_config(config), runs=config.parent / "runs", here=True)


def test_importing_costs_nothing() -> None:
    heavy = {"tensorflow", "numpy", "pydantic", "rich"}
    code = f"import sys, tl_dist; print(sorted({heavy} & sys.modules.keys()), dir(tl_dist))"
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    loaded, _, names = done.stdout.partition("]")
    assert loaded == "["
    assert {"Config", "Refusal", "Run", "load_config", "open_dataset", "train"} <= set(eval(names))


def test_a_run_in_this_process_is_that_of_the_command_line(config: Path, run: tl.Run) -> None:
    subprocess.run([TL_DIST, "train", config.name, "name=apart"], cwd=config.parent, check=True, timeout=240)
    apart = tl.Run(config.parent / "runs" / "apart")
    assert run.done and apart.done
    assert run.scores.keys() == apart.scores.keys() == {"validation", "test"}
    assert [r["step"] for r in run.history()] == [r["step"] for r in apart.history()]
    np.testing.assert_allclose([r["loss"] for r in run.history()], [r["loss"] for r in apart.history()], rtol=1e-5)
    assert run.scores["test"]["accuracy"] == pytest.approx(apart.scores["test"]["accuracy"], abs=0.01)
    assert run.config == tl.load_config(config)


IN_ITS_OWN_WAY = """
import sys
import tensorflow as tf
import tl_dist as tl
tf.constant(0) + 1  # starts TensorFlow, which optimizes the functions of pipelines here
tl.train(tl.load_config(sys.argv[1], "name=started"), runs=sys.argv[2], here=True)
assert not tf.config.optimizer.get_experimental_options().get("disable_meta_optimizer")
"""


@pytest.mark.full
def test_a_process_that_has_started_tensorflow_in_its_own_way_trains_to_the_same_bits(tmp_path: Path) -> None:
    """On encoded images: this process, as workers do, optimizes no function of a pipeline (`pipelines_as_traced`)."""
    draws = np.random.default_rng(0)
    for k in range(60):
        (tmp_path / "images" / "ab"[k % 2]).mkdir(parents=True, exist_ok=True)
        pixels = draws.integers(0, 256, (20, 24, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / "ab"[k % 2] / f"{k}.{('png', 'jpg')[k % 3 == 0]}")
    data = (
        f"data: {{name: image_folder, path: {tmp_path}/images, image_size: 16, augment: [random_resized_crop, flip]}}"
    )
    lines = ["steps: 6", *(data if line.startswith("data:") else line for line in CONFIG.splitlines()[1:])]
    (tmp_path / "images.yaml").write_text("\n".join(lines) + "\n")
    tl.train(tl.load_config(tmp_path / "images.yaml", "name=here"), runs=tmp_path / "runs", here=True)
    argv = [sys.executable, "-P", "-c", IN_ITS_OWN_WAY, str(tmp_path / "images.yaml"), str(tmp_path / "runs")]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    assert bits(RunDir(tmp_path / "runs" / "started")) == bits(RunDir(tmp_path / "runs" / "here"))


def test_the_process_is_as_it_was_and_trains_again(config: Path, run: tl.Run) -> None:
    def state() -> tuple[Any, ...]:
        mask = os.umask(0)
        os.umask(mask)
        numbers = (random.getstate(), tuple(np.random.get_state()[1]))
        return keras.config.dtype_policy().name, mask, numbers, signal.getsignal(signal.SIGTERM)

    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        before = state()
        again = tl.train(tl.load_config(config, "name=again"), runs=config.parent / "runs", here=True)
        assert state() == before
    finally:
        keras.config.set_dtype_policy("float32")
    assert bits(RunDir(again.path)) == bits(RunDir(run.path))
    assert tl.train(tl.load_config(config), runs=config.parent / "runs", here=True).path == run.path


def test_predictions_and_the_keras_model_agree(run: tl.Run) -> None:
    model = run.keras_model()
    assert model.input_shape == (None, 16, 16, 3) and model.inputs[0].dtype == "uint8"
    found = model(images_of_the_test_split(run)).numpy()
    np.testing.assert_allclose(found, run.predictions("test").probabilities, atol=1e-5)


def images_of_the_test_split(run: tl.Run) -> np.ndarray:
    source = tl.open_dataset(run.config)["test"]
    images, _ = source.read(tf.range(source.num_examples, dtype=tf.int64))
    return resize(images, 16).numpy()


def test_what_this_process_cannot_do_is_refused(config: Path) -> None:
    for override, what in (
        ("strategy=mirrored", "mirrored"),
        ("runtime.deterministic=true", "deterministic"),
    ):
        with pytest.raises(tl.Refusal, match=rf"{what}.* Fix: "):
            tl.train(tl.load_config(config, override), runs=config.parent / "runs", here=True)
    with pytest.raises(tl.Refusal, match=r"Fix: "):
        tl.Run(config.parent / "runs" / "nowhere")
    with pytest.raises(tl.Refusal, match=r"bakbone.* Fix: "):
        tl.load_config(config, "model.bakbone=tiny")


def assembled(backbone: Backbone, pooling: str, *, hidden: int | None = None) -> tuple[Any, Any]:
    """A classifier on random weights with its head drawn too, and the model that is assembled of it."""
    settings: dict[str, Any] = {"pooling": pooling, "normalize": pooling == "both", "hidden": hidden}
    model = ModelConfig(backbone=backbone.name, weights="random", train_from="all", **settings)
    net = classifier.Classifier(backbone, model, image_size=32, num_classes=3, seed=0)
    for path, variable in net.trainable.items():
        if path.startswith("head/"):
            variable.assign(np.random.default_rng(len(path)).normal(size=variable.shape))
    cfg = Config(
        name="x",
        steps=1,
        data=DataConfig(name="digits", image_size=32),
        model=model,
        optimizer=OptimizerConfig(learning_rate=0.1),
    )
    head = {path: v.numpy() for path, v in net.trainable.items() if path.startswith("head/")}
    return net, assemble(backbone, cfg, head, net.network)


IMAGES = np.random.default_rng(0).integers(0, 256, (64, 32, 32, 3), dtype=np.uint8)


# As VGG16 and as DenseNet wants its images, with batch norm, which is a layer of our own while a run trains.
BGR, SCALED = (replace(NORMALISED, preprocessing=way) for way in ("caffe", "torch"))


@pytest.mark.parametrize(
    ("backbone", "pooling"),
    [
        *[(TINY, pooling) for pooling in ("average", "maximum", "both", "flatten")],
        *[(backbone, "both") for backbone in (BGR, SCALED, registry.backbone("efficientnetb0"))],
        *[(SMALL_SIGLIP, pooling) for pooling in ("attention", "both")],
        (SMALL_CLIP, "token"),
    ],
)
def test_the_assembled_model_is_the_classifier(backbone: Backbone, pooling: str) -> None:
    """Every pooling, every way of preprocessing, a network with branches, and one with a head that pools."""
    net, model = assembled(backbone, pooling)
    expected = tf.nn.softmax(net(tf.constant(IMAGES[:4]))).numpy()
    np.testing.assert_allclose(model(IMAGES[:4]).numpy(), expected, atol=2e-6)


@pytest.mark.parametrize(("pooling", "hidden"), [("average", None), ("both", None), ("both", 8)])
def test_it_rounds_as_the_run_did_in_mixed_precision(pooling: str, hidden: int | None) -> None:
    """A value that is rounded elsewhere to bfloat16 would show in the third digit."""
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        net, model = assembled(TINY, pooling, hidden=hidden)
    finally:
        keras.config.set_dtype_policy("float32")
    expected = tf.nn.softmax(net(tf.constant(IMAGES))).numpy()
    np.testing.assert_allclose(model(IMAGES).numpy(), expected, atol=1e-6)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of Keras, as it saves
def test_what_is_saved_needs_nothing_of_ours(run: tl.Run, tmp_path: Path) -> None:
    """The model of a run, and those of other ways of preprocessing, with batch norm."""
    models = {"run": run.keras_model()} | {
        backbone.preprocessing: assembled(backbone, "both")[1] for backbone in (BGR, SCALED)
    }
    expected = {}
    for name, model in models.items():
        directory = tmp_path / name
        directory.mkdir()
        model.save(directory / "model.keras")
        images = images_of_the_test_split(run) if name == "run" else IMAGES[:4]
        np.save(directory / "images.npy", images)
        expected[directory] = model(images).numpy()
    read_back(*expected)
    for directory, values in expected.items():
        np.testing.assert_allclose(np.load(directory / "said.npy"), values, atol=1e-6)


def read_back(*directories: Path) -> None:
    """Write to `said.npy` what `model.keras` says of `images.npy`, in a process that cannot import tl_dist."""
    code = (
        "import sys; sys.modules['tl_dist'] = None\n"
        "import numpy, keras\n"
        "for place in sys.argv[1:]:\n"
        "    model = keras.models.load_model(f'{place}/model.keras')\n"
        "    said = model(numpy.load(f'{place}/images.npy'))\n"
        "    numpy.save(f'{place}/said.npy', keras.ops.convert_to_numpy(said))"
    )
    subprocess.run([sys.executable, "-P", "-c", code, *directories], check=True, timeout=120)


def test_history_holds_every_kind_of_record(run: tl.Run) -> None:
    assert [record["step"] for record in run.history("evaluation")][-1] == 30
    assert all(json.dumps(record) for record in run.history("note"))
