"""80 columns, no terminal, no colour: names, paths and numbers are all there, none cut off."""

import io
from pathlib import Path
from typing import Any

import pytest

from tl_dist.features.manifest import Facts, Manifest, Shard
from tl_dist.runs.table import RunSummary
from tl_dist.terminal.console import Console
from tl_dist.terminal.tables import show_runs
from tl_dist.tools.compare import command as compare
from tl_dist.tools.cross_validate import command as cross_validation
from tl_dist.tools.curate import inspect as data_inspect
from tl_dist.tools.curate import split, verify
from tl_dist.tools.evaluate import command as evaluate
from tl_dist.tools.features import command as feature_sets
from tl_dist.tools.rank import command as rank

PATH = "/data/shared/a-long-name-of-a-directory/of-a-project/photographs-2024/Kätzchen and other animals"
CLASS = "golden retriever of the mountains, with a name that is longer than any table column is wide"
RUN = "elpv-vgg16-finetune-block5-sgd-learning-rate-0.001-decay-0.75-cv-0-3"


def summary(**more: Any) -> RunSummary:
    figures = {"test_accuracy": 0.9123, "validation_accuracy": 0.9345, "loss": 0.1234}
    values = {"name": RUN, "state": "running", "step": 1234567, "strategy": "mirrored", "workers": 1024}
    return RunSummary(**{**values, "age_s": 3600.0, "figures": figures, **more})  # type: ignore[arg-type]


VIEWS = ["flip", "dihedral"]


def feature_set() -> feature_sets.FeatureSetOnDisk:
    facts = Facts(backbone="inceptionresnetv2", cut="block8_10_mixed_convolution", image_size=224, views=VIEWS)
    shards = [Shard(file="shard-0000.npy", rows=12345678, sha256="0" * 64)]
    content = Manifest(dtype="bfloat16", computed="float32", shape=[7, 7, 1536], shards=shards, facts=facts)
    return feature_sets.FeatureSetOnDisk(Path("features/0123456789abcdef"), content, 123456789012, 7200)


SPLIT = {
    "classes": ["functional", CLASS],
    "parts": {f"fold {k}": [12345 + k, 100 + k] for k in range(10)},
    "groups": {f"fold {k}": 50 + k for k in range(10)},
    "file": f"{PATH}/split.json",
    "digest": "0123456789abcdef",
}
REMARK = {"count": 12, "of": 123490, "what": "images have an alpha channel", "example": f"{PATH}/alpha.png"}
REMARKED = f"such as {PATH}/alpha.png"
INSPECTED = {
    "num_examples": 123490, "imbalance": 2.0, "sizes": {"min": [100, 200]}, "formats": {"JPEG": 123490},
    "modes": {"RGB": 123490}, "bytes": 1, "unreadable": 0, "counts": {CLASS: 123456, "b": 34},
    "remarks": [REMARK],
}  # fmt: skip
FACTS = {"kind": "image_folder", "path": PATH, "classes": [CLASS, "b"], "remarks": [], "splits": {"train": INSPECTED}}
BAD = {
    "split": "train",
    "id": f"{PATH}/a.jpg",
    "offset": 123456,
    "reason": "JPEG is cut off: its end is missing",
}
VERIFIED = {
    "kind": "csv", "num_examples": 9, "bad": [BAD], "equal": [[f"train: {PATH}/1.jpg", f"test: {PATH}/2.jpg"]],
    "near": [], "leaks": 1, "remarks": [REMARK],
}  # fmt: skip
CV = {
    "interval": (0.8, 0.9), "accuracy": 0.85, "folds": 20, "seeds": 2, "num_examples": 100, "groups": {},
    "figures": {},
    "fold_accuracies": [[0.5001 + 0.01 * k + 0.2 * s for k in range(20)] for s in range(2)],
    "seed_accuracies": [0.9501, 0.9602],
}  # fmt: skip
COMPARED = {
    "accuracies": (0.9, 0.91), "num_examples": 656, "difference": 0.01, "interval": (-0.01, 0.03),
    "p_value": 0.0123, "only_first": 1, "only_second": 2,
}  # fmt: skip

GROUPS = [
    {"name": name, "num_examples": 12345, "accuracy": 0.1234, "interval": [0.1, 0.15], "log_loss": 1.234,
     "p_value": 0.0123}
    for name in (CLASS, "b")
]  # fmt: skip
CORRUPTED = {
    "split": "validation", "num_examples": 12345, "step": 123456, "image_size": 224, "severities": [1, 2, 3, 4, 5],
    "clean": 0.0124, "mean_corruption_error": 0.9876, "mce_alexnet": 1.2345,
    "accuracy": {name: [0.123, 0.321, 0.222, 0.222, 0.222] for name in ("gaussian_noise", "elastic_transform")},
}  # fmt: skip

RANKED = {
    "candidate": f"{PATH}/vgg16", "linear_probe": 0.9123, "interval": [0.9012, 0.9231], "nearest": 0.8765,
    "logme": -0.6543, "h_score": 123.456, "nleep": -1.234, "parameters": 118654321, "features": 12345,
    "accuracy": 0.713, "fold_accuracies": [0.91, 0.92], "examples": 5000,
    "test_to_train": 1.0, "weighted": True,
}  # fmt: skip


SHOWN: dict[str, tuple[Any, list[str], list[str]]] = {
    # what is shown, what may go over several lines, what may not
    "data split": (
        lambda c: split.show(SPLIT, c),
        [CLASS],
        [f"data.split={PATH}/split.json", "12,354", "functional", "109", "59", "groups"],
    ),
    "data inspect": (lambda c: data_inspect.show(FACTS, c), [CLASS], [f"in {PATH},", "123,456", " b ", REMARKED]),
    "data verify": (
        lambda c: verify.show(VERIFIED, c),
        [],
        [f"train: {PATH}/a.jpg, byte 123456: {BAD['reason']}", f"  test: {PATH}/2.jpg", "1 across splits", REMARKED],
    ),
    "features list": (
        lambda c: feature_sets.show([feature_set()], c),
        ["inceptionresnetv2", "block8_10_mixed_convolution", ],
        ["0123456789ab", "12,345,678", "123,456.8", "2 h ago", "224 pixels", "dihedral", "7 x 7 x 1536", "bfloat16"],
    ),
    "runs": (
        lambda c: show_runs([summary(), summary(name="smoke", workers=None)], c),
        [RUN],
        ["running", "1,234,567", "mirrored x 1024", "1 h ago", "test 0.9123", "validation 0.9345", "loss 0.1234"],
    ),
    "cv": (
        lambda c: cross_validation.show(CV, c),
        [],
        [f"{value:.4f}" for row in CV["fold_accuracies"] for value in row] + ["0.9501", "0.9602"],
    ),
    "cv --by": (
        lambda c: cross_validation.show(CV | {"left_out": {"site": GROUPS}}, c),
        [CLASS],
        ["each site held out once", "12,345", "0.123", "0.100-0.150", "worst site", "p = 0.0123"],
    ),
    "eval --corruptions": (
        lambda c: evaluate.show_corrupted(CORRUPTED, c),
        ["elastic_transform", "gaussian_noise"],
        ["0.9876", "0.123", "0.321", "0.222", "224 pixels", "12,345 examples"],
    ),
    "rank": (
        lambda c: rank.show([RANKED, RANKED | {"candidate": "b", "accuracy": None}], c),
        [f"{PATH}/vgg16"],
        ["0.912", "0.901", "0.923", "0.876", "-0.654", "123.46", "-1.23", "118.65", "12,345", "0.713",
         "the folds do not tell these apart"],
    ),
    "compare": (
        lambda c: compare.show(COMPARED, (f"{PATH}/one", f"{PATH}/two"), c),
        [],
        [f"{PATH}/two: accuracy 0.9100", "p = 0.0123"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("command", SHOWN)
def test_nothing_is_cut_off(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setattr(cross_validation.text, "summary", lambda found: "")
    target = io.StringIO()
    show, folded, whole = SHOWN[command]
    show(Console(file=target))
    shown = target.getvalue()
    assert "…" not in shown and "\x1b" not in shown
    for text in whole:
        assert text in shown, text
    lines = [line for line in shown.splitlines() if PATH not in line]
    for text in folded:
        assert any(_in_column(lines, text, at) for at in range(80)), text


def _in_column(lines: list[str], text: str, at: int) -> bool:
    """Whether the text stands in the column of a table that begins at `at`, over as many lines as it takes."""
    wanted = text.replace(" ", "")
    for first in range(len(lines)):
        rest = wanted
        for line in lines[first:]:
            words = line[at:].strip().replace(" ", "")
            size = next((n for n in range(min(len(rest), len(words)), 0, -1) if words.startswith(rest[:n])), 0)
            if not size:
                break
            rest = rest[size:]
            if not rest:
                return True
    return False
