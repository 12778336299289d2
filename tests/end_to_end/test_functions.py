"""Networks that a function returns: from a file, which the run keeps, and of ZeroModels; parity, kills, exports."""

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

import tl_dist as tl
from tests.end_to_end.harness import EVERY_STEP, ONE_WORKER, TL_DIST, Workspace, bits, losses, records
from tl_dist.config import extensions, registry
from tl_dist.models.backbones import functions

PAGE = Path(__file__).parents[2] / "docs" / "pages" / "extending.md"
REST = (
    EVERY_STEP
    + """\
global_batch: 15
steps: 150
data: {name: digits, image_size: 16, validation_fraction: 0.2}
optimizer: {name: adam, learning_rate: 0.01}
"""
)
SWIN = """\
model:
  backbone: zeromodels.models.swin:SwinModel
  arguments: {embed_dim: 8, depths: [1, 1], num_heads: [1, 2], window_size: 2, pretrain_size: 16}
  preprocessing: torch
  weights: random
  train_from: all
"""
OWN = """\
model:
  backbone: nets/my_net.py:build
  arguments: {width: 8}
  preprocessing: {mean: [0.5, 0.5, 0.5], std: [0.25, 0.25, 0.25]}
  weights: random
  train_from: all
"""
MY_NET = """\
import keras
from keras import layers


def build(input_shape, width):
    x = inputs = keras.Input(input_shape)
    for k in range(3):
        x = layers.Conv2D(width * 2**k, 3, padding="same", activation="gelu", name=f"stage{k}_conv")(x)
        x = layers.MaxPooling2D(name=f"stage{k}_pool")(x)
    return keras.Model(inputs, x)
"""


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workspace]:
    """One run of a function in a file, whose original is then gone."""
    space = Workspace(tmp_path_factory.mktemp("functions"), REST + OWN)
    (space.directory / "swin.yaml").write_text(REST + SWIN)
    file = space.directory / "nets" / "my_net.py"
    file.parent.mkdir()
    file.write_text(MY_NET)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(space.directory)
        space.train_here("one")
        file.rename("moved.py")
        yield space


def shown(workspace: Workspace, *arguments: str, code: int = 0) -> str:
    process = workspace.start([TL_DIST, *arguments])
    text, _ = process.communicate(timeout=240)
    assert process.returncode == code, text
    return " ".join(text.split())


def test_a_run_keeps_the_file_of_its_network_and_needs_no_other(workspace: Workspace) -> None:
    """It is evaluated and exported from the copy; its digest is in run.json; the directory may be moved.

    Its GELU uses a function that ONNX has not.
    """
    run = workspace.run("one")
    assert (run.path / "code" / "my_net.py").read_text() == MY_NET
    assert "backbone: code/my_net.py:build" in run.config_file.read_text()
    identity = run.read_identity() or {}
    assert identity["extensions"]["backbone"]["code"] == extensions.code_digest(run.path / "code" / "my_net.py")
    run.path.rename("runs/moved")
    accuracy = tl.Run("runs/moved").scores["test"]["accuracy"]
    assert accuracy > 0.7
    assert f"({accuracy:.4f})" in shown(workspace, "eval", "runs/moved")
    text = shown(workspace, "export", "runs/moved", "--to", "onnx")
    num = tl.Run("runs/moved").scores["test"]["num_examples"]
    assert f"{num} of {num} images of 'test' have the class that the run gives them" in text
    Path("runs/moved").rename("runs/one")


def test_a_changed_file_is_refused_by_the_run_and_taken_by_a_new_one(workspace: Workspace) -> None:
    file = Path("nets/my_net.py")
    file.write_text(MY_NET)
    assert "this run is done" in shown(workspace, "train", "trial.yaml", "name=one")
    file.write_text(MY_NET.replace("gelu", "relu"))
    text = shown(workspace, "train", "trial.yaml", "name=one", code=78)
    assert "my_net.py differs from runs/one/code/my_net.py: - " in text and "Fix: use another name=NAME" in text
    (workspace.run("one").path / "code" / "my_net.py").write_text(MY_NET.replace("gelu", "relu"))
    text = shown(workspace, "eval", "runs/one", code=78)
    assert "code of other packages has changed since the run began: extensions.backbone.code" in text
    (workspace.run("one").path / "code" / "my_net.py").write_text(MY_NET)
    file.unlink()


def test_a_later_run_starts_from_one_of_the_same_code_alone(workspace: Workspace) -> None:
    file = Path("nets/my_net.py")
    file.write_text(MY_NET.replace("gelu", "relu"))
    source = ("name=later", "source.run=runs/one", "model.train_from=stage2", "steps=2")
    text = shown(workspace, "train", "trial.yaml", *source, code=64)
    assert "has other arguments, preprocessing or code of its network" in text
    file.write_text(MY_NET)
    assert "backbone: code" not in shown(workspace, "train", "trial.yaml", *source)
    file.unlink()


def argv(workspace: Workspace, name: str, of: str, *more: str) -> list[str]:
    Path("nets/my_net.py").write_text(MY_NET)
    config = "swin.yaml" if name == "swin" else "trial.yaml"
    return [TL_DIST, "train", config, f"name={name}-{of}", "steps=9", "checkpoint.every_steps=4", *more]


def train_here(workspace: Workspace, *named: str) -> None:
    """The same by this process."""
    _, _, config, *overrides = argv(workspace, *named, *ONE_WORKER)
    tl.train(tl.load_config(config, *overrides), here=True)


QUICK = pytest.mark.parametrize("whole", ["own", pytest.param("swin", marks=pytest.mark.full)], indirect=True)
"""of Swin, whose graph takes long to trace, in --full"""


@pytest.fixture(scope="module", params=["own", "swin"])
def whole(request: pytest.FixtureRequest, workspace: Workspace) -> str:
    shown(workspace, *argv(workspace, request.param, "whole", *ONE_WORKER)[1:])
    return str(request.param)


@pytest.mark.parametrize("num", [2, *(pytest.param(n, marks=pytest.mark.full) for n in (3, 4))])
def test_workers_train_as_one_does(whole: str, num: int, workspace: Workspace) -> None:
    shown(workspace, *argv(workspace, whole, f"by{num}", "strategy=horovod", f"workers={num}")[1:])
    one, several = (workspace.run(f"{whole}-{of}") for of in ("whole", f"by{num}"))
    np.testing.assert_allclose(list(losses(several).values()), list(losses(one).values()), rtol=1e-5)


@QUICK
def test_a_kill_changes_no_bit(whole: str, workspace: Workspace) -> None:
    killed = workspace.start(
        argv(workspace, whole, "killed", *ONE_WORKER), TL_FAILPOINT="train.chunk_done:6=kill", TL_ALLOW_FAILPOINTS="1"
    )
    text, _ = killed.communicate(timeout=240)
    assert killed.returncode == 0 and records(workspace.run(f"{whole}-killed"), "resumed"), text
    assert bits(workspace.run(f"{whole}-killed")) == bits(workspace.run(f"{whole}-whole"))


@QUICK
def test_a_cached_block_changes_no_curve(whole: str, workspace: Workspace) -> None:
    block = "layers_1_blocks_0" if whole == "swin" else "stage1"
    frozen = (f"source.run=runs/{whole}-whole", f"model.train_from={block}")
    for cache in ("off", "on"):
        train_here(workspace, whole, cache, *frozen, f"runtime.prefix_cache={cache}")
    off, on = (list(losses(workspace.run(f"{whole}-{cache}")).values()) for cache in ("off", "on"))
    np.testing.assert_allclose(on, off, rtol=1e-4)


def test_tools_build_the_network_as_its_run_does(workspace: Workspace) -> None:
    """Explaining it, and choosing layers and networks by features, with weights that no label has reached."""
    Image.new("RGB", (16, 16)).save("black.png")
    assert "black.png: " in shown(workspace, "explain", "runs/one", "black.png")
    Path("nets/my_net.py").write_text(MY_NET)
    network = functions.build(f"{Path('nets/my_net.py').absolute()}:build", {"width": 8}, (16, 16, 3))
    save_file({v.path: v.numpy() for v in network.weights}, "drawn.safetensors")
    frozen = ("model.weights=drawn.safetensors", "model.train_from=head", "steps=1", "classifier.name=logistic")
    layers = "model.layers=[stage1, stage2]"
    assert "stage2" in shown(workspace, "tune", "trial.yaml", *frozen, layers)
    tiny = registry.backbone("tiny").build((16, 16, 3))
    save_file({v.path: v.numpy() for v in tiny.weights}, "tiny.safetensors")
    Path("choices.yaml").write_text("- my_net.py:build\n- {backbone: tiny, weights: tiny.safetensors}\n")
    text = shown(workspace, "rank", "trial.yaml", *frozen, "--candidates", "choices.yaml", "--images", "200")
    assert "my_net.py:build" in text and "tiny" in text


@pytest.mark.full
def test_an_export_of_layers_of_another_package_gives_what_the_run_gives(whole: str, workspace: Workspace) -> None:
    for to in ("savedmodel", "onnx"):
        text = shown(workspace, "export", f"runs/{whole}-whole", "--to", to)
        assert re.search(r"(\d+) of \1 images of 'test' have the class", text)


def test_mixed_precision_keeps_all_variables_wide(whole: str, workspace: Workspace) -> None:
    """Swin gives layers the dtype of their inputs."""
    train_here(workspace, whole, "narrow", "precision=mixed_bfloat16")
    wide, narrow = (list(losses(workspace.run(f"{whole}-{of}")).values()) for of in ("whole", "narrow"))
    np.testing.assert_allclose(narrow[:4], wide[:4], rtol=0.1)
    assert narrow != wide


def test_models_show_lists_the_blocks_of_a_config_and_of_a_function(workspace: Workspace) -> None:
    text = shown(workspace, "models", "show", "swin.yaml")
    assert "layers_1_blocks_0" in text and "images of 16 x 16" in text
    Path("nets/my_net.py").write_text(MY_NET.replace("width):", "width=8):"))
    assert "stage2 stage2_conv" in shown(workspace, "models", "show", "nets/my_net.py:build", "--image-size", "32")


def test_the_page_shows_what_works(workspace: Workspace) -> None:
    """Its file, its config, and its two commands."""
    section = PAGE.read_text().partition("## A network of your own")[2].partition("\n## ")[0]
    (commands,) = re.findall(r"```console\n(.*?)```", section, re.DOTALL)
    for name, text in re.findall(r"```\w+\n# (my_net\.\w+)\n(.*?)```", section, re.DOTALL):
        (workspace.directory / name).write_text(text)
    lines = [line.removeprefix("$ tl-dist ").split() for line in commands.splitlines()]
    assert [line[0] for line in lines] == ["train", "models"]
    for line in lines:
        shown(workspace, *line)
