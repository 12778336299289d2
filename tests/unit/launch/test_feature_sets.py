"""Feature sets are listed with what they are; pruning takes what is unused, too much, or left by the dead."""

from __future__ import annotations

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
from tl_dist.launch import feature_sets
from tl_dist.launch.cli import main
from tl_dist.run import RunDir


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
    assert [one.rows for one in found if one.facts] == [11, 22]
    assert [one.facts.get("views") for one in found if one.facts] == [[], ["flip"]]
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
    assert feature_sets.sets(tmp_path)[0].facts["views"] == ["dihedral"]


def test_pruning_takes_the_longest_unused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = three(tmp_path)
    assert main(["features", "prune", str(tmp_path), "--unused-days", "25"]) == 0
    assert [path.exists() for path in made] == [True, True, False]
    small = sum(file.stat().st_size for file in made[0].iterdir()) / 1e6
    feature_sets.prune(tmp_path, keep_mb=small)
    assert [path.exists() for path in made] == [True, False, False]
    assert main(["features", "prune", str(tmp_path)]) == 64
    assert "--unused-days" in capsys.readouterr().err


def test_pruning_by_reference_keeps_what_a_run_has_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
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
