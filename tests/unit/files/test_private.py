"""What others could change is not believed, and what honest people set up is."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tl_dist.files.private import make_private, refuse_unsafe
from tl_dist.refusal import ExitCode, Refusal


def refused(directory: Path, **how: bool) -> str:
    with pytest.raises(Refusal) as caught:
        refuse_unsafe(directory, **how)
    assert caught.value.code == ExitCode.UNSAFE and caught.value.fix
    return str(caught.value)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    make_private(tmp_path / "own")
    return tmp_path / "own"


def test_what_is_made_is_private_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        make_private(tmp_path / "new")
    finally:
        os.umask(before)
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o700
    make_private(tmp_path / "new")
    refuse_unsafe(tmp_path / "not there")


@pytest.mark.parametrize("mode", [0o770, 0o702, 0o1777])
def test_what_others_can_write_is_refused(directory: Path, mode: int) -> None:
    directory.chmod(mode)
    assert "chmod go-w" in refused(directory)


def test_what_belongs_to_another_user_is_refused(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: directory.stat().st_uid + 1)
    assert "belongs to user" in refused(directory)
    refuse_unsafe(directory, shared=True)


def test_a_link_is_followed_only_where_one_makes_sense(directory: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(directory)
    assert "is a symbolic link" in refused(link)
    refuse_unsafe(link, links=True)
    make_private(link)
    directory.chmod(0o770)
    assert "chmod go-w" in refused(link, links=True)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a link away")
def test_the_link_of_another_user_is_refused(directory: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(directory)
    os.lchown(link, 12345, 12345)
    assert "belongs to user 12345" in refused(link, links=True)


@pytest.mark.parametrize("mode", [0o2775, 0o1777, 0o755])
def test_a_directory_of_a_group_may_hold_private_ones(directory: Path, mode: int) -> None:
    directory.chmod(mode)
    refuse_unsafe(directory, links=True, shared=True)


def test_not_one_from_which_every_user_can_take_things_away(directory: Path) -> None:
    directory.chmod(0o777)
    assert "chmod o-w" in refused(directory, shared=True)


@pytest.mark.parametrize("what", ["a file", "a link to nothing"])
def test_no_directory_is_refused(tmp_path: Path, what: str) -> None:
    path = tmp_path / "thing"
    path.symlink_to("nowhere") if "link" in what else path.touch()
    assert "is not a directory" in refused(path, links=True)
    with pytest.raises(Refusal, match="is not a directory"):
        make_private(path)
