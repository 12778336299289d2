"""The candidates of `tl-dist rank`: named on the command line or in a file, each a change of one config."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError

from tl_dist.config import (
    AugmentConfig,
    ClassifierConfig,
    Config,
    EvaluationConfig,
    ModelConfig,
    OptimizerConfig,
    Section,
    extensions,
    problems,
    registry,
    yaml_text,
)
from tl_dist.config import file as config_file
from tl_dist.config.rules.model import WEIGHTS_FILES
from tl_dist.launcher.train import Request
from tl_dist.models.published import IMAGENET_TOP1
from tl_dist.refusal import ExitCode, Refusal


class Entry(Section):
    """One candidate as people write it."""

    backbone: str
    weights: str | None = None
    """as model.weights; default: those of the config for its own backbone, else imagenet"""
    weights_sha256: str | None = None
    block: str | None = None
    """the stage whose output is pooled; default: the last"""
    train_from: str | None = None
    """as model.train_from, where that of the config is no stage of this backbone"""
    accuracy: Annotated[float, Field(ge=0, le=1)] | None = None
    """on ImageNet, as it was published with these weights"""


@dataclass(frozen=True)
class Candidate:
    """A network to start from: what is trained from it, and how its features are computed."""

    label: str
    training: Config
    """the config of the command with this network"""
    features: Config
    """the config of the run that its features and scores belong to"""
    accuracy: float | None
    """published, on ImageNet"""


def candidates(request: Request, text: str) -> list[Candidate]:
    """Those of `text`: names with commas between, each BACKBONE or BACKBONE:BLOCK, or a YAML file with a list.

    Refuses (64) what names no network, and a config that cannot be trained from one of them.
    """
    cfg = request.load()
    if cfg.source is not None:
        raise Refusal(
            f"{request.config} starts from another run ('source'), so it has no network to choose.",
            fix="rank a config without 'source'.",
            code=ExitCode.USAGE,
        )
    entries = _from_file(Path(text)) if text.endswith((".yaml", ".yml")) else _from_names(text)
    if not entries:
        fix = "name some, as by --candidates vgg16,resnet50."
        raise Refusal("there is no candidate to choose from.", fix=fix, code=ExitCode.USAGE)
    found = [_candidate(request, cfg, entry, where) for entry, where in entries]
    labels = [one.label for one in found]
    if len(found) < 2 or len(set(labels)) < len(labels):
        twice = next((label for label in labels if labels.count(label) > 1), None)
        what = f"candidate '{twice}' is there twice" if twice else "one candidate leaves nothing to choose"
        raise Refusal(f"{text}: {what}.", fix="name two different ones or more.", code=ExitCode.USAGE)
    return found


def _from_names(text: str) -> list[tuple[Entry, str]]:
    found = []
    for name in filter(None, (part.strip() for part in text.split(","))):
        backbone, _, block = name.rpartition(":")
        # package.module:NAME is a network of another package, and has no block; package.module:NAME:BLOCK has one.
        if not backbone or (extensions.is_reference(name) and "." in backbone):
            backbone, block = name, ""
        found.append((Entry(backbone=backbone, block=block or None), f"candidate '{name}'"))
    return found


def _from_file(path: Path) -> list[tuple[Entry, str]]:
    """The entries of a file, each with its place in it."""
    document = yaml_text.read(path)
    known = isinstance(document.data, list) and all(isinstance(one, str | dict) for one in document.data)
    if not known:
        raise Refusal(
            f"{path} is no list of candidates.",
            fix="write lines such as '- {backbone: resnet50, weights: imagenet}', or '- vgg16:block4'.",
            code=ExitCode.USAGE,
        )
    found = []
    for number, item in enumerate(document.data):
        line = f"{path}:{document.lines[str(number)]}"
        if isinstance(item, str):
            found += [(entry, line) for entry, _ in _from_names(item)]
            continue
        prefix = f"{number}."
        lines = {k.removeprefix(prefix): v for k, v in document.lines.items() if k.startswith(prefix)}
        where = {"": line} | {key: f"{path}:{at}" for key, at in lines.items()}
        try:
            entry = Entry.model_validate(item, strict=True)
        except ValidationError as error:
            raise problems.refusal(error, Entry, item, where) from None
        found.append((entry, line))
    return found


def _candidate(request: Request, cfg: Config, entry: Entry, where: str) -> Candidate:
    own = entry.backbone == cfg.model.backbone
    weights = entry.weights or (cfg.model.weights if own else "imagenet")
    model: dict[str, Any] = {"backbone": entry.backbone, "weights": weights}
    if entry.weights is not None or not own:
        model["weights_sha256"] = entry.weights_sha256
    if entry.block is not None or not own:
        model["layers"] = [entry.block] if entry.block else []
    if entry.train_from is not None:
        model["train_from"] = entry.train_from
    try:
        stages = registry.backbone(entry.backbone).stages
        if entry.block not in (None, *stages):
            fix = f"use one of {', '.join(stages)}."
            raise Refusal(f"'{entry.block}' is no block of {entry.backbone}.", fix=fix, code=ExitCode.USAGE)
        tuned = entry.train_from != "head" and set(cfg.parts) != {"head"}
        if tuned and entry.block not in (None, [*stages][-1]):
            raise Refusal(
                f"the config trains more than the head, which would see nothing behind '{entry.block}'.",
                fix="add model.train_from=head, or write a file of candidates with 'train_from: head' for it.",
                code=ExitCode.USAGE,
            )
        training = request.load(*(f"model.{key}={json.dumps(value)}" for key, value in model.items()))
    except Refusal as refusal:
        raise Refusal(f"{where}: {refusal.what}", fix=refusal.fix, code=refusal.code) from None
    if not own:
        _refuse_stages_of_others(training, [*stages], where)
    label = ":".join(filter(None, (entry.backbone, entry.block)))
    if entry.weights not in (None, "imagenet"):
        label += f" {Path(weights).stem if weights.endswith(WEIGHTS_FILES) else weights}"
    accuracy = entry.accuracy
    if accuracy is None and weights == "imagenet":
        accuracy = IMAGENET_TOP1.get(entry.backbone)
    return Candidate(label, training, _of_features(training, label), accuracy)


def _refuse_stages_of_others(cfg: Config, stages: Sequence[str], where: str) -> None:
    """A stage of one network is none of another; what else names one is refused by the rules."""
    for part in filter(None, (*cfg.parts, cfg.model.reinitialize)):
        if part not in ("head", "all", *stages):
            raise Refusal(
                f"{where}: the config trains from '{part}', which is no stage of {cfg.model.backbone}.",
                fix=f"write a file of candidates with 'train_from: STAGE' for it, of {', '.join(stages)}; or train "
                "from 'head' or 'all'.",
                code=ExitCode.USAGE,
            )


def _of_features(cfg: Config, label: str) -> Config:
    """The frozen network of a config, with a classifier on its features: what feature-based runs of it share."""
    model = cfg.model
    data = cfg.data.model_copy(update={"augment": (), "augmentation": AugmentConfig()})
    made = Config(
        name="rank",
        seed=cfg.seed,
        strategy=cfg.strategy,
        workers=cfg.workers,
        global_batch=cfg.global_batch,
        steps=1,
        precision=cfg.precision,
        data=data,
        model=ModelConfig(
            backbone=model.backbone,
            weights=model.weights,
            weights_sha256=model.weights_sha256,
            pooling="average" if model.pooling == "flatten" else model.pooling,
            normalize=model.normalize,
            layers=model.layers,
        ),
        classifier=ClassifierConfig(name="logistic", l2="auto"),
        features=cfg.features,
        optimizer=OptimizerConfig(learning_rate=1.0),
        evaluation=EvaluationConfig(batch=cfg.evaluation.batch),
        report=cfg.report,
        safety=cfg.safety,
        runtime=cfg.runtime,
    )
    short = re.sub(r"[^A-Za-z0-9._-]+", "-", label)[:22]
    return made.model_copy(update={"name": f"{cfg.name[:24]}-rank-{short}-{config_file.digest(made)[:8]}"})


def bare(cfg: Config) -> Mapping[str, Any]:
    """What decides the weights of a run, but its seed, and which weights it starts with: those are told by digests."""
    values = config_file.trajectory(cfg)
    del values["seed"]
    return {**values, "model": {k: v for k, v in values["model"].items() if not k.startswith("weights")}}
