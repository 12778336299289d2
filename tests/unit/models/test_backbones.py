"""Every backbone is what it says: names, sizes, preprocessing, and places where it can be cut."""

import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

from tl_dist.config import registry
from tl_dist.models.backbones import preprocess, seam

ROOT = Path(__file__).parents[3]
RECORDS = {name: registry.backbone(name) for name in registry.BACKBONES}
CONSTRUCTORS = {
    name.lower(): getattr(keras.applications, name) for name in vars(keras.applications) if name[0].isupper()
}
OF_FILES = ("vit", "deit", "dinov2", "clip", "siglip", "efficientnet")
"""how the names of networks begin whose weights come from files or packages of torch"""
PRETRAINED = sorted(name for name, record in RECORDS.items() if record.pretrained)
# The smallest of each family and of each rule by which a family names its stages.
ONE_OF_EACH = [
    "tiny",
    "vgg16",
    "resnet50",
    "resnet50v2",
    "mobilenetv2",
    "mobilenetv3small",
    "mobilenetv3large",
    "efficientnetb0",
    "efficientnetv2b0",
    "efficientnetv2s",
    "densenet121",
    "inceptionv3",
    "inceptionresnetv2",
    "xception",
    "convnexttiny",
    "efficientnet_lite0",
    "dinov2_small",
]
TESTED = [
    pytest.param(name, marks=pytest.mark.full if name in ("efficientnetv2s", "inceptionresnetv2") else ())
    for name in ONE_OF_EACH
]
PREFIXED = sorted(set(ONE_OF_EACH) - {"mobilenetv3large", "efficientnetv2s", "inceptionresnetv2", "resnet50v2"})


@pytest.fixture(scope="module")
def networks():
    """One network per rule at its smallest input, each built once."""
    built = {}

    def network(name):
        if name not in built:
            side = RECORDS[name].min_size
            built[name] = RECORDS[name].build((side, side, 3))
        return built[name]

    return network


def test_a_record_costs_nothing_until_it_is_built():
    program = (
        "import sys\nfrom tl_dist.config import registry\n"
        "for name in registry.BACKBONES: registry.backbone(name)\n"
        "assert not {'tensorflow', 'keras', 'numpy', 'h5py'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)


def test_every_name_leads_to_its_own_record():
    assert {name: record.name for name, record in RECORDS.items()} == {name: name for name in registry.BACKBONES}
    without = {name for name, record in RECORDS.items() if record.pretrained is None}
    assert {name.partition("_")[0] for name in without} == {"tiny", *OF_FILES}
    assert set(PRETRAINED) <= set(CONSTRUCTORS)


class CapturedError(Exception):
    pass


@pytest.mark.parametrize("name", PRETRAINED)
def test_a_smaller_input_is_one_that_keras_refuses(name):
    too_small = RECORDS[name].min_size - 1
    with pytest.raises(ValueError, match=r"at least"):
        RECORDS[name].build((too_small, too_small, 3))


@pytest.mark.parametrize("name", sorted(set(PRETRAINED) - {"mobilenetv3small", "mobilenetv3large"}))
def test_input_sizes_are_those_of_keras(name, monkeypatch):
    from keras.src.applications import imagenet_utils

    def capture(input_shape, default_size, **rest):
        raise CapturedError(default_size)

    # Keras keeps the number inside its constructors; this is the first thing that they do with it.
    monkeypatch.setattr(imagenet_utils, "obtain_input_shape", capture)
    with pytest.raises(CapturedError) as captured:
        CONSTRUCTORS[name](include_top=True, weights=None)
    assert captured.value.args == (RECORDS[name].input_size,)


@pytest.mark.parametrize("name", PRETRAINED)
def test_preprocessing_is_what_keras_does_for_its_weights(name):
    images = np.random.default_rng(1).integers(0, 256, (2, 9, 7, 3), np.uint8)
    of_keras = sys.modules[CONSTRUCTORS[name].__module__].preprocess_input
    expected = np.asarray(of_keras(images.astype(np.float32)))
    preprocessed = preprocess(RECORDS[name].preprocessing, images)
    assert preprocessed.dtype == "float32"
    np.testing.assert_allclose(preprocessed, expected, rtol=1e-6, atol=2e-5)


def operations_behind(tensor, network):
    """Return the operations that a tensor is computed from."""
    makers = {id(output): op for op in network.operations for output in keras.tree.flatten(op.output)}
    behind, open_ends = set(), [tensor]
    while open_ends:
        op = makers[id(open_ends.pop())]
        if op not in behind:
            behind.add(op)
            open_ends += [end for end in keras.tree.flatten(op.input) if makers[id(end)] is not op]
    return behind


@pytest.mark.parametrize("name", TESTED)
def test_stages_are_layers_in_order_and_one_tensor_enters_each(name, networks):
    network = networks(name)
    names = [layer.name for layer in network.layers]
    positions = [names.index(layer) for layer in RECORDS[name].stages.values()]
    assert positions == sorted(set(positions))
    assert all(not layer.weights or layer.name == "normalization" for layer in network.layers[: positions[0]])
    for position in positions:
        # Behind the one tensor lie all layers before the cut and no other: no frozen layer depends on a
        # trained one, and none is left out.
        behind = operations_behind(seam(network, position), network)
        assert behind == set(network.operations[: network.operations.index(network.layers[position])])


@pytest.mark.parametrize("name", PREFIXED)
def test_prefix_and_suffix_compute_the_whole(name, networks):
    network = networks(name)
    names = [layer.name for layer in network.layers]
    stages = list(RECORDS[name].stages.values())
    cut = seam(network, names.index(stages[len(stages) // 2]))
    prefix, suffix = keras.Model(network.input, cut), keras.Model(cut, network.output)
    images = np.random.default_rng(2).uniform(0, 255, (2, *network.input_shape[1:])).astype(np.float32)
    whole = keras.ops.convert_to_numpy(network(images, training=False))
    assert np.abs(whole).max() > 0
    np.testing.assert_array_equal(suffix(prefix(images, training=False), training=False), whole)


def test_a_cut_inside_a_residual_block_is_no_seam(networks):
    network = networks("resnet50")
    inside = [layer.name for layer in network.layers].index("conv3_block2_2_conv")
    with pytest.raises(ValueError, match="2 tensors pass"):
        seam(network, inside)
    assert seam(network, len(network.layers)) is network.output


@pytest.mark.parametrize(
    "name",
    ["xception", "mobilenetv3small"]
    + [pytest.param(name, marks=pytest.mark.full) for name in ("inceptionv3", "efficientnetb0")],
)
def test_names_do_not_depend_on_what_was_built_before(name, networks):
    first = [v.path for v in networks(name).weights]
    keras.layers.Conv2D(1, 1)
    before = keras.layers.Conv2D(1, 1).name
    side = RECORDS[name].min_size
    again = RECORDS[name].build((side + 21, side, 3))
    assert [v.path for v in again.weights] == first
    assert len(set(first)) == len(first)
    # The caller's own numbering continues where it was.
    after = keras.layers.Conv2D(1, 1).name
    assert int(after.rpartition("_")[2]) == int(before.rpartition("_")[2]) + 1


@pytest.mark.parametrize("name", TESTED)
def test_a_record_says_whether_there_is_batch_norm(networks, name):
    layers = networks(name).layers
    assert any(isinstance(layer, keras.layers.BatchNormalization) for layer in layers) == RECORDS[name].batch_norm
