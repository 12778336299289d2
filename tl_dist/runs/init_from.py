"""Check the runs that a config starts from or is taught by, as far as the login node can. Imports no TensorFlow."""

import json
from pathlib import Path

from tl_dist.config import Config, registry
from tl_dist.config import file as config_file
from tl_dist.config.rules.training import taught_in_steps
from tl_dist.refusal import ExitCode, Refusal
from tl_dist.runs.directory import RunDir, steps_in

_HEAD = (
    *(("model", key) for key in ("pooling", "normalize", "layers", "hidden")),
    ("data", "image_size"),  # where feature maps are flattened
)
"""sections and keys of the settings that must agree for a head to fit"""


def opened(cfg: Config) -> tuple[RunDir, Config]:
    """Return the run `cfg.source.run` and its config. Refuses another backbone, no checkpoint, an untrained task."""
    if cfg.source is None or cfg.source.run is None:
        raise Refusal(
            f"the source task of '{cfg.name}' has not been trained.",
            fix="'tl-dist train CONFIG' without a launcher trains it first; or write 'source: {run: DIRECTORY}'.",
            code=ExitCode.USAGE,
        )
    run = RunDir.open(cfg.source.run)
    source = config_file.load(run.config_file, imports=False)
    if source.model.backbone != cfg.model.backbone:
        raise Refusal(
            f"source.run {run.path} trained {source.model.backbone}, but model.backbone is {cfg.model.backbone}.",
            fix=f"write 'backbone: {source.model.backbone}', or name a run that trained {cfg.model.backbone}.",
            code=ExitCode.USAGE,
        )
    if source.model.prune > cfg.model.prune:
        raise Refusal(
            f"source.run {run.path} is pruned by {source.model.prune:g}, more than model.prune {cfg.model.prune:g}.",
            fix=f"write 'prune: {source.model.prune:g}' or more, or name a run that has all channels.",
            code=ExitCode.USAGE,
        )
    for section, key in _HEAD if cfg.source.head else ():
        theirs, ours = (getattr(getattr(config, section), key) for config in (source, cfg))
        if theirs != ours and (key != "image_size" or cfg.model.pooling == "flatten"):
            raise Refusal(
                f"source.head takes the head of {run.path}, where {section}.{key} is {json.dumps(theirs)}; here it is "
                f"{json.dumps(ours)}.",
                fix=f"write '{key}: {json.dumps(theirs)}' below '{section}:', or 'head: false' below 'source:'.",
                code=ExitCode.USAGE,
            )
    if not steps_in(run.checkpoints):
        what = f"source.run {run.path} has no checkpoint."
        raise Refusal(what, fix="train it first: tl-dist train CONFIG.", code=ExitCode.USAGE)
    return run, source


def opened_teacher(cfg: Config) -> tuple[RunDir, Config]:
    """Return the teacher and its config. Refuses (64) one that may change, or that needs images of another size."""
    assert cfg.distill is not None
    path = Path(cfg.distill.teacher)
    if not (path / "config.yaml").is_file():
        raise _no_teacher(f"{path} is not a run", "say where it lies now: distill.teacher=DIRECTORY")
    run = RunDir.open(path)
    teacher = config_file.load(run.config_file, imports=False)
    if run.done is None:
        raise _no_teacher(f"{path} has not ended, so its weights may change", "train it to its end first")
    how, other = "in steps that augment", "augment by flip and dihedral alone"
    if not taught_in_steps(cfg):
        how, other = "with runtime.decoded_images", "decoded_images: off"
        if cfg.runtime.decoded_images == "off":
            return run, teacher  # which reads the images itself
    sizes = [c.data.image_size or registry.backbone(c.model.backbone).input_size for c in (teacher, cfg)]
    for key, theirs, ours in (
        ("image_size", *sizes),
        ("resize", teacher.data.resize, cfg.data.resize),
        ("crop_fraction", teacher.data.crop_fraction, cfg.data.crop_fraction),
    ):
        if theirs != ours:
            what = f"{path} was trained with data.{key} {theirs}, but {how} it sees images of {ours}"
            raise _no_teacher(what, f"write '{key}: {theirs}' below 'data:', or {other}")
    return run, teacher


def _no_teacher(what: str, fix: str) -> Refusal:
    return Refusal(f"distill.teacher {what}.", fix=f"{fix}.", code=ExitCode.USAGE)
