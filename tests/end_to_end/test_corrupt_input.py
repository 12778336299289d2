"""Corrupt images do not end a run, and are named; too many do."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.damaged_images import damage
from tests.end_to_end.harness import Workspace, losses, records
from tests.official_layouts import digits_32px, write_image_folder

NAMES = [f"digit {k}" for k in range(10)]
FIRST, SECOND = "train/digit 3/00013.png", "train/digit 4/00014.png"


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    monkeypatch.chdir(tmp_path)
    write_image_folder(tmp_path / "data" / "train", digits_32px(120), NAMES)
    write_image_folder(tmp_path / "data" / "test", digits_32px(60, start=120), NAMES)
    return Workspace(tmp_path)


def options(strategy: str = "single") -> list[str]:
    workers = {"single": "1", "horovod": "2"}[strategy]
    changes = ["data.name=image_folder", "data.path=data", "steps=12", "checkpoint.every_steps=4"]
    return [*changes, f"strategy={strategy}", f"workers={workers}"]


def quarantined(workspace: Workspace, name: str) -> dict[str, Any]:
    lines = workspace.run(name).quarantine_file.read_text().splitlines()
    return {entry.pop("id"): entry for entry in map(json.loads, lines)}


def test_a_damaged_image_is_named_and_substituted(workspace: Workspace) -> None:
    damage(workspace.directory / "data" / FIRST, "cut off")
    victim = next((workspace.directory / "data" / "test" / "digit 5").iterdir())
    damage(victim, "text")
    said = workspace.train("trial", *options())
    assert "2 bad examples in quarantine.jsonl" in said
    assert set(quarantined(workspace, "trial")) == {FIRST, f"test/digit 5/{victim.name}"}
    assert quarantined(workspace, "trial")[FIRST]["reason"].startswith("JPEG is cut off")
    (result,) = records(workspace.run("trial"), "evaluation")
    assert (result["split"], result["num_examples"]) == ("test", 59)
    workspace.train("two", *options("horovod"))
    one, two = losses(workspace.run("trial")), losses(workspace.run("two"))
    assert one.keys() == two.keys() and max(abs(one[k] - two[k]) for k in one) < 1e-4


def test_more_than_the_budget_ends_with_65_and_names_them(workspace: Workspace) -> None:
    for name in (FIRST, SECOND):
        damage(workspace.directory / "data" / name, "empty")
    said = workspace.train("trial", *options(), "data.max_bad=1", expect=65)
    assert FIRST in said and SECOND in said and "Traceback" not in said
    workspace.train_here("trial", *options(), "data.max_bad=2")


def test_weights_that_do_not_fit_bind_the_run_to_nothing(workspace: Workspace) -> None:
    """Neither does a folder that the workers refuse: the same name is for whoever corrects the command."""
    (workspace.directory / "mine.safetensors").write_bytes(b"no weights")
    said = workspace.train("trial", *options(), "model.weights=mine.safetensors", expect=65)
    assert "mine.safetensors" in said
    workspace.train("trial", *options(), "data.path=elsewhere", "seed=3", expect=65)
    workspace.train_here("trial", *options(), "model.weights=random")


@pytest.mark.parametrize("strategy", [pytest.param("single", marks=pytest.mark.full), "horovod"])
def test_what_only_decoding_finds_is_named_and_the_run_goes_on(workspace: Workspace, strategy: str) -> None:
    for name in (FIRST, SECOND):
        damage(workspace.directory / "data" / name, "wrong checksum")
    said = workspace.train("trial", *options(strategy))
    entries = quarantined(workspace, "trial")
    assert set(entries) == {FIRST, SECOND}
    assert all("Invalid PNG" in entry["reason"] for entry in entries.values())
    assert "exit code 70" in said and "restart 1 of 3" in said
    assert workspace.run("trial").done is not None
    assert "Traceback" not in workspace.run("trial").rank_log(0).read_text()


def test_other_data_is_refused_between_attempts(workspace: Workspace) -> None:
    """An image that has changed, then a class of another name."""
    workspace.train_here("trial", *options(), "steps=8")
    image = workspace.directory / "data" / FIRST
    content = image.read_bytes()
    image.write_bytes(content + b"more")
    workspace.run("trial").done_file.unlink()
    assert "data.train" in workspace.train("trial", *options(), "steps=8", expect=78)
    image.write_bytes(content)
    for split in ("train", "test"):
        folder = workspace.directory / "data" / split
        (folder / "digit 9").rename(folder / "nine")
    said = workspace.train("trial", *options(), "steps=8", expect=78)
    assert "was started with something else: class_names: " in said


@pytest.mark.timing
def test_a_delay_in_the_data_of_one_rank_is_put_down_to_it(workspace: Workspace) -> None:
    argv = workspace.argv("trial", *options("horovod"), "steps=40", "report.every_steps=10")
    process = workspace.start(argv, TL_FAILPOINT="data.batch@1=sleep=0.1", TL_ALLOW_FAILPOINTS="1")
    said, _ = process.communicate(timeout=240)
    assert process.returncode == 0, said
    reports = records(workspace.run("trial"), "train")
    # The first batches are read ahead while the step is compiled.
    shares = [report["data_wait_shares"] for report in reports if report["step"] >= 10]
    assert len(shares) >= 3
    for first, second in shares:
        assert second > 0.6 and first < 0.2
