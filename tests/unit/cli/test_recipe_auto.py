"""`recipe: auto`: Big Transfer's rule for what a config leaves out; what it says wins."""

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tl_dist.config import Config, ScheduleConfig, auto
from tl_dist.config import file as config_file
from tl_dist.launcher import auto_config
from tl_dist.refusal import ExitCode, Refusal

LEAST = "recipe: auto\ndata: {name: digits}\nmodel: {backbone: vgg16}\n"


def load(folder: Path, text: str, *overrides: str) -> Config:
    file = folder / "x.yaml"
    file.write_text(text)
    return config_file.load(file, overrides, choose=auto_config.values_for)


@pytest.mark.parametrize(
    ("num_examples", "steps", "mixup"),
    [(19_999, 500, 0.0), (20_000, 10_000, 0.1), (499_999, 10_000, 0.1), (500_000, 20_000, 0.1)],
)
def test_length_and_mixup_follow_the_number_of_examples(num_examples: int, steps: int, mixup: float) -> None:
    found = auto.auto({"global_batch": 512}, num_examples, 300 * 300, 224)
    assert found["steps"] == steps
    assert found["data"]["augmentation"]["mixup"] == mixup
    assert found["optimizer"]["learning_rate"] == 0.003
    assert auto.auto({"global_batch": 32}, num_examples, 300 * 300, 224)["steps"] == steps * 16
    drops = [epochs * num_examples / 512 for epochs in found["optimizer"]["schedule"]["drop_at_epochs"]]
    part = (0.4, 0.6, 0.8) if steps == 500 else (0.3, 0.6, 0.9)
    assert drops == pytest.approx([steps * p for p in part], rel=1e-2)


@pytest.mark.parametrize(("side", "size", "crop"), [(95, 128, 0.64), (96, 224, 0.8789), (500, 224, 0.8789)])
def test_the_size_follows_that_of_the_images(side: int, size: int, crop: float) -> None:
    found = auto.auto({}, 1000, side * side, 224)["data"]
    assert (found["image_size"], found["augmentation"]["crop_area"][0]) == (size, crop)


def test_a_least_config_becomes_a_whole_one_that_loads_again(tmp_path: Path) -> None:
    cfg = load(tmp_path, LEAST)
    assert (cfg.steps, cfg.data.image_size, cfg.global_batch, cfg.model.train_from) == (2000, 128, 128, "all")
    assert cfg.optimizer.learning_rate == 0.003 * 128 / 512
    assert auto_config.line(cfg).startswith("recipe auto: 2,000 steps of 128 images of 128 px")
    (tmp_path / "resolved.yaml").write_text(config_file.dump(cfg))
    assert config_file.load(tmp_path / "resolved.yaml") == cfg


WRITTEN: dict[str, Any] = {
    "epochs=3": lambda cfg: (cfg.epochs, cfg.steps) == (3, None),
    "optimizer.learning_rate=0.5": lambda cfg: cfg.optimizer.learning_rate == 0.5,
    "data.image_size=64": lambda cfg: cfg.data.image_size == 64,
    "data.augment=[]": lambda cfg: cfg.data.augment == (),
    "global_batch=64": lambda cfg: cfg.optimizer.learning_rate == 0.003 * 64 / 512,
    "model.train_from=head": lambda cfg: cfg.data.augment == ("flip",),
    "optimizer.schedule.name=constant": lambda cfg: cfg.optimizer.schedule == ScheduleConfig(),
}


@pytest.mark.parametrize("override", list(WRITTEN))
def test_what_is_written_wins(tmp_path: Path, override: str) -> None:
    assert WRITTEN[override](load(tmp_path, LEAST, override))


LARGE = 300 * 300


def test_a_run_in_stages_keeps_its_parts_their_lengths_and_its_schedule() -> None:
    found = auto.auto({"stages": [{"train_from": "head", "steps": 3}]}, 1000, LARGE, 224)
    assert "model" not in found and "steps" not in found and "schedule" not in found["optimizer"]


def test_another_length_stretches_the_schedule() -> None:
    schedule = auto.auto({"epochs": 10}, 12_800, LARGE, 224)["optimizer"]["schedule"]
    assert (schedule["warmup_epochs"], schedule["drop_at_epochs"]) == (2, [4, 6, 8])


@pytest.mark.parametrize(
    ("written", "augment", "mixup"),
    [
        ({}, ["random_resized_crop", "flip"], 0.1),
        ({"model": {"train_from": "head"}}, ["flip"], 0.0),
        ({"runtime": {"prefix_cache": "on"}}, ["flip"], 0.0),
    ],
)
def test_what_is_cached_has_few_views(written: dict[str, Any], augment: list[str], mixup: float) -> None:
    data = auto.auto(written, 30_000, LARGE, 224)["data"]
    assert (data["augment"], data["augmentation"]["mixup"]) == (augment, mixup)


def test_the_rate_is_for_sgd_alone_and_images_have_480_pixels_at_most() -> None:
    found = auto.auto({"optimizer": {"name": "adam"}}, 1000, LARGE, 600)
    assert found["optimizer"].keys() == {"schedule"}
    assert found["data"]["image_size"] == 480


def test_a_computed_classifier_has_a_frozen_backbone_and_no_training(tmp_path: Path) -> None:
    cfg = load(tmp_path, LEAST + "classifier: {name: logistic}\n")
    assert (cfg.model.train_from, cfg.steps, cfg.data.augment) == ("head", 1, ("flip",))
    assert cfg.data.augmentation.mixup == 0 and not cfg.optimizer.schedule.drop_at_epochs
    assert auto_config.line(cfg) == "recipe auto: logistic of images of 128 px, augment flip"


def test_the_typical_size_is_that_of_the_whole_set_though_its_first_class_is_small(tmp_path: Path) -> None:
    for name, number, side in (("a_small", 70, 32), ("b_large", 130, 120)):
        (tmp_path / "set" / name).mkdir(parents=True)
        for k in range(number):
            Image.new("RGB", (side, side), (k, 0, 0)).save(tmp_path / "set" / name / f"{k:03}.png")
    text = f"recipe: auto\ndata: {{name: image_folder, path: {tmp_path}/set}}\nmodel: {{backbone: vgg16}}\n"
    assert load(tmp_path, text).data.image_size == 224


def test_an_image_that_cannot_be_read_is_passed_over_and_a_set_without_others_refused(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / "set" / name).mkdir(parents=True)
        (tmp_path / "set" / name / "broken.png").write_bytes(b"<html>")
    whole = "test_fraction: 0, validation_fraction: 0"
    data = f"{{name: image_folder, path: {tmp_path}/set, {whole}}}"
    text = f"recipe: auto\ndata: {data}\nmodel: {{backbone: vgg16}}\n"
    with pytest.raises(Refusal, match=r"none can be read, as a/broken\.png") as refused:
        load(tmp_path, text)
    assert refused.value.code == ExitCode.DATA
    Image.new("RGB", (32, 32)).save(tmp_path / "set" / "a" / "whole.png")
    assert load(tmp_path, text).data.image_size == 128
