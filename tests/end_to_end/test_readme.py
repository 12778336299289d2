"""Every command that README.md shows works; the two that start everything are run by whoever runs the tests."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.end_to_end.harness import BIN

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```console\n(.*?)```", TEXT, re.DOTALL)
COMMANDS = [line.removeprefix("$ ") for block in BLOCKS for line in block.splitlines()]
STARTERS = ["./launch/quickstart", "./launch/test"]


def test_the_two_commands_exist() -> None:
    assert COMMANDS[:2] == STARTERS
    for path in STARTERS:
        assert subprocess.run(["bash", "-n", str(ROOT / path)], check=False).returncode == 0


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory as a user sees it: the configs, and whatever the commands before have left."""
    made = tmp_path_factory.mktemp("readme")
    shutil.copytree(ROOT / "configs", made / "configs")
    return made


@pytest.mark.parametrize("command", [c for c in COMMANDS if c not in STARTERS])
def test_a_command_of_the_readme_works(checkout: Path, command: str) -> None:
    program, *arguments = shlex.split(command)
    argv = [str(BIN / program), *arguments]
    done = subprocess.run(argv, cwd=checkout, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.strip()


def test_every_file_that_the_readme_names_exists() -> None:
    for name in re.findall(r"`((?:tests|configs|launch|tl_dist|slurm)/[\w./*-]+)`", TEXT):
        assert list(ROOT.glob(name.rstrip("/"))), name


def test_the_example_config_is_valid(checkout: Path) -> None:
    (text,) = re.findall(r"```yaml\n(.*?)```", TEXT, re.DOTALL)
    (checkout / "example.yaml").write_text(text)
    argv = [str(BIN / "tl-dist"), "config", "show", "example.yaml"]
    done = subprocess.run(argv, cwd=checkout, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
