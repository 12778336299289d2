"""Tables and TFRecord files with numbers or several labels: every row is an example, or a line that is named."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from tests.official_layouts import digits_32px, photographs, write_elpv, write_tfrecords
from tl_dist.config import Config, DataConfig
from tl_dist.datasets import Splits, strata_of
from tl_dist.datasets.division import division, open_splits
from tl_dist.datasets.formats.packed import open_packed
from tl_dist.datasets.formats.tfrecord import open_tfrecord
from tl_dist.datasets.packing import pack
from tl_dist.refusal import ExitCode, Refusal

LABELS = ("cat;furry", "dog", "furry", "cat", "dog;furry")


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for k in range(40):
        Image.fromarray(np.full((8, 8, 3), 6 * k, np.uint8)).save(tmp_path / f"{k:02}.png")
    return tmp_path


def opened(root: Path, header: str, rows: list[str], **options: Any) -> Splits:
    (root / "table.csv").write_text("\n".join([header, *rows, ""]))
    return open_splits(DataConfig(name="csv", path=str(root / "table.csv"), **options))[0]


def of_labels(labels: Any) -> list[str]:
    return [f"{k:02}.png,{labels(k)}" for k in range(40)]


def refused(root: Path, header: str, rows: list[str], **options: Any) -> str:
    with pytest.raises(Refusal) as caught:
        opened(root, header, rows, **options)
    assert caught.value.code == ExitCode.DATA
    return str(caught.value)


def test_labels_between_separators(root: Path) -> None:
    source = opened(root, "path,label", of_labels(lambda k: LABELS[k % 5]), separator=";", test_fraction=0.0)["train"]
    assert list(source.class_names) == ["cat", "dog", "furry"]
    assert source.truth[:3].tolist() == [[1, 0, 1], [0, 1, 0], [0, 0, 1]]
    assert source.in_words(source.truth[0]) == "cat, furry" and source.has_labels
    label = next(iter(tf.data.Dataset.range(1).map(source.read)))[1]
    assert label.dtype == tf.float32 and label.numpy().tolist() == [1, 0, 1]
    half = source.subset(np.arange(20, 40))
    np.testing.assert_array_equal(half.truth, source.truth[20:])


def test_columns_of_labels_and_columns_of_numbers(root: Path) -> None:
    rows = of_labels(lambda k: f"{k % 2},{int(k % 3 == 0)},{20 + k / 4}")
    both = opened(root, "path,Cat,dog,age", rows, label_columns=("Cat", "dog"), test_fraction=0.0)["train"]
    assert list(both.class_names) == ["Cat", "dog"] and both.truth[3].tolist() == [1, 1]
    ages = opened(root, "path,cat,dog,Age", rows, target="age", test_fraction=0.0)["train"]
    assert list(ages.class_names) == ["age"] and ages.truth[:3, 0].tolist() == [20, 20.25, 20.5]
    assert not ages.has_labels and ages.in_words(ages.truth[1]) == "age 20.25"
    assert both.fingerprint != ages.fingerprint
    rows[7] = rows[7].replace("21.75", "21.76")
    changed = opened(root, "path,cat,dog,age", rows, target="age", test_fraction=0.0)["train"]
    assert changed.fingerprint != ages.fingerprint


@pytest.mark.parametrize(
    ("line", "options", "why"),
    [
        ("", {"separator": ";"}, "the label is empty. Fix: write each label once; images without any need columns"),
        ("cat;;dog", {"separator": ";"}, "label 'cat;;dog' has an empty label. Fix: write each label once"),
        ("cat;", {"separator": ";"}, "has an empty label"),
        ("cat;cat", {"separator": ";"}, "has a label twice"),
        ("Cat;dog", {"separator": ";"}, "label 'cat' is 'Cat' in line 9. Fix: write it in one way"),
        ("cat|dog", {"separator": ";"}, "holds another separator than ';', and a part of it is a label elsewhere"),
        ("cat", {"target": "label"}, "label is 'cat', which is no number. Fix: write a number, or delete the row"),
        ("", {"target": "label"}, "label is empty"),
        ("inf", {"target": "label"}, "label is inf, which is no finite number"),
        ("nan", {"target": "label"}, "label is nan, which is no finite number"),
        ("1e39", {"target": "label"}, "label is 1e39, which is no finite number"),
        ("2", {"label_columns": ("label",)}, "label is 2: a column of labels holds 0 and 1"),
    ],
)
def test_a_bad_cell_is_named_with_its_line(root: Path, line: str, options: dict[str, Any], why: str) -> None:
    others = LABELS if "separator" in options else ("0", "1")
    rows = of_labels(lambda k: line if k == 7 else others[k % len(others)])
    said = refused(root, "path,label", rows, **options)
    place = "table.csv:2" if "Cat" in line else "table.csv:9"
    assert place in said and why in said


@pytest.mark.parametrize(
    ("label", "options", "why"),
    [
        (lambda k: "cat", {"separator": ";"}, "all labels are 'cat': it takes two"),
        (lambda k: f"animal;{LABELS[k % 5]}", {"separator": ";"}, "every image has the label 'animal'"),
        (lambda k: 7, {"target": "label"}, "label is 7 in every row. Fix: leave this column out"),
        (lambda k: 0, {"label_columns": ("label",)}, "label is 0 in every row"),
        (lambda k: k, {"target": ("label", "age")}, "there is no column 'age', only path, label"),
    ],
)
def test_a_table_that_teaches_nothing_is_refused(root: Path, label: Any, options: dict[str, Any], why: str) -> None:
    assert why in refused(root, "path,label", of_labels(label), **options)


def test_a_packed_set_keeps_targets(root: Path) -> None:
    splits = opened(root, "path,label", of_labels(lambda k: LABELS[k % 5]), separator=";")
    pack(splits, root / "packed", rows=7)
    again = open_packed(DataConfig(name="packed", path=str(root / "packed")))
    assert set(again) == set(splits)
    for name, source in splits.items():
        assert list(again[name].class_names) == list(source.class_names)
        truth = dict(zip(source.ids, source.truth.tolist(), strict=True))
        assert dict(zip(again[name].ids, again[name].truth.tolist(), strict=True)) == truth


def test_tfrecord_lists_and_floats_as_tensorflow_writes_them(root: Path) -> None:
    lists = [[], [3], [0, 2], [1, 2, 3]]
    examples = [
        {"image": image, "label": lists[k % 4], "age": float(k) / 3, "size": [k]}
        for k, image in enumerate(photographs(12))
    ]
    write_tfrecords(root / "data", "all", examples, 2)
    data = DataConfig(name="tfrecord", path=str(root / "data"), separator=";", test_fraction=0.0)
    for _ in range(2):  # the second time from the index that was kept
        several = open_tfrecord(data)["train"]
        assert several.truth.shape == (12, 4)
        assert sorted(map(tuple, several.truth.tolist())) == sorted(
            tuple(float(c in lists[k % 4]) for c in range(4)) for k in range(12)
        )
    both = DataConfig(name="tfrecord", path=str(root / "data"), target=("age", "size"), test_fraction=0.0)
    numbers = open_tfrecord(both)["train"]
    assert list(numbers.class_names) == ["age", "size"]
    expected = sorted((float(np.float32(k / 3)), float(k)) for k in range(12))
    assert sorted(map(tuple, numbers.truth.tolist())) == expected
    with pytest.raises(Refusal, match="it has no weight"):
        open_tfrecord(both.model_copy(update={"target": ("weight",)}))


def test_elpv_s_probability_is_a_target_in_the_strata_of_its_grades(root: Path) -> None:
    write_elpv(root / "elpv", digits_32px(64))
    data = DataConfig(name="elpv", path=str(root / "elpv"), target="probability", test_fraction=0.0)
    grades = data.model_copy(update={"target": (), "grades": ("0", "0.33", "0.67", "1")})
    source, graded = (open_splits(each)[0]["train"] for each in (data, grades))
    of_grades = np.array([0, 1 / 3, 2 / 3, 1], np.float32)[graded.labels]
    np.testing.assert_allclose(source.truth[:, 0], of_grades, atol=0.01)
    pairs = {*zip(strata_of(source).tolist(), strata_of(graded).tolist(), strict=True)}
    assert len(pairs) == len({a for a, _ in pairs}) == len({b for _, b in pairs})
    with pytest.raises(Refusal, match=r"elpv has no target 'age'\. Fix: write 'target: probability'"):
        open_splits(data.model_copy(update={"target": ("age",)}))


def test_splits_are_even_in_numbers_and_labels(root: Path) -> None:
    ages = opened(root, "path,label", of_labels(lambda k: k / 7), target="label", test_fraction=0.0)["train"]
    tenths = strata_of(ages)
    assert np.bincount(tenths).tolist() == [4] * 10
    content = division(ages, test=0.25, validation=0.0, folds=None, group=None, seed=0)
    held = [float(name[:2]) for name in content["splits"]["test"]]
    assert len({int(k // 4) for k in held}) == 10 == len(held)
    several = opened(root, "path,label", of_labels(lambda k: LABELS[k % 5]), separator=";", test_fraction=0.0)["train"]
    folds = division(several, test=0.0, validation=0.0, folds=4, group=None, seed=0)["folds"]
    row = {name: k for k, name in enumerate(several.ids)}
    counts = np.array([several.truth[[row[name] for name in fold]].sum(axis=0) for fold in folds])
    assert np.ptp(counts, axis=0).max() <= 1


def config(**settings: Any) -> Config:
    whole = {"name": "x", "epochs": 1, "model": {"backbone": "tiny"}, "optimizer": {"learning_rate": 0.1}}
    return Config.model_validate({**whole, **settings})


def test_a_task_fills_in_what_it_reads_and_its_loss() -> None:
    cases = (
        ("multilabel", {"name": "csv"}, "separator", ";", "binary_cross_entropy"),
        ("multilabel", {"name": "csv", "label_columns": ["a"]}, "separator", None, "binary_cross_entropy"),
        ("regression", {"name": "csv"}, "target", ("label",), "squared_error"),
        ("regression", {"name": "elpv"}, "target", ("probability",), "squared_error"),
        ("classification", {"name": "csv"}, "target", (), "cross_entropy"),
        ("ordinal", {"name": "csv"}, "separator", None, "corn"),
    )
    for task, data, key, value, loss in cases:
        cfg = config(task=task, data=data)
        assert getattr(cfg.data, key) == value and cfg.loss.name == loss
