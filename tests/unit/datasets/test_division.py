"""Splits that are written down: stratified, grouped, and used by id or not at all."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from tests.doubles import memory_source
from tests.official_layouts import digits_32px, write_cifar10_binary, write_image_folder
from tl_dist.cli.main import main
from tl_dist.config import DataConfig
from tl_dist.datasets import manifest, quarantine
from tl_dist.datasets.division import division, open_splits, pooled, read_manifest
from tl_dist.datasets.formats.image_folder import open_image_folder
from tl_dist.refusal import ExitCode, Refusal

NAMES = [f"digit {k}" for k in range(10)]


def divided(pool: Any, **options: Any) -> dict[str, Any]:
    return division(pool, **{"test": 0.0, "validation": 0.0, "folds": None, "group": None, "seed": 0, **options})


def labels_of(ids: list[str]) -> list[int]:
    return np.bincount([int(i) % 3 for i in ids], minlength=3).tolist()  # type: ignore[no-any-return]


def test_fractions_are_of_all_examples_and_of_each_class() -> None:
    made = divided(memory_source(300), test=0.2, validation=0.1)
    counts = {name: labels_of(ids) for name, ids in made["splits"].items()}
    assert counts == {"train": [70, 70, 70], "test": [20, 20, 20], "validation": [10, 10, 10]}
    assert sorted(int(i) for ids in made["splits"].values() for i in ids) == list(range(300))
    assert made == divided(memory_source(300), test=0.2, validation=0.1)
    assert made["splits"] != divided(memory_source(300), test=0.2, validation=0.1, seed=1)["splits"]


def test_folds_are_disjoint_complete_and_stratified() -> None:
    folds = divided(memory_source(300), folds=5)["folds"]
    assert [labels_of(fold) for fold in folds] == [[20, 20, 20]] * 5
    assert len({i for fold in folds for i in fold}) == 300
    assert folds == divided(memory_source(300), folds=5)["folds"]
    assert folds != divided(memory_source(300), folds=5, seed=1)["folds"]


@pytest.mark.parametrize("options", [{"folds": 4}, {"test": 0.25, "validation": 0.2}])
def test_groups_stay_together(options: dict[str, Any]) -> None:
    source = replace(memory_source(300), ids=[f"module{k // 10}/{k}.png" for k in range(300)])
    made = divided(source, group=r"(module\d+)/", **options)
    parts = made.get("folds") or list(made["splits"].values())
    modules = [{name.split("/")[0] for name in part} for part in parts]
    assert all(modules) and sum(map(len, modules)) == len(set().union(*modules)) == 30
    assert sum(map(len, parts)) == 300
    for group, said in (("patient", "is not found in module0/0"), ("(", "no regular expression")):
        with pytest.raises(Refusal, match=said):
            divided(source, group=group, **options)


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """40 digits of 10 patients, who are in the files' names nowhere, with weights and a split of their own."""
    (tmp_path / "images").mkdir()
    lines = ["path,label,Patient,weight,split,site"]
    for k, image in enumerate(digits_32px(40).images):
        Image.fromarray(image).save(tmp_path / "images" / f"{k:02}.png")
        lines.append(f"images/{k:02}.png,{k % 2},p{k // 4},{1 + k},{'test' if k >= 30 else 'train'},s{k}")
    (tmp_path / "table.csv").write_text("\n".join(lines) + "\n")
    return tmp_path / "table.csv"


def patients(ids: Sequence[str]) -> set[int]:
    return {int(Path(name).stem) // 4 for name in ids}


@pytest.mark.parametrize("options", [["--folds", "5"], ["--test", "0.2", "--validation", "0.2"]])
def test_a_column_groups_the_rows_of_a_table(
    options: list[str], table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "split.json"
    command = ["data", "split", str(table), "--to", str(file), "--json", *options]
    assert main([*command, "--group", "patient"]) == 0
    content = read_manifest(file)
    parts = content.get("folds") or list(content["splits"].values())
    assert sum(len(patients(ids)) for ids in parts) == 10 == len(set().union(*map(patients, parts)))
    assert sum(map(len, parts)) == 40
    assert list(json.loads(capsys.readouterr().out)["groups"].values()) == [len(patients(p)) for p in parts]
    folds = {"fold": 1, "validation_fraction": 0.25} if "folds" in content else {"validation_fraction": 0.0}
    data = DataConfig(name="csv", path=str(table), split=str(file), **folds)
    splits, _ = open_splits(data)
    assert sum(len(patients(s.ids)) for s in splits.values()) == 10 and len(splits) == 3
    for source in splits.values():  # what else the table says comes along
        weights = source.annotations.weights
        assert weights is not None and weights.tolist() == [1 + int(Path(i).stem) for i in source.ids]


def test_the_group_column_of_a_table_is_the_default(table: Path) -> None:
    table.write_text(table.read_text().replace("Patient", "group"))
    splits, _ = open_splits(DataConfig(name="csv", path=str(table)))
    folds = divided(pooled(splits), folds=5)["folds"]
    assert sum(len(patients(ids)) for ids in folds) == 10


def test_a_column_that_cannot_group_is_refused(table: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["data", "split", str(table), "--test", "0.2", "--to", str(table.with_name("split.json"))]
    assert main([*command, "--group", "pateint"]) == ExitCode.USAGE
    said = capsys.readouterr().err
    assert "group 'pateint' is no column of" in said
    assert "Fix: name one of the columns path, label, patient, weight, split, site, or" in said
    assert main([*command, "--group", r"/(\d\d)\.png"]) == 0  # a regular expression, as on any data set
    table.write_text(table.read_text().replace(",p3,", ",,"))
    assert main([*command, "--group", "patient"]) == ExitCode.DATA
    assert "table.csv:14: the patient is empty." in capsys.readouterr().err


def test_more_folds_than_examples_of_a_class_are_refused() -> None:
    with pytest.raises(Refusal, match="20 folds need as many examples of each class and type; there are 10"):
        divided(memory_source(30), folds=20)
    source = replace(memory_source(30), ids=[f"module{k // 10}/{k}.png" for k in range(30)])
    with pytest.raises(Refusal, match="5 folds need as many groups; there are 3"):
        divided(source, folds=5, group=r"module\d+")


@pytest.fixture
def split_file(tmp_path: Path) -> Path:
    """Folder data with a test split of its own, and a manifest that pools and divides it again."""
    root = tmp_path / "data"
    write_image_folder(root / "train", digits_32px(100), NAMES)
    write_image_folder(root / "test", digits_32px(60, start=100), NAMES)
    file = tmp_path / "split.json"
    assert main(["data", "split", str(root), "--test", "0.25", "--to", str(file), "--json"]) == 0
    return file


def config(split_file: Path, **options: Any) -> DataConfig:
    path = str(split_file.parent / "data")
    return DataConfig(name="image_folder", path=path, split=str(split_file), **options)


def test_a_data_set_is_divided_by_the_manifest(split_file: Path) -> None:
    splits, digest = open_splits(config(split_file))
    written = read_manifest(split_file)
    assert digest == written["digest"]
    assert {name: list(source.ids) for name, source in splits.items()} == written["splits"]
    assert {name: source.num_examples for name, source in splits.items()} == {"train": 120, "test": 40}
    both = {name.split("/")[0] for name in splits["train"].ids}
    assert both == {"train", "test"}
    for source in splits.values():  # pixels and labels come from the file that the id names
        for k, (image, label) in enumerate(tf.data.Dataset.range(source.num_examples).map(source.read)):
            folder, name, number = source.ids[k].split("/")
            origin = digits_32px(1, start=int(number[:5]) + (100 if folder == "test" else 0))
            np.testing.assert_array_equal(image, origin.images[0])
            assert NAMES[int(label)] == name and source.labels[k] == label
    assert manifest(splits)["digest"] == manifest(open_splits(config(split_file))[0])["digest"]


def test_the_quarantine_knows_the_files_of_a_pool(split_file: Path, tmp_path: Path) -> None:
    splits, _ = open_splits(config(split_file))
    victim = next(name for name in splits["test"].ids if name.startswith("test/"))
    (tmp_path / "data" / victim).write_bytes(b"")
    splits, _ = open_splits(config(split_file))
    assert [(bad.split, bad.id) for bad in quarantine.screen(splits, cache=tmp_path / "cache")] == [("test", victim)]


def test_another_data_set_or_a_changed_manifest_is_refused(split_file: Path) -> None:
    content = json.loads(split_file.read_text())
    content["splits"]["train"].pop()
    split_file.with_name("changed.json").write_text(json.dumps(content))
    with pytest.raises(Refusal, match="was changed: its digest") as refused:
        open_splits(config(split_file.with_name("changed.json")))
    assert refused.value.code == ExitCode.UNSAFE
    split_file.with_name("text.json").write_text("no JSON")
    with pytest.raises(Refusal, match="is no manifest"):
        open_splits(config(split_file.with_name("text.json")))
    next((split_file.parent / "data" / "train" / "digit 3").iterdir()).unlink()
    with pytest.raises(Refusal, match="1 of its ids are not in this one, and 0 of this one") as refused:
        open_splits(config(split_file))
    assert refused.value.code == ExitCode.UNSAFE


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda names: names.append(names[0]), r"first an example twice"),
        (lambda names: names.pop(), r"0 of its ids are not in this one, and 1 of this one not in it"),
    ],
)
def test_a_manifest_that_does_not_name_every_example_once_is_refused(change: Any, why: str, split_file: Path) -> None:
    content = json.loads(split_file.read_text())
    del content["digest"]
    change(content["splits"]["train"])
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    split_file.write_text(json.dumps({"digest": digest, **content}))
    with pytest.raises(Refusal, match=why):
        open_splits(config(split_file))


def test_a_pool_knows_the_file_of_every_example(split_file: Path) -> None:
    pool = pooled(open_image_folder(config(split_file).model_copy(update={"split": None, "test_fraction": 0.0})))
    assert pool.cut_from is None and pool.num_examples == 160
    assert [str(pool.location(k).path)[-len(name) :] for k, name in enumerate(pool.ids)] == list(pool.ids)


def test_a_fold_is_tested_on_and_the_others_trained_on(tmp_path: Path, capsys: Any) -> None:
    write_cifar10_binary(tmp_path, digits_32px(150), digits_32px(50, start=150))
    file = tmp_path / "folds.json"
    assert main(["data", "split", str(tmp_path), "--folds", "4", "--to", str(file)]) == 0
    out = capsys.readouterr().out
    assert "fold 0" in out and "fold 3" in out and "fold 4" not in out
    data = DataConfig(name="cifar10", path=str(tmp_path), split=str(file), fold=1)
    splits, _ = open_splits(data)
    assert list(splits["test"].ids) == read_manifest(file)["folds"][1]
    assert set(splits["train"].ids).isdisjoint(splits["test"].ids) and splits["train"].num_examples == 150
    held_out, _ = open_splits(data.model_copy(update={"validation_fraction": 0.2}))
    assert held_out["validation"].num_examples == 40  # of all 200, as without folds
    for fold in (None, 4):
        with pytest.raises(Refusal, match="holds 4 folds"):
            open_splits(data.model_copy(update={"fold": fold}))


@pytest.mark.parametrize("arguments", [[], ["--test", "0.9", "--validation", "0.3"], ["--folds", "3", "--test", "0.1"]])
def test_fractions_that_make_no_sense_are_refused(arguments: list[str], tmp_path: Path, capsys: Any) -> None:
    assert main(["data", "split", str(tmp_path), *arguments]) == ExitCode.USAGE
    assert "Fix: such as --test" in " ".join(capsys.readouterr().err.split())
