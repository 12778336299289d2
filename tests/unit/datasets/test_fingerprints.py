"""Fingerprints of data sets stay what they were: an old run, its features and its packed set are known by them."""

from pathlib import Path
from typing import Any

import pytest

from tl_dist.config import DataConfig, registry
from tl_dist.datasets import Splits, manifest, packing
from tl_dist.datasets.division import pooled

FILES = {"train": "0dadb7cc7059fcc3", "test": "3a0b0e4e4f421d76"}
FILES_MANIFEST = "ff2158d3215a6ccb"
FILES_POOLED = {"pool": "1742569bcb798d20"}
PACKED = {"train": "635b64b3ad157885", "test": "053ae62bf92bd7b2", "validation": "7b3dc8cf88914e5d"}
PACKED_POOLED = {"pool": "482f7de7ab5761be"}
MEMORY = {"train": "b6d0d33b99f1eefe", "test": "d00933f349400842", "validation": "57883589f4e49b7f"}
MADE_UP = {"train": "5ade3be1854fd146", "validation": "60b98ef60ba644af", "test": "5d6078832246f8bd"}
MADE_UP_POOLED = {"pool": "1f6b39977f339884"}


def opened(name: str, **options: Any) -> Splits:
    splits: Splits = registry.DATASETS[name].open(DataConfig(name=name, **options))
    return splits


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Files that nobody decodes, of two classes, with weights and groups, two splits and one pool."""
    lines = ["path,label,weight,split,group"]
    for k in range(24):
        (tmp_path / f"{k:02}.png").write_bytes(bytes([k]) * (k + 1))
        split = ("train", "train", "test")[k % 3]
        lines.append(f"{k:02}.png,{'ab'[k // 2 % 2]},{1 + k / 8},{split},g{k // 4}")
    (tmp_path / "table.csv").write_text("\n".join(lines))
    return tmp_path / "table.csv"


def starts(splits: Splits) -> dict[str, str]:
    return {name: source.fingerprint[:16] for name, source in splits.items()}


def test_of_image_files_and_their_parts(table: Path) -> None:
    splits = opened("csv", path=str(table))
    assert starts(splits) == FILES
    assert manifest(splits)["digest"][:16] == FILES_MANIFEST
    assert starts({"pool": pooled(splits)}) == FILES_POOLED


def test_of_a_packed_set_with_all_that_it_says_of_examples(
    table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    packing.pack(opened("csv", path=str(table)), tmp_path / "packed", rows=7)
    splits = opened("packed", path=str(tmp_path / "packed"), validation_fraction=0.25)
    assert starts(splits) == PACKED
    assert starts({"pool": pooled(splits)}) == PACKED_POOLED


def test_of_images_in_memory_and_of_made_up_ones() -> None:
    assert starts(opened("digits", validation_fraction=0.1)) == MEMORY
    made = {"num_examples": 50, "num_classes": 5, "image_size": 8}
    assert starts(opened("synthetic", **made, test_fraction=0.2, validation_fraction=0.2)) == MADE_UP
    assert starts({"pool": pooled(opened("synthetic", **made, test_fraction=0.2))}) == MADE_UP_POOLED
