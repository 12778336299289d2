"""`model.adapt` is a word or LoRA's section, set in a file or by overrides, and refused where it would do nothing."""

from pathlib import Path
from typing import Any

import pytest

from tl_dist.config import Config
from tl_dist.config import file as config_file
from tl_dist.config import source as config_source
from tl_dist.config.lora import LoraConfig
from tl_dist.refusal import Refusal

TEXT = """\
data: {name: digits}
model: {backbone: vgg16, train_from: block5, adapt: ADAPT}
optimizer: {learning_rate: 0.1}
epochs: 2
"""
REFITTED = ("source.run=x", "source.head=true", "source.refit=true", "model.prune=0.5", "model.train_from=all")


@pytest.fixture(autouse=True)
def _in_a_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def load(adapt: str, *overrides: str) -> Config:
    Path("trial.yaml").write_text(TEXT.replace("ADAPT", adapt))
    return config_file.load("trial.yaml", overrides)


@pytest.mark.parametrize(
    ("adapt", "overrides", "expected"),
    [
        ("{lora: 8}", [], {"lora": 8, "layers": "", "alpha": None}),
        ("{lora: 8, layers: block5, alpha: 16}", [], {"lora": 8, "layers": "block5", "alpha": 16.0}),
        ("{lora: 8}", ["model.adapt.lora=4", "model.adapt.alpha=2"], {"lora": 4, "layers": "", "alpha": 2.0}),
        ("bias", ["model.adapt.lora=4"], {"lora": 4, "layers": "", "alpha": None}),
        ("bias", ["model.adapt={lora: 4, layers: 'conv[12]'}"], {"lora": 4, "layers": "conv[12]", "alpha": None}),
        ("{lora: 8}", ["model.adapt=norm"], "norm"),
    ],
)
def test_it_is_read_and_written_back(adapt: str, overrides: list[str], expected: Any) -> None:
    cfg = load(adapt, *overrides)
    assert cfg.model.model_dump()["adapt"] == expected
    Path("again.yaml").write_text(config_file.dump(cfg))
    assert config_file.load("again.yaml") == cfg
    assert config_file.trajectory(cfg)["model"]["adapt"] == expected


def test_alpha_is_the_rank_unless_it_is_given() -> None:
    assert (LoraConfig(lora=8).factor, LoraConfig(lora=8, alpha=4).factor) == (1.0, 0.5)


def test_the_source_task_is_trained_without() -> None:
    task = config_source.of_source(load("{lora: 8}", "source.data.name=digits", "source.steps=3"))
    assert task is not None and task.model.adapt == "all"


@pytest.mark.parametrize(
    ("adapt", "overrides", "what"),
    [
        ("lora", [], "trial.yaml:2: adapt 'lora' needs a rank. Fix: write 'adapt: {lora: 8}'."),
        ("baias", [], "must be one of all, bias, norm or {lora, layers, alpha}. Fix: write 'adapt: bias'."),
        ("{lora: 0}", [], "model.adapt.lora is 0, but must be a whole number above 0. Fix: give a whole number"),
        ("{lora: 8.5}", [], "model.adapt.lora is 8.5, but must be a whole number above 0."),
        ("{layers: block5}", [], "model.adapt.lora is missing. Fix: add 'lora:' below 'adapt:' with a whole number"),
        ("{lora: 8, layer: x}", [], "model.adapt.layer is not a key of a config. Fix: write 'model.adapt.layers'."),
        ("{lora: 8, alpha: 0}", [], "model.adapt.alpha is 0, but must be a number above 0 or null."),
        ("all", ["model.adapt.rank=8"], "override 'model.adapt.rank=8': model.adapt.rank is not a key of a config."),
        (
            "{lora: 8, layers: 'block5('}",
            [],
            "model.adapt.layers 'block5(' is no regular expression: missing ), unterminated subpattern at position 6. "
            "Fix: write a part of the names of layers, such as 'block5'.",
        ),
        ("{lora: 8}", ["model.train_from=head"], "adapt has no effect with train_from 'head'"),
        ("{lora: 8}", ["model.weights=random", "model.train_from=all"], "adapt 'lora' would leave random weights"),
        ("{lora: 8}", ["model.reinitialize=block5"], "adapt 'lora' would leave random weights as they are."),
        ("{lora: 8}", REFITTED, "source.refit: it changes kernels that model.adapt keeps. Fix: remove one of them."),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line(adapt: str, overrides: list[str], what: str) -> None:
    with pytest.raises(Refusal) as caught:
        load(adapt, *overrides)
    assert what in str(caught.value) and "\n" not in str(caught.value)
