"""An exported model gives what its run gives, in its own runtime, from image files, and nothing half-made is left."""

import importlib.util
import io
import json
import subprocess
import sys
import zipfile
from pathlib import Path
from types import ModuleType
from typing import Literal

import numpy as np
import pytest
import tensorflow as tf
import yaml
from safetensors.numpy import save_file

import tl_dist as tl
from tests.doubles import build, digit_files
from tests.end_to_end.harness import TL_DIST
from tests.image_kinds import UNUSUAL
from tl_dist.config import registry
from tl_dist.config.data import Square
from tl_dist.datasets import preprocess
from tl_dist.refusal import ExitCode, Refusal
from tl_dist.runs import checkpoint
from tl_dist.runs.directory import RunDir
from tl_dist.tools.export import model_card
from tl_dist.tools.serve import served

pytestmark = [  # of Keras, as it saves, and of tf2onnx
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:In the future `np.object`:FutureWarning"),
]

CONFIG = """\
steps: 150
global_batch: 32
precision: {precision}
data: {{name: image_folder, path: '{path}', image_size: 16, test_fraction: 0.2, {resize}}}
model: {{backbone: tiny, weights: random, train_from: all, pooling: both, normalize: true, hidden: 16}}
optimizer: {{name: adam, learning_rate: 0.01, ema: 0.9}}
checkpoint: {{every_steps: 50, keep: 3}}
report: {{tensorboard: false}}
runtime: {{threads: 1}}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """900 digits of 24 x 20 pixels: PNG, of which every fifth is a JPEG."""
    root = tmp_path_factory.mktemp("export")
    digit_files(root / "images", 900, jpeg_every=5)
    return root


def trained(
    folder: Path, name: str, *overrides: str, precision: str = "float32", resize: str = "resize: stretch"
) -> tl.Run:
    config = folder / f"{name}.yaml"
    config.write_text(CONFIG.format(path=folder / "images", precision=precision, resize=resize))
    made = tl.train(tl.load_config(config, *overrides), runs=folder / "runs", here=True)
    assert made.scores["test"]["accuracy"] > 0.8  # else any export would agree
    return made


@pytest.fixture(scope="module")
def run(folder: Path) -> tl.Run:
    return trained(folder, "cells")


def shipped(directory: Path) -> ModuleType:
    """preprocess.py of an export, imported from where it was put."""
    spec = importlib.util.spec_from_file_location("shipped", directory / "preprocess.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def from_files(run: tl.Run, folder: Path, directory: Path) -> tuple[np.ndarray, np.ndarray]:
    """The test images made by the shipped function, and what the run said of them."""
    said = run.predictions("test")
    module = shipped(directory)
    assert module.class_names == list(said.class_names)
    return np.stack([module.load(folder / "images" / name) for name in said.ids]), said.probabilities


@pytest.fixture(scope="module")
def saved_model(run: tl.Run) -> Path:
    run.export("savedmodel")
    return run.path / "exports" / "savedmodel"


def test_a_saved_model_takes_images_and_files(run: tl.Run, folder: Path, saved_model: Path) -> None:
    report = json.loads((saved_model / "export.json").read_text())
    assert (report["num_agreeing"], report["num_examples"]) == (180, 180)
    assert report["largest_difference"] < 1e-5
    assert report["encoded"]["num_examples"] == 100 and report["encoded"]["largest_difference"] < 1e-5
    images, expected = from_files(run, folder, saved_model)
    loaded = tf.saved_model.load(str(saved_model / "savedmodel"))
    signatures = loaded.signatures
    found = signatures["serving_default"](images=tf.constant(images))
    # Pillow decodes some pixels of a JPEG otherwise than TensorFlow, and rounding decides others: by one level.
    np.testing.assert_allclose(found["probabilities"].numpy(), expected, atol=0.02)
    names = run.predictions("test").class_names
    assert [one.decode() for one in found["class"].numpy()] == list(names[expected.argmax(axis=1)])
    files = [(folder / "images" / name).read_bytes() for name in run.predictions("test").ids]
    found = signatures["encoded"](encoded=tf.constant(files))["probabilities"].numpy()
    np.testing.assert_allclose(found, expected, atol=1e-5)
    unusual = [make() for name, make in UNUSUAL.items() if name.startswith(("jpeg", "png"))]
    module = shipped(saved_model)
    images = np.stack([module.load(io.BytesIO(content)) for content in unusual])
    expected = signatures["serving_default"](images=tf.constant(images))["probabilities"].numpy()
    found = signatures["encoded"](encoded=tf.constant(unusual))["probabilities"].numpy()
    np.testing.assert_allclose(found, expected, atol=0.02)


def test_images_are_to_the_end_what_they_were_to_the_authors_of_the_weights(folder: Path, tmp_path: Path) -> None:
    """By the description beside the file alone: pinned by the run, to its predictions and its export."""
    tiny = registry.backbone("tiny").build((16, 16, 3))
    save_file({v.path: v.numpy() for v in tiny.weights}, tmp_path / "tiny.safetensors")
    described = {"mean": [0.4] * 3, "std": [0.3] * 3, "interpolation": "bicubic", "crop_pct": 0.9}
    (tmp_path / "config.json").write_text(json.dumps(described))
    plainly = CONFIG.format(path=folder / "images", precision="float32", resize="").replace("weights: random, ", "")
    (folder / "described.yaml").write_text(plainly)
    cfg = tl.load_config(folder / "described.yaml", f"model.weights={tmp_path / 'tiny.safetensors'}", "steps=20")
    run = tl.train(cfg, runs=folder / "runs", here=True)
    identity = json.loads((run.path / "run.json").read_text())
    images = {"interpolation": "bicubic", "resize": "crop", "crop_fraction": 0.9}
    assert identity["weights_images"] == {"mean": [0.4] * 3, "std": [0.3] * 3, **images}
    assert images.items() <= identity["trajectory"]["data"].items()
    assert identity["trajectory"]["model"]["preprocessing"] == {"mean": [0.4] * 3, "std": [0.3] * 3}
    report = run.export("savedmodel", tmp_path / "made")
    assert report["num_agreeing"] == 180 and report["encoded"]["largest_difference"] < 1e-5
    pixels, expected = from_files(run, folder, tmp_path / "made")
    loaded = tf.saved_model.load(str(tmp_path / "made" / "savedmodel"))
    answers = loaded.signatures["serving_default"](images=tf.constant(pixels))["probabilities"].numpy()
    np.testing.assert_allclose(answers, expected, atol=0.02)
    of_served = served.of_export(tmp_path / "made", cores=1).decode
    files = [folder / "images" / name for name in run.predictions("test").ids[:20]]
    assert np.abs(np.stack([of_served(file.read_bytes()) for file in files]).astype(int) - pixels[:20]).max() <= 1


def test_keras_and_tensorflows_own_command_run_it_where_there_is_no_tl_dist(
    run: tl.Run, folder: Path, saved_model: Path, tmp_path: Path
) -> None:
    run.export("keras", tmp_path / "made", check="none")
    images, expected = from_files(run, folder, tmp_path / "made")
    np.save(tmp_path / "images.npy", images)
    code = (
        "import sys; sys.modules['tl_dist'] = None\n"
        "import keras, numpy as np; model = keras.models.load_model('made/model.keras')\n"
        "np.save('found.npy', model.predict(np.load('images.npy'), verbose=0))\n"
        "from tensorflow.python.tools.saved_model_cli import main; main()"
    )
    options = ("--tag_set", "serve", "--signature_def", "serving_default", "--inputs", "images=images.npy")
    cli = ["run", "--dir", str(saved_model / "savedmodel"), *options, "--outdir", "answers"]
    command = [sys.executable, "-P", "-c", code, *cli]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    np.testing.assert_allclose(np.load(tmp_path / "found.npy"), expected, atol=0.02)
    found = np.load(tmp_path / "answers" / "probabilities.npy")
    np.testing.assert_allclose(found, expected, atol=0.02)
    classes = [one.decode() for one in np.load(tmp_path / "answers" / "class.npy", allow_pickle=True)]
    assert classes == list(run.predictions("test").class_names[found.argmax(axis=1)])


def test_onnx_by_the_command_line(run: tl.Run, folder: Path, tmp_path: Path) -> None:
    import onnxruntime

    command = [TL_DIST, "export", str(run.path), "--to", "onnx"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert "180 of 180 images of 'test'" in done.stdout and "p99 ms" in done.stdout
    directory = run.path / "exports" / "onnx"
    session = onnxruntime.InferenceSession(str(directory / "model.onnx"), providers=["CPUExecutionProvider"])
    assert json.loads(session.get_modelmeta().custom_metadata_map["class_names"]) == list(
        run.predictions("test").class_names
    )
    images, expected = from_files(run, folder, directory)
    np.testing.assert_allclose(session.run(None, {"images": images})[0], expected, atol=0.02)
    card = (directory / "MODEL_CARD.md").read_text()
    _, front, body = card.split("---\n", 2)
    (result,) = [r for r in yaml.safe_load(front)["model-index"][0]["results"] if r["dataset"]["split"] == "test"]
    assert result["metrics"][0]["value"] == pytest.approx(run.scores["test"]["accuracy"], abs=1e-6)
    low, high = run.scores["test"]["interval"]
    assert f"95 % interval {low:.4f} to {high:.4f}" in body and "`test`: 180 images" in body


@pytest.mark.parametrize(
    "numbers", [pytest.param(n, marks=pytest.mark.full) for n in ("float32", "float16")] + ["int8"]
)
def test_litert(run: tl.Run, folder: Path, tmp_path: Path, numbers: str) -> None:
    from ai_edge_litert.interpreter import Interpreter

    report = run.export("litert", tmp_path / "made", numbers=numbers)
    assert report["num_agreeing"] >= (178 if numbers == "int8" else 180)
    file = tmp_path / "made" / "model.tflite"
    with zipfile.ZipFile(file) as labels:
        assert labels.read("labels.txt").decode().split("\n")[:-1] == list(run.predictions("test").class_names)
    images, expected = from_files(run, folder, tmp_path / "made")
    interpreter = Interpreter(str(file))
    interpreter.allocate_tensors()
    found = []
    for image in images[:60]:
        interpreter.set_tensor(interpreter.get_input_details()[0]["index"], image[None])
        interpreter.invoke()
        found.append(interpreter.get_tensor(interpreter.get_output_details()[0]["index"])[0])
    np.testing.assert_allclose(found, expected[:60], atol=0.15 if numbers == "int8" else 0.02)


@pytest.mark.full
def test_eight_bits_keep_what_a_logistic_regression_tells_apart(folder: Path, tmp_path: Path) -> None:
    """Features of unlike scale, standardized before the fit: their weights are as unlike."""
    from tl_dist.trainer.load_model import restored

    config = folder / "logistic.yaml"
    text = CONFIG.format(path=folder / "images", precision="float32", resize="resize: stretch")
    kept = [line for line in text.splitlines() if not line.startswith(("steps", "model", "optimizer"))]
    weights = folder / "tiny.safetensors"
    save_file({v.path: v.numpy() for v in build(image_size=16).network.weights}, weights)
    model = f"model: {{backbone: tiny, weights: '{weights}', pooling: both, layers: [block1, block2, block3]}}"
    config.write_text("\n".join([*kept, model, "classifier: {name: logistic}"]))
    run = tl.train(tl.load_config(config), runs=folder / "runs", here=True)
    assert run.scores["test"]["accuracy"] > 0.8
    images = np.random.default_rng(0).integers(0, 256, (32, 16, 16, 3)).astype(np.uint8)
    dense, written_out = (restored(RunDir.open(run.path), dense_head=flag).model for flag in (True, False))
    np.testing.assert_allclose(dense.predict(images), written_out.predict(images), atol=1e-5)
    report = run.export("litert", tmp_path / "made", numbers="int8", min_agreement=0)
    # With the last layer in 8 bits as well: 176 of 180, and 0.42.
    assert report["num_agreeing"] >= 178 and report["largest_difference"] < 0.1


@pytest.mark.full
def test_a_cropped_network_in_bfloat16(run: tl.Run, folder: Path, tmp_path: Path) -> None:
    overrides = (f"source.run={run.path}", "source.head=true", "steps=20", "optimizer.learning_rate=0.001")
    run = trained(
        folder, "cropped", *overrides, precision="mixed_bfloat16", resize="resize: crop, interpolation: bicubic"
    )
    report = run.export("savedmodel", tmp_path / "tf")
    assert report["num_agreeing"] == 180 and report["largest_difference"] < 1e-5
    assert report["encoded"]["largest_difference"] < 1e-5
    report = run.export("onnx", tmp_path / "onnx")  # computes in float32
    assert report["num_agreeing"] >= 178 and 0 < report["largest_difference"] < 0.1


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("crop", [None, 0.875, 1.0])
def test_the_shipped_resizing_is_that_of_the_pipeline(
    crop: float | None, interpolation: Literal["bilinear", "bicubic"]
) -> None:
    from tl_dist.data.resize import resize

    numbers, apart, num = np.random.default_rng(0), 0, 0
    for _ in range(20):
        height, width = numbers.integers(5, 200, 2)
        image, size = (
            numbers.integers(0, 256, (height, width, 3)).astype(np.uint8),
            int(numbers.integers(8, 100)),
        )
        expected = resize(tf.constant(image), size, Square(crop, interpolation)).numpy().astype(int)
        difference = np.abs(preprocess.resized(image, size, crop, interpolation) - expected)
        assert difference.max() <= 1
        apart, num = apart + int((difference > 0).sum()), num + difference.size
    assert apart / num < 0.002


def test_an_earlier_checkpoint_is_read_once_and_compared_with_itself(
    run: tl.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    find = checkpoint.find
    monkeypatch.setattr(checkpoint, "find", lambda run, at="", **more: read.append(at) or find(run, at, **more))
    report = run.export("keras", tmp_path / "made", at="50")
    assert read == ["50"]
    assert (report["step"], report["num_agreeing"]) == (50, 180)
    first, second = report["paired"]["accuracies"]
    assert first == second != run.scores["test"]["accuracy"]


def test_what_falls_short_is_not_written(run: tl.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tl_dist.models import export as exports

    ours = exports._keras
    monkeypatch.setattr(exports, "_keras", lambda *given: lambda images: np.roll(ours(*given)(images), 1, axis=1))
    with pytest.raises(Refusal, match=r"gives 0 of 180 images of 'test'") as refused:
        run.export("keras", tmp_path / "made")
    assert refused.value.code == ExitCode.DATA
    assert list(tmp_path.iterdir()) == []


def test_only_its_own_directory_is_replaced(run: tl.Run, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.tex").write_text("years of work")
    with pytest.raises(Refusal, match="not what this command made"):
        run.export("keras", mine, check="none")
    assert [path.name for path in tmp_path.rglob("*")] == ["mine", "thesis.tex"]
    for _ in range(2):
        run.export("keras", tmp_path / "made", check="none")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["made", "mine"]


def test_a_full_disk_leaves_nothing(run: tl.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*given: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(model_card, "text", full)
    with pytest.raises(Refusal, match="No space left on device") as refused:
        run.export("keras", tmp_path / "made", check="none")
    assert refused.value.code == ExitCode.STORAGE
    assert list(tmp_path.iterdir()) == []


def test_a_split_that_is_not_there_is_named(run: tl.Run, tmp_path: Path) -> None:
    with pytest.raises(Refusal, match="has no split 'holdout'"):
        run.export("keras", tmp_path / "made", check="holdout")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--to", "TFLite"], "no export is called 'TFLite'. Fix: use --to litert."),
        (["--to", "onnx", "--int8"], "an export to onnx has no weights in int8"),
        (["--to", "litert", "--int8", "--float16"], "exclude each other"),
    ],
)
def test_a_mistake_is_one_line(run: tl.Run, options: list[str], expected: str) -> None:
    command = [TL_DIST, "export", str(run.path), *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == ExitCode.USAGE
    (line,) = done.stderr.splitlines()
    assert expected in line and "Fix: " in line
