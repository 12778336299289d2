"""Check the run that teaches another, as far as the login node can. Imports no TensorFlow."""

from __future__ import annotations

from pathlib import Path

from tl_dist.config import Config, registry
from tl_dist.config import file as config_file
from tl_dist.config.rules.training import taught_in_steps
from tl_dist.refusal import ExitCode, Refusal
from tl_dist.runs.directory import RunDir


def opened(cfg: Config) -> tuple[RunDir, Config]:
    """Return the run `cfg.distill.teacher` and its config.

    Refuses (64) a run that is missing or may still change, or that needs images of another size or crop than it gets.
    """
    assert cfg.distill is not None
    path = Path(cfg.distill.teacher)
    if not (path / "config.yaml").is_file():
        raise _cannot(f"{path} is not a run", "say where it lies now: distill.teacher=DIRECTORY")
    run = RunDir.open(path)
    teacher = config_file.load(run.config_file, imports=False)
    if run.done is None:
        raise _cannot(f"{path} has not ended, so its weights may change", "train it to its end first")
    shares_images = taught_in_steps(cfg) or cfg.runtime.decoded_images != "off"
    sizes = [c.data.image_size or registry.backbone(c.model.backbone).input_size for c in (teacher, cfg)]
    for key, theirs, ours in (
        ("image_size", *sizes),
        ("resize", teacher.data.resize, cfg.data.resize),
        ("crop_fraction", teacher.data.crop_fraction, cfg.data.crop_fraction),
    ):
        if shares_images and theirs != ours:
            how = "in steps that augment" if taught_in_steps(cfg) else "with runtime.decoded_images"
            raise _cannot(
                f"{path} was trained with data.{key} {theirs}, but {how} it sees images of {ours}",
                f"write '{key}: {theirs}' below 'data:'"
                + (
                    ", or augment by flip and dihedral alone"
                    if taught_in_steps(cfg)
                    else ", or decoded_images: off"
                ),
            )
    return run, teacher


def _cannot(what: str, fix: str) -> Refusal:
    return Refusal(f"distill.teacher {what}.", fix=f"{fix}.", code=ExitCode.USAGE)
