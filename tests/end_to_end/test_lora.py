"""A LoRA run keeps every bit of its base, stores adapters and head alone, and leaves an ordinary network behind."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

import tl_dist as tl
from tests.end_to_end.harness import EVERY_STEP, ONE_WORKER, Workspace, bits, losses, newest, records
from tl_dist.config import registry
from tl_dist.data.pipeline import evaluation_batches, plain

CONFIG = (
    EVERY_STEP
    + """\
global_batch: 15
steps: 20
data: {name: digits, image_size: 24, validation_fraction: 0.2}
model: {backbone: "tests.small_vit:SMALL_VIT", weights: random, train_from: all, pooling: both}
optimizer: {name: adam, learning_rate: 0.003}
"""
)
RANK = 4
LORA = ("source.run=runs/base", "model.train_from=block1", f"model.adapt.lora={RANK}", "model.adapt.alpha=8")
KERNELS = {
    **{f"block1_attention/{name}": (32, 32) for name in ("query", "key", "value", "attention_output")},
    "block1_mlp1": (32, 128),
    "block1_mlp2": (128, 32),
}
"""inputs and outputs of each adapted kernel"""
FACTOR = 8 / RANK


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workspace]:
    made = Workspace(tmp_path_factory.mktemp("lora"), CONFIG)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(made.directory)
        patch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
        made.train_here("base", "steps=60")
        made.train_here("adapted", *LORA)
        yield made


def network_of(name: str) -> dict[str, np.ndarray]:
    backbone = tl.Run(f"runs/{name}").keras_model().get_layer("small_vit")
    return {v.path: v.numpy() for v in backbone.weights}


def merged(base: dict[str, np.ndarray], state: dict[str, np.ndarray], prefix: str = "") -> dict[str, np.ndarray]:
    """The base with kernel + alpha / rank * A B, by NumPy in float64."""
    result = dict(base)
    for name in KERNELS:
        a, b = (state[f"{prefix}backbone/{name}/lora_{x}"].astype(np.float64) for x in "ab")
        kernel = base[f"{name}/kernel"]
        result[f"{name}/kernel"] = kernel + FACTOR * (a @ b).reshape(kernel.shape)
    return result


def same(networks: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    for path, value in expected.items():
        if path.removesuffix("/kernel") in KERNELS:
            np.testing.assert_allclose(networks[path], value, rtol=1e-6, atol=1e-6, err_msg=path)
        else:
            np.testing.assert_array_equal(networks[path], value, err_msg=path)


def test_a_checkpoint_holds_adapters_and_head_alone(workspace: Workspace) -> None:
    state = load_file(newest(workspace.run("adapted")))
    own = {path: v for path, v in state.items() if not path.startswith("optimizer/")}
    adapters = {f"backbone/{name}/lora_{x}" for name in KERNELS for x in "ab"}
    assert own.keys() == adapters | {"head/logits/kernel", "head/logits/bias"}
    numbers = sum(RANK * (rows + columns) for rows, columns in KERNELS.values()) + 64 * 10 + 10
    counters = sum(v.nbytes for path, v in state.items() if v.ndim == 0)
    assert sum(v.nbytes for v in state.values()) == 3 * 4 * numbers + counters  # with Adam's two averages
    sizes = [newest(workspace.run(name)).stat().st_size for name in ("adapted", "base")]
    assert sizes[0] < 0.2 * sizes[1]
    (note,) = (r["text"] for r in records(workspace.run("adapted"), "note") if r["text"].startswith("LoRA"))
    assert note == f"LoRA: {numbers - 650:,} parameters in 6 adapters"


def test_the_network_of_the_run_is_its_base_and_the_adapters(workspace: Workspace) -> None:
    base, state = network_of("base"), load_file(newest(workspace.run("adapted")))
    network = network_of("adapted")
    same(network, merged(base, state))
    assert all(not np.array_equal(network[f"{name}/kernel"], base[f"{name}/kernel"]) for name in KERNELS)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # Keras, as it saves
def test_the_export_answers_as_the_adapters_did_and_needs_no_tl_dist(workspace: Workspace) -> None:
    run = tl.Run("runs/adapted")
    answers, source = run.predictions("test"), registry.dataset("digits").open(run.config.data)["test"]
    assert [*answers.ids] == [*source.ids]
    num = len(answers.ids)
    batches = evaluation_batches(plain(source, 24), num, rows=range(num), global_batch=num)
    images = next(iter(batches)).images.numpy()
    run.export("keras", "exported")
    np.save("images.npy", images)
    code = (
        "import sys, keras, numpy; model = keras.models.load_model('exported/model.keras');"
        "numpy.save('answers.npy', model.predict(numpy.load('images.npy'), verbose=0));"
        "assert 'tl_dist' not in sys.modules"
    )
    subprocess.run([sys.executable, "-P", "-c", code], check=True, env={"TF_CPP_MIN_LOG_LEVEL": "2"})
    np.testing.assert_allclose(np.load("answers.npy"), answers.probabilities, rtol=0, atol=1e-6)


def test_killed_between_two_stages_it_ends_with_the_same_bits(workspace: Workspace) -> None:
    stages = "stages=[{train_from: block1, steps: 5}, {train_from: all, steps: 5}]"
    settings = (
        *LORA, "model.train_from=head", "steps=null", stages, "optimizer.ema=0.9", "optimizer.l2_sp=0.1",
        "checkpoint.every_steps=4",
    )  # fmt: skip
    workspace.train("whole", *settings, *ONE_WORKER)
    process = workspace.start(
        workspace.argv("killed", *settings, *ONE_WORKER),
        TL_FAILPOINT="train.chunk_done:7=kill",
        TL_ALLOW_FAILPOINTS="1",
    )
    said, _ = process.communicate(timeout=240)
    assert process.returncode == 0 and records(workspace.run("killed"), "resumed"), said
    assert bits(workspace.run("killed")) == bits(workspace.run("whole"))
    # Its network has the averages, which were evaluated; the second stage adapts more than KERNELS.
    state, base, network = load_file(newest(workspace.run("whole"))), network_of("base"), network_of("whole")
    expected = merged(base, state, "optimizer/ema/")
    for name in KERNELS:
        np.testing.assert_allclose(network[f"{name}/kernel"], expected[f"{name}/kernel"], rtol=1e-6, atol=1e-6)
    assert not np.array_equal(network["block0_mlp1/kernel"], base["block0_mlp1/kernel"])


def test_two_workers_train_as_one_does(workspace: Workspace) -> None:
    workspace.train("two", *LORA, "strategy=horovod", "workers=2")
    one, two = (list(losses(workspace.run(name)).values()) for name in ("adapted", "two"))
    np.testing.assert_allclose(two, one, rtol=1e-5)


def test_a_cached_block_changes_no_curve_and_is_that_of_every_other_run(workspace: Workspace) -> None:
    workspace.train_here("cached", *LORA, "runtime.prefix_cache=on")
    assert records(workspace.run("cached"), "extraction")
    curves = [list(losses(workspace.run(name)).values()) for name in ("cached", "adapted")]
    np.testing.assert_allclose(*curves, rtol=1e-5)
    for name, kind in (("whole-part", "all"), ("biases", "bias")):
        workspace.train_here(name, *LORA[:2], f"model.adapt={kind}", "runtime.prefix_cache=on", "steps=1")
        assert not records(workspace.run(name), "extraction")


def start_of(workspace: Workspace, name: str, *more: str) -> Any:
    """The answers of a run that begins where `adapted` ended, after a step that moves nothing."""
    still = ("optimizer.learning_rate=1e-30", "steps=1", "source.run=runs/adapted", "source.head=true")
    workspace.train_here(name, *still, *more)
    return tl.Run(f"runs/{name}").predictions("test").probabilities


@pytest.mark.parametrize("adapt", [(), ("model.adapt.lora=2",)], ids=["whole", "adapters again"])
def test_a_later_run_starts_from_what_was_learnt(workspace: Workspace, adapt: tuple[str, ...]) -> None:
    end = tl.Run("runs/adapted").predictions("test").probabilities
    begin = start_of(workspace, f"later-{len(adapt)}", *adapt)
    np.testing.assert_allclose(begin, end, atol=1e-6)
    same(network_of(f"later-{len(adapt)}"), merged(network_of("base"), load_file(newest(workspace.run("adapted")))))


def test_adapters_that_match_nothing_are_refused_before_a_step(workspace: Workspace) -> None:
    said = workspace.train("nothing", *LORA, "model.adapt.layers=block0", *ONE_WORKER, expect=64)
    assert "model.adapt.layers 'block0' matches no layer that is trained" in " ".join(said.split())
