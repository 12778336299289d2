"""Feature sets are listed with what they are; pruning takes what is unused, too much, or left by the dead."""

import json
import os
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from tests.doubles import PREFIX, extract
from tl_dist.cli.main import main
from tl_dist.config import Config
from tl_dist.refusal import Refusal
from tl_dist.runs.directory import RunDir
from tl_dist.runs.lock import Lock
from tl_dist.tools.features import command as feature_sets


def three(root: Path) -> list[Path]:
    """Sets that were last used 10, 20 and 30 days ago."""
    made = [extract(root / "features", views)[0].directory for views in ((), ("flip",), ("dihedral",))]
    for k, path in enumerate(made, start=1):
        then = time.time() - k * 10 * 86400
        os.utime(path / "manifest.json", (then, then))
    return made


def test_a_list_says_what_each_set_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "150")
    made = three(tmp_path)
    (made[2] / "manifest.json").write_text("{")
    found = feature_sets.sets(tmp_path)
    assert [one.manifest.rows for one in found if one.manifest] == [11, 22]
    assert [one.manifest.facts.views for one in found if one.manifest] == [[], ["flip"]]
    assert found[-1].num_bytes >= 22 * 4 * 8 * 2
    assert main(["features", "list", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "block5_conv1" in said and "unreadable" in said and "10 d ago" in said


def test_the_list_says_in_which_number_format_a_set_is_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "150")
    extract(tmp_path / "features", (), replace(PREFIX, dtype="float16"))
    assert main(["features", "list", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "4 x 8" in said and "float16" in said


def test_using_a_set_makes_it_recent(tmp_path: Path) -> None:
    three(tmp_path)
    extract(tmp_path / "features", ("dihedral",))
    newest = feature_sets.sets(tmp_path)[0].manifest
    assert newest is not None and newest.facts.views == ["dihedral"]


def test_pruning_takes_the_longest_unused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = three(tmp_path)
    assert main(["features", "prune", str(tmp_path), "--unused-days", "25"]) == 0
    assert [path.exists() for path in made] == [True, True, False]
    small = sum(file.stat().st_size for file in made[0].iterdir()) / 1e6
    feature_sets.prune(tmp_path, keep_mb=small)
    assert [path.exists() for path in made] == [True, False, False]
    assert main(["features", "prune", str(tmp_path)]) == 64
    assert "--unused-days" in capsys.readouterr().err


def test_pruning_by_reference_keeps_what_a_run_has_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = three(tmp_path)
    for name, sets in {"a": made[:2], "b": made[1:2]}.items():
        (tmp_path / name).mkdir()
        for one in (*sets, *sets):
            RunDir(tmp_path / name).refer_to_features(one.name)
    assert RunDir(tmp_path / "a").features_referred_to() == [one.name for one in made[:2]]
    (tmp_path / "a note").write_text("not a run")
    assert main(["features", "prune", str(tmp_path), "--unreferenced"]) == 0
    assert [path.exists() for path in made] == [True, True, False]
    (tmp_path / "a" / "features.txt").unlink()
    assert feature_sets.prune(tmp_path, unreferenced=True) == [made[0]]


def test_pruning_spares_what_a_living_run_reads(tmp_path: Path) -> None:
    made = three(tmp_path)
    model = {"backbone": "tiny", "weights": "random"}
    data, optimizer = {"name": "digits"}, {"learning_rate": 0.1}
    cfg = Config.model_validate({"name": "x", "steps": 1, "data": data, "model": model, "optimizer": optimizer})
    run = RunDir.create(tmp_path, cfg)
    run.refer_to_features(made[2].name)
    said: list[str] = []
    with Lock.acquire(run):
        assert set(feature_sets.prune(tmp_path, keep_mb=0, say=said.append)) == set(made[:2])
    assert said[0] == f"spared {made[2].name}: run 'x' reads it" and said[-1] == "2 removed"
    assert feature_sets.prune(tmp_path, keep_mb=0) == [made[2]]


def test_pruning_spares_what_a_run_may_just_have_found(tmp_path: Path) -> None:
    made = three(tmp_path)
    extract(tmp_path / "features", ("dihedral",))
    said: list[str] = []
    assert set(feature_sets.prune(tmp_path, keep_mb=0, say=said.append)) == set(made[:2])
    assert said[0] == f"spared {made[2].name}: used within the last hour" and said[-1] == "2 removed"


def test_pruning_takes_only_what_has_a_name_of_ours(tmp_path: Path) -> None:
    made = three(tmp_path)
    for name in ("notes", "ABC", ".tmp-", "0" * 31):
        (tmp_path / "features" / name).mkdir()
        os.utime(tmp_path / "features" / name, (1, 1))
    assert set(feature_sets.prune(tmp_path, keep_mb=0)) == set(made)


def test_runs_of_other_users_are_not_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = three(tmp_path)
    (tmp_path / "a").mkdir()
    RunDir(tmp_path / "a").features_file.write_bytes(b"\xff")
    with pytest.raises(Refusal, match=r"a/features.txt cannot be read"):
        feature_sets.prune(tmp_path, unreferenced=True)
    monkeypatch.setattr(feature_sets, "_is_own", lambda path: False)
    assert set(feature_sets.prune(tmp_path, unreferenced=True)) == set(made)


def test_only_what_dead_processes_left_is_swept(tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    for name, pid in {"dead": dead.pid, "alive": os.getpid()}.items():
        path = tmp_path / "features" / f".tmp-{name}"
        path.mkdir(parents=True)
        (path / "owner.json").write_text(json.dumps({"host": socket.gethostname(), "pid": pid}))
    gone = feature_sets.prune(tmp_path, unused_days=1)
    assert [path.name for path in gone] == [".tmp-dead"]
    assert [path.name for path in (tmp_path / "features").iterdir()] == [".tmp-alive"]


def test_what_a_person_has_put_into_a_set_is_named_and_stays(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = three(tmp_path)
    (made[2] / "notes.md").write_text("mine")
    (made[1] / "plots").mkdir()
    assert main(["features", "prune", str(tmp_path), "--keep-mb", "0"]) == 0
    assert [path.exists() for path in made] == [False, True, True]
    said = capsys.readouterr().out.replace("\n", "")
    assert "notes.md" in said and "plots" in said
