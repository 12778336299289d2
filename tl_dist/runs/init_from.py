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
        fix = "'tl-dist train CONFIG' without a launcher trains it first; or write 'source: {run: DIRECTORY}'"
        raise _refused(f"the source task of '{cfg.name}' has not been trained", fix)
    run = RunDir.open(cfg.source.run)
    source = config_file.load(run.config_file, imports=False)
    if _network(source) != _network(cfg):
        names = [registry.without_folder(c.model.backbone) for c in (source, cfg)]
        what = f"trained {names[0]}, but model.backbone is {names[1]}"
        fix = f"write 'backbone: {source.model.backbone}', or name a run that trained {names[1]}"
        if names[0] == names[1]:
            what = "has other arguments, preprocessing or code of its network"
            fix = f"take model.backbone, arguments and preprocessing from {run.config_file}"
        raise _refused(f"source.run {run.path} {what}", fix)
    if source.model.prune > cfg.model.prune:
        what = f"is pruned by {source.model.prune:g}, more than model.prune {cfg.model.prune:g}"
        fix = f"write 'prune: {source.model.prune:g}' or more, or name a run that has all channels"
        raise _refused(f"source.run {run.path} {what}", fix)
    for section, key in _HEAD if cfg.source.head else ():
        theirs, ours = (getattr(getattr(config, section), key) for config in (source, cfg))
        if theirs != ours and (key != "image_size" or cfg.model.pooling == "flatten"):
            theirs, ours = json.dumps(theirs), json.dumps(ours)
            what = f"the head of {run.path}, where {section}.{key} is {theirs}; here it is {ours}"
            fix = f"write '{key}: {theirs}' below '{section}:', or 'head: false' below 'source:'"
            raise _refused(f"source.head takes {what}", fix)
    if not steps_in(run.checkpoints):
        raise _refused(f"source.run {run.path} has no checkpoint", "train it first: tl-dist train CONFIG")
    return run, source


def _network(cfg: Config) -> tuple[str, dict[str, str]]:
    """Return what must agree for weights to mean the same: the network at any size, and the code of a function."""
    network = cfg.model.network(None)
    return registry.without_folder(network), registry.code_of_network(network) if cfg.model.is_function else {}


def opened_teacher(cfg: Config) -> tuple[RunDir, Config]:
    """Return the teacher and its config. Refuses (64) one that may change, or that needs images of another size."""
    assert cfg.distill is not None
    path = Path(cfg.distill.teacher)
    named = f"distill.teacher {path}"
    if not (path / "config.yaml").is_file():
        raise _refused(f"{named} is not a run", "say where it lies now: distill.teacher=DIRECTORY")
    run = RunDir.open(path)
    teacher = config_file.load(run.config_file, imports=False)
    if run.done is None:
        raise _refused(f"{named} has not ended, so its weights may change", "train it to its end first")
    how, other = "in steps that augment", "augment by flip and dihedral alone"
    if not taught_in_steps(cfg):
        how, other = "with runtime.decoded_images", "decoded_images: off"
        if cfg.runtime.decoded_images == "off":
            return run, teacher  # which reads the images itself
    sizes = [c.data.image_size or registry.backbone(c.network).input_size for c in (teacher, cfg)]
    for key, theirs, ours in (
        ("image_size", *sizes),
        ("resize", teacher.data.resize, cfg.data.resize),
        ("crop_fraction", teacher.data.crop_fraction, cfg.data.crop_fraction),
        ("interpolation", teacher.data.interpolation, cfg.data.interpolation),
    ):
        if theirs != ours:
            what = f"{named} was trained with data.{key} {theirs}, but {how} it sees images of {ours}"
            raise _refused(what, f"write '{key}: {theirs}' below 'data:', or {other}")
    return run, teacher


def _refused(what: str, fix: str) -> Refusal:
    return Refusal(f"{what}.", fix=f"{fix}.", code=ExitCode.USAGE)
