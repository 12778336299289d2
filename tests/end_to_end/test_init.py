"""A folder of images becomes a config and a trained run by one command, and no file is ever replaced."""

import json
import os
import subprocess
from pathlib import Path

import pytest

import tl_dist as tl
from tests.doubles import digit_files
from tests.end_to_end.harness import TL_DIST
from tl_dist.refusal import ExitCode, Refusal
from tl_dist.tools.curate.init import Machine, init

LAPTOP, NODE = Machine(gpus=0, online=False), Machine(gpus=4, online=True)


def digits(folder: Path, num: int) -> Path:
    return digit_files(folder, num, (32, 32))


def run(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([TL_DIST, *arguments], cwd=cwd, capture_output=True, text=True, timeout=240)


def test_a_folder_is_trained_by_one_command_and_the_same_command_finds_it(tmp_path: Path) -> None:
    digits(tmp_path / "my images", 150)
    command = ("train", "my images", "data.image_size=48", "classifier.l2=0.03")  # small and quick
    first = run(*command, cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    assert "wrote my_images.yaml and my_images.split.json: vgg16 from ImageNet" in first.stdout
    done = json.loads((tmp_path / "runs" / "my_images" / "DONE").read_text())
    assert done["figures"]["test"]["num_examples"] == 30
    assert done["figures"]["test"]["accuracy"] > 0.6  # of ten classes; 10 % is chance
    again = run(*command, cwd=tmp_path)
    assert "using my_images.yaml" in again.stdout and "this run is done" in again.stdout
    refused = run("init", "my images", cwd=tmp_path)
    assert refused.returncode == ExitCode.CANNOT_CREATE and "Fix: train it" in refused.stderr


def test_processes_of_a_launcher_do_not_each_write_a_config(tmp_path: Path) -> None:
    folder = digits(tmp_path / "folder", 40)
    environment = {**os.environ, "HOROVOD_RANK": "1", "HOROVOD_SIZE": "2", "HOROVOD_LOCAL_RANK": "1"}
    done = subprocess.run(
        [TL_DIST, "train", str(folder)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == ExitCode.USAGE and "Fix: write it first: tl-dist init" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_on_gpus_the_whole_network_is_fine_tuned(tmp_path: Path) -> None:
    folder = digits(tmp_path / "folder", 200)
    config = tl.load_config(init(folder, tmp_path / "gpu.yaml", lambda text: None, NODE))
    assert (config.strategy, config.model.train_from, config.model.weights) == ("mirrored", "all", "imagenet")
    assert not config.classifier.computed and config.recipe == "auto"
    parts = json.loads((tmp_path / "gpu.split.json").read_text())["splits"]
    assert {name: len(ids) for name, ids in parts.items()} == {"train": 140, "validation": 20, "test": 40}


def test_splits_that_the_files_make_are_kept(tmp_path: Path) -> None:
    for split in ("train", "test"):
        digits(tmp_path / "made" / split, 40)
    written = init(tmp_path / "made", tmp_path / "made.yaml", lambda text: None, LAPTOP)
    assert not (tmp_path / "made.split.json").exists()
    assert tl.load_config(written).data.split is None


def test_too_few_images_are_said_to_be_too_few(tmp_path: Path) -> None:
    folder = digits(tmp_path / "few", 12)
    with pytest.raises(Refusal, match=r"too few images .* Fix: add images"):
        init(folder, tmp_path / "few.yaml", lambda text: None, LAPTOP)
    assert [path.name for path in tmp_path.iterdir()] == ["few"]


def test_no_file_is_replaced_and_another_data_set_does_not_take_the_config(tmp_path: Path) -> None:
    first, second = digits(tmp_path / "a" / "cells", 100), digits(tmp_path / "b" / "cells", 100)
    said: list[str] = []
    init(first, tmp_path / "cells.yaml", said.append, LAPTOP)
    before = {path: path.read_bytes() for path in tmp_path.glob("cells*")}
    refused = run("train", str(second), cwd=tmp_path)
    assert refused.returncode == ExitCode.CANNOT_CREATE
    assert "is not for" in refused.stderr and "Fix: write another config: tl-dist init" in refused.stderr
    (tmp_path / "mine.split.json").write_text("years of work")
    with pytest.raises(Refusal, match="is there already"):
        init(first, tmp_path / "mine.yaml", said.append, LAPTOP)
    assert {path: path.read_bytes() for path in tmp_path.glob("cells*")} == before
    assert (tmp_path / "mine.split.json").read_text() == "years of work"


def test_what_a_killed_call_left_is_taken_over_and_of_several_at_once_one_writes(tmp_path: Path) -> None:
    folder = digits(tmp_path / "cells", 100)
    written = init(folder, tmp_path / "i.yaml", lambda text: None, LAPTOP)
    before = written.read_bytes(), (tmp_path / "i.split.json").read_bytes()
    written.unlink()  # killed between the manifest and the config
    init(folder, written, lambda text: None, LAPTOP)
    assert (written.read_bytes(), (tmp_path / "i.split.json").read_bytes()) == before
    written.unlink()
    next((folder / os.listdir(folder)[0]).iterdir()).unlink()
    with pytest.raises(Refusal, match=r"i.split.json is there already, and divides .* Fix: move it away, or name"):
        init(folder, written, lambda text: None, LAPTOP)
    argv = [TL_DIST, "init", str(folder), "--out", "two.yaml"]
    both = [subprocess.Popen(argv, cwd=tmp_path, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    said = sorted((process.communicate(timeout=240)[1], process.returncode) for process in both)
    assert said[0] == ("", 0) and said[1][1] == ExitCode.CANNOT_CREATE
    assert said[1][0].startswith("error: two.yaml is there already. Fix: train it: tl-dist train two.yaml")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shells_complete_commands(shell: str) -> None:
    said = {
        "bash": {"COMP_WORDS": "tl-dist tr", "COMP_CWORD": "1"},
        "zsh": {"_TYPER_COMPLETE_ARGS": "tl-dist tr"},
        "fish": {"_TYPER_COMPLETE_ARGS": "tl-dist tr", "_TYPER_COMPLETE_FISH_ACTION": "get-args"},
    }[shell]
    environment = {**os.environ, "_TL_DIST_COMPLETE": f"complete_{shell}", **said}
    done = subprocess.run([TL_DIST], env=environment, capture_output=True, text=True, timeout=60, check=True)
    assert "train" in done.stdout and "runs" not in done.stdout
