"""`data.grades` orders the classes: each example keeps the name of its class, and splits stay parts of one source."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tl_dist.config import DataConfig
from tl_dist.datasets import pool_of
from tl_dist.datasets.division import open_splits, pooled
from tl_dist.datasets.formats.elpv import NUM_CELLS
from tl_dist.refusal import Refusal

NAMES = ("mild", "none", "severe")  # as a folder has them


@pytest.fixture
def eyes(tmp_path: Path) -> Path:
    for k in range(30):
        (tmp_path / "eyes" / NAMES[k % 3]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8, 3), k, np.uint8)).save(tmp_path / "eyes" / NAMES[k % 3] / f"{k}.png")
    return tmp_path / "eyes"


def opened(eyes: Path, *grades: str) -> DataConfig:
    return DataConfig(name="image_folder", path=str(eyes), grades=grades, validation_fraction=0.2)


def test_each_example_keeps_its_class_and_each_split_its_examples(eyes: Path) -> None:
    plain, _ = open_splits(opened(eyes))
    ordered, _ = open_splits(opened(eyes, "none", "mild", "severe"))
    assert plain.keys() == ordered.keys()
    for name, source in ordered.items():
        assert list(source.class_names) == ["none", "mild", "severe"]
        assert list(source.ids) == list(plain[name].ids)
        of = [source.class_names[label] for label in source.labels]
        assert of == [plain[name].class_names[label] for label in plain[name].labels]
        assert [source.location(k).path for k in range(len(of))] == [
            plain[name].location(k).path for k in range(len(of))
        ]
        assert source.fingerprint != plain[name].fingerprint


def test_the_splits_are_of_one_source(eyes: Path) -> None:
    """Else they would be joined as if they were of several, and a fold would pass for an official split."""
    splits, _ = open_splits(opened(eyes, "severe", "none", "mild"))
    pools = [pool_of(source)[0] for source in splits.values()]
    assert len(pools) == 3 and all(pool is pools[0] for pool in pools)
    assert pool_of(pooled(splits))[0] is pools[0]


@pytest.mark.parametrize("grades", [("none", "mild"), ("none", "mild", "severe", "worse"), ("none", "none", "severe")])
def test_other_grades_than_the_classes_are_refused(eyes: Path, grades: tuple[str, ...]) -> None:
    with pytest.raises(Refusal, match=r"but the classes are mild, none, severe. Fix: write each class once"):
        open_splits(opened(eyes, *grades))


def test_cells_have_the_four_grades_of_the_experts() -> None:
    data = DataConfig.model_validate({"name": "elpv", "grades": [0, 0.33, 0.67, 1]})
    pool = pooled(open_splits(data)[0])
    assert list(pool.class_names) == ["0", "0.33", "0.67", "1"] and pool.num_examples == NUM_CELLS
    counts = np.bincount(pool.labels)
    assert counts.tolist() == [1508, 295, 106, 715]  # table 1 of the paper
    binary = pooled(open_splits(DataConfig(name="elpv"))[0])
    assert (binary.labels == (pool.labels[np.argsort(pool.ids)] >= 2)[np.argsort(np.argsort(binary.ids))]).all()
