"""Weights in files of others: the network is found in them wherever it lies, bit for bit, and nowhere twice."""

import hashlib
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from safetensors.numpy import load_file

from tl_dist.config import registry
from tl_dist.files import limits
from tl_dist.models import weights
from tl_dist.models.weights import WeightsFile, sources
from tl_dist.models.weights.keras_files import counted_from_zero
from tl_dist.refusal import ExitCode, Refusal

# Keras's own way to write a variable to a file.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept:DeprecationWarning")

KINDS = ("old.h5", "new.keras", "new.weights.h5", "checkpoint.index")


def build(name: str, side: int = 32) -> Any:
    """Build the backbone as tl_dist does, with no variable at its initial values."""
    network = registry.backbone(name).build((side, side, 3))
    rng = np.random.default_rng(0)
    for v in network.weights:
        v.assign(rng.uniform(0.5, 1.5, v.shape))
    return network


def save(model: Any, path: Path) -> Path:
    """Save a model with Keras or TensorFlow themselves."""
    if path.suffix == ".index":
        tf.train.Checkpoint(model=model).write(str(path.with_suffix("")))
    elif path.name.endswith(".weights.h5"):
        model.save_weights(path)
    else:
        model.save(path)
    return path


def convert(path: Path, backbone: str = "tiny") -> WeightsFile:
    file = weights.convert(str(path), backbone, cache=path.parent / "cache")
    assert file is not None
    return file


def assert_holds(file: WeightsFile, network: Any) -> None:
    arrays = load_file(file.path)
    assert set(arrays) == {v.path for v in network.weights}
    for v in network.weights:
        np.testing.assert_array_equal(arrays[v.path], v.numpy())


def layer_in_sequential(base: Any) -> Any:
    layers = keras.layers
    head = [
        layers.GlobalAveragePooling2D(),
        layers.BatchNormalization(name="bn"),
        layers.Dense(3, name="top"),
    ]
    return keras.Sequential([keras.Input((32, 32, 3)), layers.RandomFlip(), base, *head])


def layer_behind_another(base: Any) -> Any:
    x = inputs = keras.Input((32, 32, 3))
    x = base(keras.layers.Conv2D(3, 1, name="first")(x))
    return keras.Model(inputs, keras.layers.Dense(3, name="top")(keras.layers.Flatten()(x)))


def spread_among_layers(base: Any) -> Any:
    x = keras.layers.GlobalAveragePooling2D()(base.output)
    return keras.Model(base.input, keras.layers.Dense(3, name="top")(x))


def within_two(base: Any) -> Any:
    inner = keras.Sequential([keras.Input((32, 32, 3)), base, keras.layers.Flatten()])
    return keras.Sequential([keras.Input((32, 32, 3)), inner, keras.layers.Dense(3, name="top")])


# ------------------------------------------------------------------------------------- wherever it lies


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("around", [layer_in_sequential, layer_behind_another, spread_among_layers, within_two])
def test_the_backbone_of_a_whole_model_is_found(around: Any, kind: str, tmp_path: Path) -> None:
    base = build("tiny")
    model = around(base)
    model.compile("adam", "mse")
    model.optimizer.build(model.trainable_variables)  # the state of training is in the file as well
    path = save(model, tmp_path / kind)
    file = convert(path)
    assert_holds(file, base)
    assert "top" in " ".join(file.others) or "dense" in file.others
    assert not [layer for layer in file.others if "conv1" in layer or "adam" in layer]


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("mobilenetv2", "checkpoint.index"),
        ("xception", "old.h5"),
        pytest.param("mobilenetv2", "old.h5", marks=pytest.mark.full),
        pytest.param("xception", "new.keras", marks=pytest.mark.full),
    ],
)
def test_what_was_frozen_and_how_layers_are_numbered_makes_no_difference(name: str, kind: str, tmp_path: Path) -> None:
    """Old files list trained weights first; xception has layers that Keras numbers over the whole process."""
    keras.layers.Conv2D(1, 1)
    record = registry.backbone(name)
    constructor = {"mobilenetv2": keras.applications.MobileNetV2, "xception": keras.applications.Xception}[name]
    theirs = constructor(include_top=False, weights=None, input_shape=(record.min_size,) * 2 + (3,))
    ours = build(name, record.min_size)
    theirs.set_weights(ours.get_weights())
    for layer in theirs.layers[: len(theirs.layers) // 2]:
        layer.trainable = False
    head = [keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(2)]
    model = keras.Sequential([keras.Input(theirs.input_shape[1:]), theirs, *head])
    assert_holds(convert(save(model, tmp_path / kind), name), ours)


@pytest.mark.parametrize("kind", KINDS)
def test_features_are_those_of_the_keras_model(kind: str, tmp_path: Path) -> None:
    base = build("tiny")
    file = convert(save(layer_in_sequential(base), tmp_path / kind))
    network = registry.backbone("tiny").build((32, 32, 3))
    weights.load(network, file)
    images = np.random.default_rng(1).uniform(-1, 1, (4, 32, 32, 3)).astype(np.float32)
    np.testing.assert_array_equal(network(images), base(images))


def test_a_checkpoint_of_keras_2_is_read(tmp_path: Path) -> None:
    """Its keys are `layer_with_weights-N/VARIABLE`; its names are the names of layers."""
    base = build("tiny")
    root = tf.Module()
    for number, layer in enumerate(layer for layer in base.layers if layer.weights):
        child = tf.Module()
        child.kernel, child.bias = (tf.Variable(v.numpy(), name=v.path) for v in layer.weights)
        setattr(root, f"layer_with_weights-{number}", child)
    root.head = tf.Variable(np.zeros((3, 2)), name="dense/kernel")
    tf.train.Checkpoint(root).write(str(tmp_path / "two"))
    keys = tf.train.load_checkpoint(str(tmp_path / "two")).get_variable_to_shape_map()
    assert "layer_with_weights-0/kernel/.ATTRIBUTES/VARIABLE_VALUE" in keys
    file = convert(tmp_path / "two.index")
    assert_holds(file, base)
    assert file.others == ("dense",)


def test_layers_are_counted_from_zero_and_called_as_in_keras_3() -> None:
    names = {
        "conv2d_7/kernel": "conv2d_0/kernel",
        "conv2d_9/kernel": "conv2d_1/kernel",
        "conv2d_9/bias:0": "conv2d_1/bias",
        "block1_conv1/kernel": "block1_conv1_0/kernel",
        "top/dense_3/kernel": "top/dense_0/kernel",
        "expand/depthwise_kernel:0": "expand_0/kernel",
        "sepconv/depthwise_kernel": "sepconv_0/depthwise_kernel",
        "sepconv/pointwise_kernel": "sepconv_0/pointwise_kernel",
        "step": "step",
    }
    assert counted_from_zero(names) == names


def test_the_user_is_told_what_was_left_out(tmp_path: Path) -> None:
    file = convert(save(layer_in_sequential(build("tiny")), tmp_path / "x.keras"))
    assert file.others == ("batch_normalization", "dense")
    again = weights.resolve(str(tmp_path / "x.keras"), "tiny", cache=tmp_path / "cache")
    assert again == file


# ------------------------------------------------------------------------------------------ what is refused


def twice(base: Any) -> Any:
    inputs = keras.Input((32, 32, 3))
    other = build("tiny")
    other.name = "other"
    return keras.Model(inputs, keras.layers.Add()([base(inputs), other(inputs)]))


def in_part(base: Any) -> Any:
    return keras.Model(base.input, base.get_layer("block2_conv1").output)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("around", "message"),
    [(twice, "fits in 2 places|holds '.*' 2 times"), (in_part, "do not all fit|has 4 by")],
)
def test_a_network_that_is_there_twice_or_in_part_is_refused(
    around: Any, message: str, kind: str, tmp_path: Path
) -> None:
    path = save(around(build("tiny")), tmp_path / kind)
    with pytest.raises(Refusal, match=f"does not hold the weights of tiny: .*({message})") as refusal:
        convert(path)
    assert refusal.value.code == ExitCode.UNSAFE


@pytest.mark.parametrize("kind", KINDS)
def test_of_two_layers_of_one_kind_and_shape_none_is_guessed(kind: str, tmp_path: Path) -> None:
    def build_one(shape: tuple[int, int, int]) -> Any:
        inputs = keras.Input(shape)
        return keras.Model(inputs, keras.layers.Conv2D(3, 1)(inputs))

    backbone = replace(registry.backbone("tiny"), build=build_one)
    one = build_one((8, 8, 3))
    two = keras.Model(one.input, keras.layers.Conv2D(3, 1)(one.output))
    for name, model in (("one", one), ("two", two)):
        (tmp_path / name).mkdir()
        files = sources.files_of(save(model, tmp_path / name / kind))
        scratch = tmp_path / f"scratch-{name}"
        scratch.mkdir()
        if model is one:
            arrays, *_ = sources.read(files, backbone, lambda digest: None, scratch)
            np.testing.assert_array_equal(next(iter(arrays.values())), one.weights[0].numpy())
        else:
            with pytest.raises(Refusal, match=r"more than the network, of the same shape|fits in 2 places"):
                sources.read(files, backbone, lambda digest: None, scratch)


def rezipped(path: Path, compression: int = zipfile.ZIP_STORED, **members: bytes) -> Path:
    """Write the archive again, with members added or replaced."""
    with zipfile.ZipFile(path) as archive:
        held = {name: archive.read(name) for name in archive.namelist()} | members
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in held.items():
            archive.writestr(name, data)
    return path


@pytest.fixture(scope="module")
def keras_file(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("keras") / "sound.keras"
    return save(layer_in_sequential(build("tiny")), path).read_bytes()


def test_a_keras_file_that_is_not_safe_to_unpack_is_refused(
    keras_file: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.keras"

    def refused(message: str, code: ExitCode = ExitCode.UNSAFE) -> None:
        with pytest.raises(Refusal, match=message) as refusal:
            convert(path)
        assert refusal.value.code == code
        assert not list((tmp_path / "cache" / "weights").glob(".incoming-*"))

    path.write_bytes(keras_file)
    rezipped(path, **{"../../escaped": b"x"})
    refused("leaves its directory")
    assert not list(tmp_path.rglob("escaped"))
    path.write_bytes(keras_file)
    rezipped(path, zipfile.ZIP_DEFLATED, **{"model.weights.h5": bytes(50 << 20)})
    assert path.stat().st_size < 1 << 20
    refused("neither compressed nor encrypted")
    for data in (keras_file[: len(keras_file) // 2], b"", b"PK\x05\x06"):
        path.write_bytes(data)
        refused("is refused: ")
    place = keras_file.index(b"\x89HDF") + 5000
    path.write_bytes(keras_file[:place] + bytes([keras_file[place] ^ 1]) + keras_file[place + 1 :])
    refused("Bad CRC")
    path.write_bytes(keras_file)
    monkeypatch.setattr(limits, "WEIGHTS", len(keras_file) - 1)
    refused("larger than")


def test_no_configuration_of_a_keras_file_is_looked_at(keras_file: bytes, tmp_path: Path) -> None:
    path = tmp_path / "x.keras"
    path.write_bytes(keras_file)
    assert_holds(convert(rezipped(path, **{"config.json": b"{", "metadata.json": b"\xff"})), build("tiny"))


def test_a_checkpoint_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    path = save(build("tiny"), tmp_path / "checkpoint.index")
    data = tmp_path / "checkpoint.data-00000-of-00001"
    sound = {file: file.read_bytes() for file in (path, data)}
    damages = {
        path: (b"", b"x" * 500, sound[path][:-60]),
        data: (b"", sound[data][:500], bytes(len(sound[data]))),
    }
    for file, contents in damages.items():
        for content in contents:
            file.write_bytes(content)
            with pytest.raises(Refusal, match=r"cannot be read|does not hold") as refusal:
                convert(path)
            assert refusal.value.code in (ExitCode.DATA, ExitCode.UNSAFE)
        file.write_bytes(sound[file])
    data.unlink()
    with pytest.raises(Refusal, match="cannot be read"):
        convert(path)
    data.write_bytes(sound[data])
    assert_holds(convert(path), build("tiny"))


def test_the_digest_of_a_checkpoint_is_of_all_its_files(tmp_path: Path) -> None:
    path = save(build("tiny"), tmp_path / "checkpoint.index")
    data = tmp_path / "checkpoint.data-00000-of-00001"
    digest = hashlib.sha256(path.read_bytes() + data.read_bytes()).hexdigest()
    cache = tmp_path / "cache"
    assert weights.convert(str(path), "tiny", cache=cache, sha256=digest) is not None
    with pytest.raises(Refusal, match=r"model\.weights_sha256"):
        weights.convert(str(path), "tiny", cache=cache, sha256="0" * 64)
    data.write_bytes(data.read_bytes() + b" ")  # other data is another source
    with pytest.raises(Refusal, match=r"model\.weights_sha256"):
        weights.convert(str(path), "tiny", cache=cache, sha256=digest)
