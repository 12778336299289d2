"""The candidates of `tl-dist rank`: named on the command line or in a file, each a change of one config."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError

from tl_dist import config
from tl_dist.config import extensions, problems, registry, yaml_text
from tl_dist.config import file as config_file
from tl_dist.config.rules.model import WEIGHTS_FILES
from tl_dist.launcher.train import Request
from tl_dist.refusal import ExitCode, Refusal

_KEPT = (
    "seed", "strategy", "workers", "global_batch", "precision", "features", "report", "safety", "runtime",
)  # fmt: skip
_KEPT_OF_MODEL = (
    "backbone", "arguments", "preprocessing", "weights", "weights_sha256", "normalize", "layers",
)  # fmt: skip


class Entry(config.Section):
    """One candidate as the user writes it."""

    backbone: str
    weights: str | None = None
    """as model.weights; default: the config's own for the config's backbone, else imagenet"""
    weights_sha256: str | None = None
    block: str | None = None
    """the stage whose output is pooled; default: the last"""
    train_from: str | None = None
    """as model.train_from; needed if the config's value is not a stage of this backbone"""
    accuracy: Annotated[float, Field(ge=0, le=1)] | None = None
    """published ImageNet accuracy of these weights"""


@dataclass(frozen=True)
class Candidate:
    """A network to start from: the config that trains from it, and the config that computes its features."""

    label: str
    training: config.Config
    """the user's config with this network"""
    features: config.Config
    """the config of the run that holds its features and scores"""
    accuracy: float | None
    """published ImageNet accuracy"""


def candidates(request: Request, text: str) -> list[Candidate]:
    """Parse `text`: comma-separated names, each BACKBONE or BACKBONE:BLOCK, or the path of a YAML file with a list.

    Refuses (64) an unknown network, and a config that cannot be trained from one of the candidates.
    """
    cfg = request.load()
    if cfg.source is not None:
        what = f"{request.label} starts from another run ('source'), so there is no network to choose."
        raise _mistake(what, "rank a config without 'source'.")
    entries = _from_file(Path(text)) if text.endswith((".yaml", ".yml")) else _from_names(text)
    if not entries:
        raise _mistake("there is no candidate to choose from.", "name some: --candidates vgg16,resnet50.")
    choices = [_candidate(request, cfg, entry, where) for entry, where in entries]
    labels = [choice.label for choice in choices]
    if len(choices) < 2 or len(set(labels)) < len(labels):
        twice = next((label for label in labels if labels.count(label) > 1), None)
        what = f"candidate '{twice}' is listed twice" if twice else "one candidate leaves nothing to choose"
        raise _mistake(f"{text}: {what}.", "name at least two different ones.")
    return choices


def _mistake(what: str, fix: str) -> Refusal:
    return Refusal(what, fix=fix, code=ExitCode.USAGE)


def _from_names(text: str) -> list[tuple[Entry, str]]:
    entries = []
    for name in filter(None, map(str.strip, text.split(","))):
        backbone, _, block = name.rpartition(":")
        # package.module:NAME is a network of another package without a block; package.module:NAME:BLOCK has one.
        if not backbone or (extensions.is_reference(name) and "." in backbone):
            backbone, block = name, ""
        entries.append((Entry(backbone=backbone, block=block or None), f"candidate '{name}'"))
    return entries


def _from_file(path: Path) -> list[tuple[Entry, str]]:
    """Read the entries of a file, each with its line."""
    document = yaml_text.read(path)
    if not isinstance(document.data, list) or not all(isinstance(item, str | dict) for item in document.data):
        fix = "write lines such as '- {backbone: resnet50, weights: imagenet}', or '- vgg16:block4'."
        raise _mistake(f"{path} is not a list of candidates.", fix)
    entries = []
    for number, item in enumerate(document.data):
        line = f"{path}:{document.lines[str(number)]}"
        if isinstance(item, str):
            entries += [(entry, line) for entry, _ in _from_names(item)]
            continue
        prefix = f"{number}."
        lines = {k.removeprefix(prefix): v for k, v in document.lines.items() if k.startswith(prefix)}
        where = {"": line} | {key: f"{path}:{at}" for key, at in lines.items()}
        try:
            entry = Entry.model_validate(item, strict=True)
        except ValidationError as error:
            raise problems.refusal(error, Entry, where) from None
        entries.append((entry, line))
    return entries


def _candidate(request: Request, cfg: config.Config, entry: Entry, where: str) -> Candidate:
    own = registry.without_folder(entry.backbone) == registry.without_folder(cfg.model.backbone)
    backbone, network = (cfg.model.backbone, cfg.network) if own else (entry.backbone, entry.backbone)
    weights = entry.weights or (cfg.model.weights if own else "imagenet")
    model: dict[str, Any] = {"backbone": backbone, "weights": weights}
    if entry.weights is not None or not own:
        model["weights_sha256"] = entry.weights_sha256
    if not own:
        model |= {"arguments": {}, "preprocessing": None}
    if entry.block is not None or not own:
        model["layers"] = [entry.block] if entry.block else []
    if entry.train_from is not None:
        model["train_from"] = entry.train_from
    try:
        stages = registry.backbone(network).stages
        if entry.block not in (None, *stages):
            raise _mistake(f"{entry.backbone} has no block '{entry.block}'.", f"use one of {', '.join(stages)}.")
        tuned = entry.train_from != "head" and set(cfg.parts) != {"head"}
        if tuned and entry.block not in (None, [*stages][-1]):
            raise _mistake(
                f"the config trains more than the head, and the blocks after '{entry.block}' would not be used.",
                "add model.train_from=head, or give it 'train_from: head' in a file of candidates.",
            )
        training = request.load(*(f"model.{key}={json.dumps(value)}" for key, value in model.items()))
        # The rules of the config refuse names that are stages of neither network.
        for part in () if own else filter(None, (*training.parts, training.model.reinitialize)):
            if part not in ("head", "all", *stages):
                raise _mistake(
                    f"the config trains from '{part}', which is not a stage of {entry.backbone}.",
                    f"give it 'train_from: STAGE' in a file of candidates, with one of {', '.join(stages)}; or train "
                    "from 'head' or 'all'.",
                )
    except Refusal as refusal:
        raise Refusal(f"{where}: {refusal.what}", fix=refusal.fix, code=refusal.code) from None
    label = ":".join(filter(None, (entry.backbone, entry.block)))
    if entry.weights not in (None, "imagenet"):
        label += f" {Path(weights).stem if weights.endswith(WEIGHTS_FILES) else weights}"
    accuracy = entry.accuracy
    if accuracy is None and weights == "imagenet":
        accuracy = registry.backbone(network).imagenet_top1
    return Candidate(label, training, _of_features(training, label), accuracy)


def _of_features(cfg: config.Config, label: str) -> config.Config:
    """Make the config of the frozen network with a classifier on its features: what its feature-based runs share."""
    frozen = config.Config(
        **{key: getattr(cfg, key) for key in _KEPT},
        name="rank",
        steps=1,
        data=cfg.data.model_copy(update={"augment": (), "augmentation": config.AugmentConfig()}),
        model=config.ModelConfig(
            **{key: getattr(cfg.model, key) for key in _KEPT_OF_MODEL},
            pooling="average" if cfg.model.pooling == "flatten" else cfg.model.pooling,
        ),
        classifier=config.ClassifierConfig(name="logistic", l2="auto"),
        optimizer=config.OptimizerConfig(learning_rate=1.0),
        evaluation=config.EvaluationConfig(batch=cfg.evaluation.batch),
    )
    short = re.sub(r"[^A-Za-z0-9._-]+", "-", label)[:22]
    return frozen.model_copy(update={"name": f"{cfg.name[:24]}-rank-{short}-{config_file.digest(frozen)[:8]}"})
