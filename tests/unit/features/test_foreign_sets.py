"""A set that is not what it says is computed again or refused: nothing else is read, removed or written by its word."""

import hashlib
import io
import json
import pickle
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tests.doubles import PREFIX, build, extract
from tl_dist.features.manifest import MANIFEST
from tl_dist.features.stored import FeatureSet
from tl_dist.refusal import ExitCode, Refusal

KNOWN = replace(PREFIX, shape=(4, 8))

Lie = Callable[[dict[str, Any], Path], None]


def named(name: str) -> Lie:
    def lie(manifest: dict[str, Any], directory: Path) -> None:
        manifest["shards"][0]["file"] = name

    return lie


def told(**changes: Any) -> Lie:
    def lie(manifest: dict[str, Any], directory: Path) -> None:
        manifest.update(changes)

    return lie


def holding(content: Callable[[np.ndarray], bytes], **changes: Any) -> Lie:
    """A file of other content, with its right digest."""

    def lie(manifest: dict[str, Any], directory: Path) -> None:
        file = directory / "shard-0000.npy"
        data = content(np.load(file))
        file.write_bytes(data)
        manifest["shards"][0]["sha256"] = hashlib.sha256(data).hexdigest()
        manifest["shards"][0].update(changes.pop("shard", {}))
        manifest.update(changes)

    return lie


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def linked(manifest: dict[str, Any], directory: Path) -> None:
    (directory / "shard-0000.npy").unlink()
    (directory / "shard-0000.npy").symlink_to(directory.parents[1] / "thesis.tex")


LIES: dict[str, Lie] = {
    "a file above the set": named("../../thesis.tex"),
    "a file by its whole path": named("/etc/hostname"),
    "a hidden file": named(".hidden"),
    "a file with a line break": named("shard-0000.npy\n"),
    "the same file twice": lambda manifest, _: manifest.update(shards=manifest["shards"] * 2),
    "a link": linked,
    "another shape": told(shape=[8, 4]),
    "a shape that the files have, too": holding(lambda rows: npy(rows.reshape(11, 8, 4)), shape=[8, 4]),
    "a shape of no end": told(shape=[1 << 62] * 4),
    "a shape that is a number": told(shape=3),
    "no shape": told(shape=None),
    "another number format": told(dtype="float16"),
    "one that is none": told(dtype="|O"),
    "computed in one that is none": told(computed="string"),
    "more rows": holding(lambda rows: npy(np.concatenate([rows, rows])), shard={"rows": 22}),
    "fewer rows": holding(lambda rows: npy(rows[:5]), shard={"rows": 5}),
    "rows that are not there": holding(lambda rows: npy(rows[:5])),
    "minus one row": told(shards=[{"file": "shard-0000.npy", "rows": -1, "sha256": "0" * 64}]),
    "no files": told(shards=[]),
    "facts that are a list": told(facts=[]),
    "pickled objects": holding(lambda rows: npy(np.array([print], object))),
    "a pickle": holding(lambda rows: pickle.dumps(rows)),
    "a file that is cut off": holding(lambda rows: npy(rows)[:-8]),
    "no file at all": holding(lambda rows: b""),
}


@pytest.mark.parametrize("lie", LIES.values(), ids=LIES)
def test_a_set_that_lies_is_computed_again(tmp_path: Path, lie: Lie) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    features, _ = extract(tmp_path / "features", prefix=KNOWN)
    expected = features.array()
    file = features.directory / MANIFEST
    manifest = json.loads(file.read_text())
    lie(manifest, features.directory)
    file.write_text(json.dumps(manifest))
    again, records = extract(tmp_path / "features", prefix=KNOWN)
    assert "computed again" in records[0]["text"]
    np.testing.assert_array_equal(again.array(), expected)
    assert {path.name for path in tmp_path.iterdir()} == {"features", "thesis.tex"}
    assert {path.name for path in (tmp_path / "features").iterdir()} == {features.directory.name}
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


@pytest.mark.parametrize("content", ["[" * 100_000, "\ud800", '{"a": NaN', "5", "null", ""])
def test_a_manifest_that_is_no_manifest_is_made_again(tmp_path: Path, content: str) -> None:
    features, _ = extract(tmp_path)
    (features.directory / MANIFEST).write_text(content, errors="surrogatepass")
    again, _ = extract(tmp_path)
    np.testing.assert_array_equal(again.array(), features.array())


@pytest.mark.parametrize("place", ["root", "set"])
def test_a_place_that_others_can_write_is_refused(tmp_path: Path, place: str) -> None:
    features, _ = extract(tmp_path / "features")
    directory = features.directory if place == "set" else tmp_path / "features"
    directory.chmod(0o777)
    with pytest.raises(Refusal, match=f"{directory} can be written by other users") as refused:
        extract(tmp_path / "features")
    assert refused.value.code == ExitCode.UNSAFE


def test_sets_may_be_on_another_disk(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir(mode=0o700)
    (tmp_path / "features").symlink_to(tmp_path / "disk")
    features, _ = extract(tmp_path / "features")
    assert (tmp_path / "disk" / features.directory.name / MANIFEST).is_file()


def test_a_set_that_is_removed_while_it_is_read_stays_readable(tmp_path: Path) -> None:
    features, _ = extract(tmp_path)
    expected = FeatureSet.open(features.directory, 1).array()
    shutil.rmtree(features.directory)
    np.testing.assert_array_equal(features.array(), expected)
    rows = features.rows(tf.range(11, dtype=tf.int64), tf.zeros(11, tf.int32))
    np.testing.assert_array_equal(tf.cast(rows, tf.float32), expected[:, 0])


def test_a_set_that_is_removed_before_it_is_open_is_computed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened, tries = FeatureSet.open, iter(range(10))

    def pruned_once(directory: Path, num_views: int) -> FeatureSet:
        if next(tries) == 0:
            shutil.rmtree(directory)
        return opened(directory, num_views)

    monkeypatch.setattr(FeatureSet, "open", pruned_once)
    features, _ = extract(tmp_path)
    assert len(features.array()) == 11 and next(tries) == 2


def test_a_set_that_is_removed_every_time_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def pruned(directory: Path, num_views: int) -> FeatureSet:
        raise FileNotFoundError

    monkeypatch.setattr(FeatureSet, "open", pruned)
    with pytest.raises(Refusal, match="removed as soon as they are there") as refused:
        extract(tmp_path)
    assert refused.value.code == ExitCode.STORAGE


def test_the_shape_that_the_model_expects_is_that_of_its_prefix() -> None:
    for train_from, layers in (("head", []), ("block3", []), ("head", ["block1", "block3"])):
        model = build(train_from=train_from, layers=layers, pooling="both" if layers else "average")
        output = model.prefix(tf.zeros([2, 32, 32, 3], tf.uint8))
        assert tuple(output.shape[1:]) == model.prefix_shape
