"""A data set's folders are looked at once, and again as soon as something in them may have changed."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.doubles import CONFIG, PARALLEL
from tests.official_layouts import digits_32px, write_image_folder
from tl_dist.config import DataConfig
from tl_dist.datasets import directory_cache, quarantine
from tl_dist.datasets.division import open_splits
from tl_dist.refusal import Refusal
from tl_dist.runs.directory import RunDir
from tl_dist.trainer import examples


class Looks:
    """Counts the folders that are listed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.paths: list[str] = []
        scanned = directory_cache._scanned

        def counted(path: str) -> Any:
            self.paths.append(Path(path).name)
            return scanned(path)

        monkeypatch.setattr(directory_cache, "_scanned", counted)

    def taken(self) -> list[str]:
        """Those since the last call."""
        found, self.paths = sorted(self.paths), []
        return found


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> Looks:
    monkeypatch.setattr(directory_cache, "SETTLED_S", 0)
    return Looks(monkeypatch)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """train/a and train/b, three images each."""
    write_image_folder(tmp_path / "data" / "train", digits_32px(6), ["a", "b"] * 5)
    return tmp_path / "data"


def opened(root: Path, *, writes: bool = True, **more: Any) -> list[str]:
    """The ids of all training examples, opened as a worker does."""
    data = DataConfig(name="image_folder", path=str(root), validation_fraction=0)
    with directory_cache.kept(root.parent / "listings", str(root), writes=writes, **more):
        return list(open_splits(data)[0]["train"].ids)


ALL = ["a", "b", "data", "train"]


def test_nothing_is_listed_twice_and_nothing_at_all_by_the_next(root: Path, looks: Looks) -> None:
    first = opened(root)
    assert looks.taken() == ALL
    assert opened(root, writes=False) == opened(root) == first
    assert looks.taken() == []


def test_a_folder_that_has_changed_is_listed_and_no_other(root: Path, looks: Looks) -> None:
    """Also where an archive or rsync has set its time back."""
    opened(root)
    status = (root / "train" / "a").stat()
    image = next((root / "train" / "a").iterdir())
    (image.with_name("new.png")).write_bytes(image.read_bytes())
    os.utime(root / "train" / "a", ns=(status.st_atime_ns, status.st_mtime_ns))
    looks.taken()
    assert "train/a/new.png" in opened(root)
    assert looks.taken() == ["a"]
    assert "train/a/new.png" in opened(root)
    assert looks.taken() == []


def test_a_folder_that_has_just_changed_is_not_believed(
    root: Path, looks: Looks, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(directory_cache, "SETTLED_S", 3600)
    opened(root)
    opened(root)
    assert looks.taken() == sorted(2 * ALL)


def test_only_who_may_writes_and_a_damaged_file_is_made_again(root: Path, looks: Looks) -> None:
    first = opened(root, writes=False)
    assert not (root.parent / "listings").exists()
    opened(root)
    (file,) = (root.parent / "listings").iterdir()
    whole = file.read_bytes()
    for content in (b"", b"x", whole[: len(whole) // 2], whole.replace(b"[", b"{"), b"[1]", b'{"a": [1]}'):
        file.write_bytes(content)
        looks.taken()
        assert opened(root) == first
        assert looks.taken() == ALL
    assert opened(root, writes=False) == first
    assert looks.taken() == []


def test_the_first_look_waits_for_who_lists(root: Path, looks: Looks) -> None:
    assert opened(root, writes=False, begin=lambda: opened(root)) == opened(root)
    assert looks.taken() == ALL


def test_links_and_what_they_lead_to(root: Path, looks: Looks, tmp_path: Path) -> None:
    """A folder of images elsewhere, a link that leads nowhere, and one that leads to a folder which holds it."""
    write_image_folder(tmp_path / "elsewhere", digits_32px(6), ["c"] * 10)
    (root / "train" / "c").symlink_to(tmp_path / "elsewhere" / "c")
    first = opened(root)
    assert len(first) == 12 and opened(root) == first
    next((tmp_path / "elsewhere" / "c").iterdir()).unlink()
    assert len(opened(root)) == 11
    (root / "train" / "c" / "loop").symlink_to(tmp_path / "elsewhere")
    for _ in range(2):
        with pytest.raises(Refusal, match="link to a folder that holds it"):
            opened(root)
    (tmp_path / "elsewhere" / "c" / "loop").unlink()
    (root / "train" / "c" / "gone").symlink_to(tmp_path / "nowhere")
    for _ in range(2):
        with pytest.raises(Refusal, match="leads nowhere"):
            opened(root)


def test_a_file_that_was_changed_in_its_place_is_another_data_set(root: Path, looks: Looks) -> None:
    """No folder shows it; the fingerprint, by which a run knows its data, has the size in it."""
    run = RunDir(root.parent / "runs" / "x")
    (run.path / "heartbeats").mkdir(parents=True)
    os.chmod(run.path.parent, 0o700)
    data = DataConfig(name="image_folder", path=str(root), validation_fraction=0)
    cfg = CONFIG.model_copy(update={"data": data})
    before = examples.readable(cfg, run, PARALLEL, 1)
    assert examples.readable(cfg, run, PARALLEL, 1).opened["train"].fingerprint == before.opened["train"].fingerprint
    looks.taken()
    image = root / before.opened["train"].ids[3]
    with image.open("ab") as file:
        file.write(b"more")
    after = examples.readable(cfg, run, PARALLEL, 1)
    assert looks.taken() == ALL
    assert after.opened["train"].store.sizes[3] == image.stat().st_size
    assert after.opened["train"].fingerprint != before.opened["train"].fingerprint
    assert np.array_equal(after.opened["train"].labels, before.opened["train"].labels)
    with pytest.raises(quarantine.Changed, match=f"{image.name} has changed since.*Fix: "):
        quarantine.screen(before.opened, cache=root.parent / "checks")


def test_of_a_table_only_its_own_images_are_asked_for_and_by_nobody_else(
    root: Path, looks: Looks, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder has more; an image that is added to the table is asked for with the others of its folder."""
    images = sorted(path.relative_to(root).as_posix() for path in (root / "train").rglob("*.png"))
    table, asked, stat = root / "table.csv", [], os.stat

    def counted(path: Any, **more: Any) -> os.stat_result:
        asked.append(os.fspath(path))
        return stat(path, **more)

    def taken(paths: list[str], *, writes: bool = True) -> list[str]:
        rows = [f"{path},{k % 2}" for k, path in enumerate(paths)]
        table.write_text("\n".join(["path,label", *rows]))
        monkeypatch.setattr(os, "stat", counted)
        with directory_cache.kept(root.parent / "listings", str(table), writes=writes):
            splits, _ = open_splits(DataConfig(name="csv", path=str(table), validation_fraction=0, test_fraction=0))
        monkeypatch.setattr(os, "stat", stat)
        assert sum(source.num_examples for source in splits.values()) == len(paths)
        found = sorted(path for path in asked if path.endswith(".png"))
        asked.clear()
        return [Path(path).relative_to(root).as_posix() for path in found]

    some = [path for k, path in enumerate(images) if k not in (0, len(images) - 1)]
    assert taken(some) == some
    assert taken(some, writes=False) == []
    assert taken(some[1:]) == []
    assert taken(images[:-1]) == [path for path in images if path.startswith("train/a/")]
    assert taken(images[:-1]) == []
    assert looks.taken() == []
    (root / images[1]).unlink()
    with pytest.raises(Refusal, match=r"table.csv:3: .* cannot be read: No such file or directory"):
        taken(images[:-1])
