"""What others could change is not believed, and what honest people set up is."""

import os
import subprocess
from pathlib import Path

import pytest

from tl_dist.files import limits
from tl_dist.files.private import make_private, refuse_unsafe, refuse_unsafe_below
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


@pytest.fixture
def tree(directory: Path) -> Path:
    """As an archive is unpacked with a umask of 022: everybody may read it."""
    (directory / "sub" / "deep").mkdir(parents=True)
    (directory / "sub" / "deep" / "file").write_text("x")
    for path in (directory, *directory.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    return directory


def refused_below(directory: Path) -> str:
    with pytest.raises(Refusal) as caught:
        refuse_unsafe_below(directory)
    assert caught.value.code == ExitCode.UNSAFE
    return str(caught.value)


def test_what_others_can_read_is_their_business(tree: Path) -> None:
    refuse_unsafe_below(tree)
    refuse_unsafe_below(tree / "not there")


@pytest.mark.parametrize("entry", ["sub", "sub/deep", "sub/deep/file"])
@pytest.mark.parametrize("mode", [0o020, 0o002])
def test_nothing_that_others_can_write_is_believed_however_deep(tree: Path, entry: str, mode: int) -> None:
    path = tree / entry
    path.chmod(path.stat().st_mode | mode)
    said = refused_below(tree)
    assert f"{path} can be written by other users" in said
    assert os.system(said.partition("then: ")[2]) == 0  # which mends it
    refuse_unsafe_below(tree)


def test_logs_may_be_written_as_slurm_and_shells_make_them_but_are_no_links(tree: Path) -> None:
    for name in ("slurm_7.out", "sub/rank_0000.out", "nohup.log"):
        (tree / name).write_text("")
        (tree / name).chmod(0o664)
    refuse_unsafe_below(tree)
    (tree / "a.out").symlink_to("file")
    assert "a.out is a symbolic link" in refused_below(tree)


@pytest.mark.parametrize("entry", ["link", "sub/deep/link"])
@pytest.mark.parametrize("to", ["/etc/passwd", "nowhere", "/tmp", "file"])
def test_no_link_is_below(tree: Path, entry: str, to: str) -> None:
    (tree / entry).symlink_to(to)
    assert f"{tree / entry} is a symbolic link" in refused_below(tree)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
@pytest.mark.parametrize("entry", ["sub/deep", "sub/deep/file"])
def test_what_another_user_owns_is_refused_but_not_what_root_owns(
    tree: Path, entry: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.chown(tree / entry, 12345, -1)
    assert "belongs to user 12345" in refused_below(tree) and "chown -hR 0" in refused_below(tree)
    os.chown(tree / entry, 0, -1)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    refuse_unsafe_below(tree)


def test_a_tree_without_end_is_refused(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tree
    for _ in range(1500):  # deeper than functions that call themselves can go
        place = place / "a"
        place.mkdir()
    try:
        refuse_unsafe_below(tree)
        monkeypatch.setattr(limits, "RUN_ENTRIES", 1000)
        assert "holds more than 1,000 files" in refused_below(tree)
    finally:
        subprocess.run(["rm", "-rf", tree / "a"], check=True)  # shutil calls itself
