"""A function of the user that returns a network: how it is called, its blocks, and what is refused in one line."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import keras
import numpy as np
import pytest
from keras.src.applications.densenet import DenseNet

from tests import forks
from tl_dist.config import ModelConfig, extensions, registry
from tl_dist.config import file as config_file
from tl_dist.files import consent
from tl_dist.models import weights
from tl_dist.models.backbones import (
    application,
    described,
    functions,
    numbered_from_zero,
    preprocess,
    preprocessing_of,
    seam,
    seams,
)
from tl_dist.refusal import Refusal


@pytest.fixture(autouse=True)
def _children_are_forks() -> Iterator[None]:
    with forks.children():
        yield


GOOD = """\
import keras
from keras import layers

def build(input_shape, width=4):
    x = inputs = keras.Input(input_shape)
    for k in range(3):
        x = layers.Conv2D(width, 3, padding="same", name=f"block{k}_conv")(x)
        y = layers.Conv2D(width, 3, padding="same", name=f"block{k}_inner")(x)
        x = layers.Add(name=f"block{k}_add")([x, y])
    return keras.Model(inputs, x)
"""


def network(file: Path, text: str, function: str = "build", **arguments: object) -> str:
    file.write_text(text)
    consent.grant([file])
    return ModelConfig(backbone=f"{file}:{function}", arguments=arguments, preprocessing="tf").network(16)


def refused(file: Path, text: str, **arguments: object) -> str:
    with pytest.raises(Refusal) as error:
        described.describe(network(file, text, **arguments))
    line = str(error.value)
    assert "\n" not in line and " Fix: " in line and line.endswith(".")
    return line


def test_blocks_begin_where_one_tensor_passes_and_bear_the_names_of_their_layers(tmp_path: Path) -> None:
    facts = described.describe(network(tmp_path / "net.py", GOOD, width=6))
    assert facts["stages"] == {f"block{k}": f"block{k}_conv" for k in range(3)}
    built = functions.build(f"{tmp_path / 'net.py'}:build", {"width": 6}, (16, 16, 3))
    assert built.output.shape == (None, 16, 16, 6)


@pytest.mark.parametrize("name", ["VGG16", "ResNet50", "MobileNetV2", "ConvNeXtTiny", "DenseNet of ten blocks"])
def test_seams_are_the_positions_that_seam_accepts(name: str) -> None:
    shape = (32, 32, 3)
    if name.startswith("DenseNet"):
        built = DenseNet([3, 3, 3, 1], include_top=False, weights=None, input_shape=shape)
    else:
        built = application(name, shape)
    accepted = []
    for position in range(1, len(built.layers)):
        try:
            seam(built, position)
        except ValueError:
            continue
        accepted.append(position)
    assert seams(built) == accepted and len(accepted) > 10


def test_layers_that_keras_counts_are_blocks_of_their_own_with_what_follows() -> None:
    x = inputs = keras.Input((32, 32, 3))
    with numbered_from_zero():
        for _ in range(3):
            x = keras.layers.ZeroPadding2D()(x)
            x = keras.layers.Conv2D(4, 3)(x)
            x = keras.layers.ReLU()(keras.layers.BatchNormalization()(x))
    stages = described.blocks(keras.Model(inputs, x))
    assert stages == {
        "conv2d": "zero_padding2d", "conv2d_1": "zero_padding2d_1", "conv2d_2": "zero_padding2d_2"
    }  # fmt: skip


HEAD = "import keras\nfrom keras import layers\nimport numpy as np\n"
CONV = "x = i = keras.Input(input_shape)\n    x = layers.Conv2D(4, 3)(x)\n    "
BAD = {
    "a subclassed model": "class M(keras.Model):\n    pass\ndef build(input_shape):\n    return M()\n",
    "a int, not": "",
    "a train_step of its own": "class M(keras.Model):\n    def train_step(self, data):\n        return {}\n"
    f"def build(input_shape):\n    {CONV}return M(i, x)\n",
    "several or named inputs": "def build(input_shape):\n    i = {'a': keras.Input(input_shape, name='a')}\n"
    "    return keras.Model(i, layers.Conv2D(4, 3)(i['a']))\n",
    "make it return one of these": f"def build(input_shape):\n    {CONV}return keras.Model(i, [x, x + 1])\n",
    "'lambda' cannot be saved": f"def build(input_shape):\n    {CONV}x = layers.Lambda(lambda y: y)(x)\n"
    "    return keras.Model(i, x)\n",
    "hides batch norm": "class L(layers.Layer):\n    def __init__(self, **options):\n"
    "        super().__init__(**options)\n        self.norm = layers.BatchNormalization()\n"
    f"    def call(self, x):\n        return self.norm(x)\n"
    f"def build(input_shape):\n    {CONV}return keras.Model(i, L()(x))\n",
    "beside other images": "class L(layers.Layer):\n    def call(self, x):\n        return x - x[:1] - x[-1:]\n"
    f"def build(input_shape):\n    {CONV}return keras.Model(i, L()(x))\n",
    "the second time": "class L(layers.Layer):\n    def call(self, x):\n        return x + keras.random.normal((1,))\n"
    f"def build(input_shape):\n    {CONV}return keras.Model(i, L()(x))\n",
    "changes its variables": "class L(layers.Layer):\n    def build(self, shape):\n"
    "        self.n = self.add_weight(shape=(), trainable=False, initializer='zeros', name='n')\n"
    "    def call(self, x):\n        self.n.assign_add(1.0)\n        return x\n"
    f"def build(input_shape):\n    {CONV}return keras.Model(i, L()(x))\n",
    "image_size: 24": f"def build():\n    input_shape = (24, 24, 3)\n    {CONV}return keras.Model(i, x)\n",
    "raised ValueError in line 5 of net.py: bad": "def build(input_shape):\n    raise ValueError('bad')\n",
    "raised SyntaxError in line 4 of net.py": "def build(:\n",
    "install what it needs": "import no_such_package\n",
    "is not in net.py": "def other():\n    pass\n",
    "is no function": "build = 3\n",
}


@pytest.mark.parametrize("words", BAD)
def test_a_network_that_cannot_be_trained_here_is_refused_in_one_line(words: str, tmp_path: Path) -> None:
    text = BAD[words] or "def build(input_shape):\n    return 3\n"
    assert words.removesuffix(", not") in refused(tmp_path / "net.py", HEAD + text)


def test_a_wrong_argument_is_refused_with_the_name_of_the_key(tmp_path: Path) -> None:
    line = refused(tmp_path / "net.py", GOOD, depth=3)
    assert "unexpected keyword argument 'depth'" in line and "'arguments' below 'model:'" in line


def test_the_child_refuses_with_the_same_line(tmp_path: Path) -> None:
    with pytest.raises(Refusal, match=re.escape("raised ValueError in line 5 of net.py: bad")):
        registry.backbone(network(tmp_path / "net.py", HEAD + BAD["raised ValueError in line 5 of net.py: bad"]))


def test_weights_of_a_function_are_its_own_and_never_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another digest where they differ; a function that draws them is refused."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with pytest.raises(Refusal, match="at random: two calls differ in 6, first 'block0_conv/kernel'"):
        weights.convert("function", network(tmp_path / "drawn.py", GOOD))
    fixed = GOOD.replace("    return keras.Model(inputs, x)\n", "    net = keras.Model(inputs, x)\n") + (
        "    net.set_weights([0 * w + value for w in net.get_weights()])\n    return net\n"
    )
    fixed = fixed.replace("width=4", "width=4, value=2.0")
    name = network(tmp_path / "fixed.py", fixed, value=3.0)
    file = weights.convert("function", name)
    assert file is not None
    built = registry.backbone(name).build((16, 16, 3))
    built.set_weights([0 * w for w in built.get_weights()])
    weights.load(built, file)
    assert {float(np.ptp(w)) + float(w.mean()) for w in built.get_weights()} == {3.0}
    assert weights.convert("function", network(tmp_path / "fixed.py", fixed)) != file


def test_the_digest_is_of_the_code_and_the_place_is_not_part_of_a_network(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    here, there = (network(folder / "net.py", GOOD) for folder in (tmp_path, tmp_path / "elsewhere"))
    assert here != there and registry.without_folder(here) == registry.without_folder(there)
    assert registry.code_of_network(here) == registry.code_of_network(there)
    before = registry.code_of_network(here)
    assert list(registry.backbone(here).stages) == ["block0", "block1", "block2"]
    network(tmp_path / "net.py", GOOD.replace("block{k}", "part{k}"))
    assert registry.code_of_network(here) != before
    assert list(registry.backbone(here).stages) == ["part0", "part1", "part2"]


def test_a_scaling_is_that_of_torchvision() -> None:
    import torch
    from torchvision.transforms.v2.functional import normalize

    written = {"mean": [0.1, 0.5, 0.4], "std": [0.3, 0.2, 0.6]}
    images = np.random.default_rng(0).integers(0, 256, (2, 5, 5, 3)).astype(np.uint8)
    theirs = normalize(torch.tensor(images).permute(0, 3, 1, 2) / 255, **written)
    ours = np.asarray(preprocess(preprocessing_of(written), images))
    np.testing.assert_allclose(ours, theirs.permute(0, 2, 3, 1).numpy(), atol=1e-6)


CONFIG = """\
steps: 1
data: {name: digits, image_size: 16}
model: {backbone: net.py:build, weights: random, train_from: all, preprocessing: tf}
optimizer: {learning_rate: 0.1}
"""


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("preprocessing: tf", "arguments: {}"), "what images the network of net.py:build takes is not known"),
        (("net.py:build", "no.py:build"), "there is no file"),
        (("net.py:build", "vgg16, arguments: {a: 1}"), "arguments are for a function"),
        (("net.py:build", "tiny"), None),
        (("weights: random", "weights: imagenet"), "write 'weights: function'"),
        (("net.py:build, weights: random", "tiny, weights: function"), "tiny is no function"),
        (
            ("preprocessing: tf", "preprocessing: {mean: [0, 0, 0]}"),
            "model.preprocessing.std is missing",
        ),
        (("preprocessing: tf", "preprocessing: tourch"), "preprocessing"),
        (("train_from: all", "train_from: all, layers: [block2, block9]"), "block0, block1, block2"),
        (("net.py:build", "no_such.package:Net"), "there is no package no_such"),
    ],
)
def test_a_config_that_names_a_function_wrongly(change: tuple[str, str], words: str | None, tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(GOOD)
    (tmp_path / "x.yaml").write_text(CONFIG.replace(*change))
    if words is None:
        assert config_file.load(tmp_path / "x.yaml").model.preprocessing == "tf"
        return
    with pytest.raises(Refusal) as error:
        config_file.load(tmp_path / "x.yaml")
    assert words in str(error.value), str(error.value)


def test_a_file_is_beside_the_config_and_of_an_override_in_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "net.py").write_text(GOOD)
    (tmp_path / "x.yaml").write_text(CONFIG)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    assert config_file.load("../x.yaml").model.backbone == f"{tmp_path / 'work' / '..' / 'net.py'}:build"
    (tmp_path / "work" / "net.py").write_text(GOOD)
    overridden = config_file.load("../x.yaml", ["model.backbone=net.py:build"])
    assert overridden.model.backbone == f"{tmp_path / 'work' / 'net.py'}:build"
    assert config_file.digest(overridden) == config_file.digest(config_file.load("../x.yaml"))


def test_nothing_of_the_code_is_run_without_imports(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(f"open({str(tmp_path / 'mark')!r}, 'w')\n")
    (tmp_path / "x.yaml").write_text(CONFIG)
    config_file.dump(config_file.load(tmp_path / "x.yaml", imports=False))
    assert not (tmp_path / "mark").exists()
    done = subprocess.run(
        [sys.executable, "-P", "-m", "tl_dist.models.backbones.described", network(tmp_path / "y.py", GOOD)],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert json.loads(done.stdout.splitlines()[-1])["patch"] == 1
    assert extensions.code_file("a.py:b") == Path("a.py") and extensions.code_file("a:b") is None
