"""A vision transformer is trained as any network: on two workers, killed, from a cached block, exported, explained."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file
from sklearn.datasets import load_digits

import tl_dist as tl
from tests.end_to_end.harness import EVERY_STEP, ONE_WORKER, TL_DIST, Workspace, bits, losses, newest, records

CONFIG = (
    EVERY_STEP
    + """\
global_batch: 15
steps: 300
data: {name: digits, image_size: 24, validation_fraction: 0.2}
model: {backbone: "tests.small_vit:SMALL_VIT", weights: random, train_from: all, pooling: both}
optimizer: {name: adamw, learning_rate: 0.003, weight_decay: 0.05, layer_decay: 0.8}
"""
)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workspace]:
    made = Workspace(tmp_path_factory.mktemp("vit"), CONFIG)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(made.directory)
        patch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
        made.train_here("one")
        yield made


def test_it_learns(workspace: Workspace) -> None:
    assert tl.Run("runs/one").scores["test"]["accuracy"] > 0.6  # of ten classes, after 3 epochs


def test_two_workers_train_as_one_does(workspace: Workspace) -> None:
    workspace.train("two", "steps=10", "strategy=horovod", "workers=2")
    one, two = (list(losses(workspace.run(name)).values())[:10] for name in ("one", "two"))
    np.testing.assert_allclose(two, one, rtol=1e-3)


DEEP = ("model.drop_path=0.5", "runtime.recompute=true")


@pytest.mark.parametrize("more", [pytest.param((), marks=pytest.mark.full), DEEP], ids=["plain", "deep"])
def test_killed_it_ends_with_the_same_bits(workspace: Workspace, more: tuple[str, ...]) -> None:
    short, (whole, killed) = ("steps=9", "checkpoint.every_steps=4", *more), (f"{n}{len(more)}" for n in ("w", "k"))
    workspace.train(whole, *short, *ONE_WORKER)
    process = workspace.start(
        workspace.argv(killed, *short, *ONE_WORKER), TL_FAILPOINT="train.chunk_done:6=kill", TL_ALLOW_FAILPOINTS="1"
    )
    said, _ = process.communicate(timeout=240)
    assert process.returncode == 0 and records(workspace.run(killed), "resumed"), said
    assert bits(workspace.run(killed)) == bits(workspace.run(whole))
    if more:
        deep, plain = (np.array(list(losses(workspace.run(name)).values())[:9]) for name in (whole, "one"))
        assert np.abs(deep - plain).max() > 1e-4, f"no branch was dropped: {deep}, {plain}"


def test_bfloat16_follows_float32_within_its_rounding(workspace: Workspace) -> None:
    workspace.train_here("narrow", "steps=10", "precision=mixed_bfloat16")
    wide, narrow = (list(losses(workspace.run(name)).values())[:10] for name in ("one", "narrow"))
    np.testing.assert_allclose(narrow, wide, rtol=3e-2)
    assert narrow != wide


def test_a_class_token_is_pooled_and_has_no_heat_map_but_of_its_attention(workspace: Workspace) -> None:
    workspace.train_here("token", "steps=2", "model.pooling=token")
    Image.new("RGB", (24, 24)).save("zero.png")
    process = workspace.start([TL_DIST, "explain", "runs/token", "zero.png"])
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 64 and "reads the class token alone" in " ".join(said.split())
    assert "zero.png: " in tl_dist(workspace, "explain", "runs/token", "zero.png", "--method", "rollout")


def test_a_cached_block_changes_no_curve(workspace: Workspace) -> None:
    frozen = ("source.run=runs/one", "model.train_from=block1", "steps=12")
    for cache in ("off", "on"):
        workspace.train_here(f"cache-{cache}", *frozen, f"runtime.prefix_cache={cache}")
    off, on = (list(losses(workspace.run(f"cache-{cache}")).values()) for cache in ("off", "on"))
    np.testing.assert_allclose(on, off, rtol=1e-4)


def tl_dist(workspace: Workspace, *arguments: str) -> str:
    process = workspace.start([TL_DIST, *arguments])
    said, _ = process.communicate(timeout=240)
    assert process.returncode == 0, said
    return " ".join(said.split())


@pytest.mark.parametrize("to", ["onnx", "litert", pytest.param("savedmodel", marks=pytest.mark.full)])
def test_an_export_gives_what_the_run_gives(workspace: Workspace, to: str) -> None:
    num = tl.Run("runs/one").scores["test"]["num_examples"]
    said = tl_dist(workspace, "export", "runs/one", "--to", to)
    assert f"{num} of {num} images of 'test' have the class that the run gives them" in said


def test_a_heat_map_is_of_the_patches(workspace: Workspace) -> None:
    pixels = np.kron(load_digits().images[0], np.ones((3, 3))) * 15
    Image.fromarray(pixels.astype(np.uint8)).save("zero.png")
    assert "zero.png: " in tl_dist(workspace, "explain", "runs/one", "zero.png")
    with Image.open("zero.png.explained.png") as picture:
        assert picture.size[0] > 3 * 24


@pytest.mark.parametrize("kind", ["bias", "norm"])
def test_biases_or_norms_alone_are_trained_and_kept(workspace: Workspace, kind: str) -> None:
    """All else keeps the bits of the source; a checkpoint holds what is trained, and the model is whole."""
    short = ("optimizer.name=adam", "optimizer.weight_decay=0", "steps=12")
    workspace.train_here(kind, "source.run=runs/one", f"model.adapt={kind}", *short)
    run = workspace.run(kind)
    names = {name for name in load_file(newest(run)) if name.startswith("backbone/")}
    ends = ("bias", "beta") if kind == "bias" else ("gamma", "beta")
    assert names and all(name.endswith(ends) for name in names)
    assert newest(run).stat().st_size < 0.5 * newest(workspace.run("one")).stat().st_size
    models = [tl.Run(f"runs/{name}").keras_model().get_layer("small_vit") for name in ("one", kind)]
    before, after = ({v.path: v.numpy() for v in model.weights} for model in models)
    moved = {path for path, value in after.items() if not np.array_equal(value, before[path])}
    assert moved and all(path.endswith(ends) for path in moved)
    test = tl.Run(f"runs/{kind}").predictions("test")
    right = np.mean(test.probabilities.argmax(axis=1) == test.labels)
    assert tl.Run(f"runs/{kind}").scores["test"]["accuracy"] == right


@pytest.fixture(scope="module")
def siglip(workspace: Workspace) -> Workspace:
    tower = "model.backbone=tests.small_vit:SMALL_SIGLIP"
    workspace.train_here("siglip", tower, "model.pooling=attention", "steps=20")
    return workspace


@pytest.mark.parametrize("to", ["onnx", *(pytest.param(to, marks=pytest.mark.full) for to in ("litert", "savedmodel"))])
def test_an_exported_siglip_gives_what_its_run_gives(siglip: Workspace, to: str) -> None:
    num = tl.Run("runs/siglip").scores["test"]["num_examples"]
    said = tl_dist(siglip, "export", "runs/siglip", "--to", to)
    assert f"{num} of {num} images of 'test' have the class that the run gives them" in said


@pytest.mark.full
@pytest.mark.parametrize("to", ["onnx", "litert"])
def test_an_exported_clip_gives_what_its_run_gives(workspace: Workspace, to: str) -> None:
    tower = "model.backbone=tests.small_vit:SMALL_CLIP"
    workspace.train_here(f"clip-{to}", tower, "model.pooling=token", "steps=30")
    num = tl.Run(f"runs/clip-{to}").scores["test"]["num_examples"]
    said = tl_dist(workspace, "export", f"runs/clip-{to}", "--to", to)
    assert f"{num} of {num} images of 'test' have the class that the run gives them" in said


def test_a_token_that_attention_pools_has_a_heat_map(siglip: Workspace) -> None:
    Image.new("RGB", (24, 24), "white").save("white.png")
    assert "white.png: " in tl_dist(siglip, "explain", "runs/siglip", "white.png")


def test_an_inner_block_is_pooled_and_cached_below_the_head_that_attends(siglip: Workspace) -> None:
    tower = "model.backbone=tests.small_vit:SMALL_SIGLIP"
    pooled = (tower, 'model.layers=["block1", "top"]', "model.pooling=both", "model.train_from=top", "steps=12")
    for cache in ("off", "on"):
        siglip.train_here(f"tower-{cache}", "source.run=runs/siglip", *pooled, f"runtime.prefix_cache={cache}")
    off, on = (list(losses(siglip.run(f"tower-{cache}")).values()) for cache in ("off", "on"))
    np.testing.assert_allclose(on, off, rtol=1e-4)
