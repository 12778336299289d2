"""Caching the frozen part changes the time of a run, not its curve."""

from pathlib import Path

import numpy as np
import pytest

from tests.end_to_end.harness import Workspace, losses, records

FROZEN = (
    "data.name=synthetic",
    "data.num_examples=64",
    "data.augment=[dihedral]",
    "data.validation_fraction=0.25",
    "model.train_from=block3",
    "optimizer.learning_rate=0.05",
    "steps=24",
)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    made = Workspace(tmp_path_factory.mktemp("prefix-cache"))
    made.train_here("uncached", *FROZEN)
    return made


def features(workspace: Workspace) -> dict[str, float]:
    """When each feature set was made."""
    folder: Path = workspace.directory / "runs" / "features"
    return {path.name: path.stat().st_mtime for path in folder.iterdir()} if folder.exists() else {}


@pytest.mark.parametrize("way", [("--strategy=horovod", "-n2"), ("--strategy=mirrored", "-n2")])
def test_cached_and_uncached_runs_have_one_loss_curve(workspace: Workspace, way: tuple[str, ...]) -> None:
    before = features(workspace)
    name = f"cached-{way[0].partition('=')[2]}"
    said = workspace.train(name, *FROZEN, *way, "runtime.prefix_cache=on")
    run = workspace.run(name)
    found, expected = losses(run), losses(workspace.run("uncached"))
    assert found.keys() == expected.keys()
    np.testing.assert_allclose(list(found.values()), list(expected.values()), rtol=1e-4)
    assert features(workspace).keys() >= before.keys()
    if before:  # the second run, on another strategy, found everything computed
        assert features(workspace) == before
        assert not records(run, "extraction")
    else:
        assert "features of train 384/384" in said  # 48 images in 8 views


def test_auto_says_what_it_chose_and_changes_no_curve(workspace: Workspace, capfd: pytest.CaptureFixture[str]) -> None:
    kept = features(workspace)
    workspace.train_here("auto", *FROZEN, "runtime.prefix_cache=auto")
    said = capfd.readouterr().out
    choice = (
        "prefix cache: on: 0 images go through the frozen part instead of 520"
        if kept  # by a test before this one
        else "prefix cache: off: 520 images go through the frozen part, 416 would have to for the cache"
    )
    assert said.count("prefix cache: ") == said.count(choice) == 1, said
    found, expected = losses(workspace.run("auto")), losses(workspace.run("uncached"))
    np.testing.assert_allclose(list(found.values()), list(expected.values()), rtol=1e-4)
    assert not list((workspace.directory / "runs" / "features").glob(".tmp-*"))


def test_stages_that_the_head_joins_are_cached_in_every_stage_of_a_run(workspace: Workspace) -> None:
    """First the head on both pooled stages, then block3, pooled beside the block2 that its prefix ends with."""
    staged = (
        *FROZEN[:4],
        "steps=null",
        "model.train_from=head",
        "model.layers=[block2, block3]",
        "model.normalize=true",
        "optimizer.learning_rate=0.05",
        "stages=[{train_from: head, steps: 12}, {train_from: block3, steps: 12}]",
    )
    workspace.train_here("joined", *staged)
    workspace.train_here("joined-cached", *staged, "runtime.prefix_cache=on")
    found, expected = losses(workspace.run("joined-cached")), losses(workspace.run("joined"))
    assert found.keys() == expected.keys() and len(found) == 24
    np.testing.assert_allclose(list(found.values()), list(expected.values()), rtol=1e-4)
