"""`tl-dist init`: write a config for a data set, short enough to be read and edited."""

import json
import os
import re
import socket
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tl_dist.config import DataConfig
from tl_dist.config import file as config_file
from tl_dist.datasets import Splits
from tl_dist.datasets.curation.layout import recognise
from tl_dist.datasets.division import open_splits
from tl_dist.files.atomic import OUTPUT, write_atomically
from tl_dist.launcher.command import visible_gpus
from tl_dist.models.weights.sources import KERAS_HOST, PYPI_WEIGHTS
from tl_dist.refusal import ExitCode, Refusal
from tl_dist.scores import text
from tl_dist.tasks import classification
from tl_dist.tools.curate.split import split

TEST_FRACTION, VALIDATION_FRACTION = 0.2, 0.1
_ONLINE_S = 3.0
_PACKAGE, _PACKAGED = next(iter(PYPI_WEIGHTS.items()))


@dataclass(frozen=True)
class Machine:
    """The hardware and network access that a config is written for."""

    gpus: int
    online: bool
    """whether Keras's own weights can be downloaded"""


def this_machine() -> Machine:
    """Return the machine that this process runs on."""
    online = False
    with suppress(OSError), socket.create_connection((KERAS_HOST, 443), timeout=_ONLINE_S):
        online = True
    return Machine(visible_gpus(os.environ), online)


def is_data(path: Path) -> bool:
    """Return whether a path names a data set rather than a config."""
    return path.is_dir() or (path.is_file() and path.suffix not in (".yaml", ".yml"))


def init(path: Path, out: Path | None, say: Callable[[str], None], machine: Machine | None = None) -> Path:
    """Write a config for the data set at `path`, with the manifest of its splits beside it; return its path.

    On GPUs the whole network is fine-tuned by `recipe: auto`; without one a classifier is computed from frozen
    features, which takes minutes where fine-tuning takes hours. Refuse (73) to replace a file; only a manifest of the
    same division, which a killed call left, is used again.
    """
    data = recognise(path)
    target = out if out is not None else Path(f"{_name_of(path)}.yaml")
    manifest = target.with_suffix(".split.json")
    if os.path.lexists(target):
        raise _is_there(target)
    splits = open_splits(data)[0]
    machine, remarks = machine or this_machine(), classification.remarks(splits["train"].class_names)
    divided = "test" not in splits
    if divided:
        validation = VALIDATION_FRACTION if machine.gpus else 0.0
        try:
            split(path, manifest, test=TEST_FRACTION, validation=validation)
        except Refusal as refusal:
            what, fix, code = refusal.what, refusal.fix, refusal.code
            if code == ExitCode.CANNOT_CREATE and os.path.lexists(manifest):
                what = f"{manifest} is there already, and divides {path} in another way."
                fix = "move it away, or name another file with --out."
            elif code == ExitCode.DATA:
                what = f"{path} has too few images to hold out {TEST_FRACTION:.0%} of each class: {what}"
                what += "".join(f" Look at the labels: {remark}." for remark in remarks)
                fix = "add images to the smallest class, or write a config by hand."
            raise Refusal(what, fix=fix, code=code) from None
    content = _text(data, splits, target, manifest if divided else None, machine)
    try:
        write_atomically(target, content.encode(), exclusive=True, mode=OUTPUT)
    except FileExistsError:
        raise _is_there(target) from None
    backbone, _, where = _network(machine)
    how = "frozen, with a logistic regression on its features, since there is no GPU"
    if machine.gpus:
        how = f"fine-tuned on {text.counted(machine.gpus, 'GPU')}"
    written = f"{target} and {manifest.name}" if divided else target
    for remark in remarks:
        say(f"look at the labels: {remark}")
    say(f"wrote {written}: {backbone} from ImageNet ({where}), {how}")
    return target


def _is_there(file: Path) -> Refusal:
    fix = f"train it: tl-dist train {file}; or name another file with --out."
    return Refusal(f"{file} is there already.", fix=fix, code=ExitCode.CANNOT_CREATE)


def config_for(path: Path, launcher: str | None, say: Callable[[str], None]) -> Path:
    """Return the config of the data set at `path` in the working directory, written now unless it exists.

    Refuse (64) a launcher, whose processes would each write one, and (73) a config of this name that is for other data.
    """
    if launcher is not None:
        what = f"{path} is a data set, and each process of {launcher} would write a config for it."
        fix = f"write it first: tl-dist init {path}; then launch that."
        raise Refusal(what, fix=fix, code=ExitCode.USAGE)
    target = Path(f"{_name_of(path)}.yaml")
    if not target.exists():
        try:
            return init(path, None, say)
        except Refusal:
            if not target.exists():  # else another process has just written it
                raise
    if config_file.load(target).data.path != recognise(path).path:
        what = f"{target} is there already, and is not for {path}."
        fix = f"write another config: tl-dist init {path} --out FILE.yaml."
        raise Refusal(what, fix=fix, code=ExitCode.CANNOT_CREATE)
    say(f"using {target}, written earlier")
    return target


def _name_of(path: Path) -> str:
    """Return a name for a run, made from the name of the data set."""
    absolute = path.absolute()
    name = re.sub(r"[^A-Za-z0-9._-]+", "_", absolute.stem if path.is_file() else absolute.name)
    return name.lstrip("._-")[:64] or "run"


def _network(machine: Machine) -> tuple[str, str, str]:
    """Return the backbone, the config's value of its weights, and in words where these come from."""
    if machine.online:
        return "resnet50", "imagenet", "Keras's own weights"
    where = f"in the package {_PACKAGE}, since {KERAS_HOST} is out of reach"
    return _PACKAGED.backbone, f"pypi:{_PACKAGE}   # from ImageNet, in a Python package", where


def _text(data: DataConfig, splits: Splits, target: Path, manifest: Path | None, machine: Machine) -> str:
    """Return the text of the config, without what `recipe: auto` sets."""
    images = sum(source.num_examples for source in splits.values())
    backbone, weights, _ = _network(machine)
    held_out = ", 10 % validation" if machine.gpus else ""
    lines = [
        f"# {images:,} images of {len(splits['train'].class_names)} classes, written by tl-dist init. "
        f"Train it: tl-dist train {target.name}",
        "# Every key and what it does: tl-dist config schema",
        "recipe: auto   # what is left out here follows from the number and the size of the images",
        *([f"strategy: mirrored   # {machine.gpus} GPUs"] if machine.gpus > 1 else []),
        "data:",
        f"  name: {data.name}",
        f"  path: {json.dumps(data.path)}",
        *([f"  split: {json.dumps(str(manifest.absolute()))}   # 20 % test{held_out}, by class"] if manifest else []),
        "model:",
        f"  backbone: {backbone}",
        f"  weights: {weights}",
    ]  # fmt: skip
    if not machine.gpus:
        lines += [
            "classifier:",
            "  name: logistic   # of frozen features, since there is no GPU; without this section: fine-tuning",
            "  l2: auto",
        ]
    return "\n".join(lines) + "\n"
