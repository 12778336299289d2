"""Learn the outputs of a trained run, the teacher: computed once where possible, else in each step.

The teacher sees each image as the model does ("consistent teaching", Beyer et al., arXiv 2106.05237). If there are few
augmentations, it computes every view of an example once, over all workers, and its logits are looked up as features
are; if the augmentations are endless, or images are mixed, the teacher is a frozen part of the step.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import tensorflow as tf

from tl_dist import tasks
from tl_dist.config import Config, registry
from tl_dist.config.rules.training import taught_in_steps
from tl_dist.features import extraction
from tl_dist.features import views as feature_views
from tl_dist.models.classifier import Classifier, digest
from tl_dist.parallel import rows_of
from tl_dist.refusal import ExitCode, Refusal
from tl_dist.runs.directory import RunDir
from tl_dist.runs.identity import columns, identity_of
from tl_dist.runs.init_from import opened_teacher
from tl_dist.trainer import cached
from tl_dist.trainer.load_model import image_size_of, load_run, process_as_it_was
from tl_dist.trainer.setup import Setup, StageInput


@dataclass(frozen=True)
class Teacher:
    """A trained model, the same on every worker."""

    run: RunDir
    cfg: Config
    model: Classifier
    columns: Sequence[int]  # of the teacher's logits, one for each class of the student
    facts: dict[str, Any]  # all that determines the logits

    def in_order(self, logits: Any) -> Any:
        """Return the teacher's logits, float32 [rows, classes], with the classes in the student's order."""
        return tf.gather(logits, self.columns, axis=-1)

    @property
    def sha256(self) -> str:
        """The digest of all that determines the logits."""
        return hashlib.sha256(json.dumps(self.facts, sort_keys=True).encode()).hexdigest()


def load_teacher(setup: Setup) -> Teacher | None:
    """Return the teacher that the config names, as rank 0 reads it; None where it names none.

    Refuses what `runs.init_from.opened_teacher` refuses, other classes, and another teacher than the run began with.
    """
    if setup.cfg.distill is None:
        return None
    setup.prepare_for("loading the teacher")
    run, cfg = opened_teacher(setup.cfg)
    tasks.refuse_others(cfg, "distill.teacher teaches one class for each image")
    places = columns(run, setup.splits["train"].class_names, "distill.teacher")
    precision = identity_of(run)["precision"]
    with process_as_it_was():
        model, _ = load_run(run, cfg, parallel=setup.parallel, precision=precision)
    variables = {**model.moving, **model.frozen}
    facts = {
        "backbone": registry.without_folder(cfg.network),
        "weights_sha256": digest({path: v.numpy() for path, v in variables.items()}),
        "head": cfg.model.model_dump(mode="json", include={"pooling", "normalize", "layers"}),
        "precision": precision,
        "image_size": image_size_of(cfg),
        "crop_fraction": cfg.data.square.crop_fraction,
        **cfg.data.square.changes(),
    }
    teacher = Teacher(run, cfg, model, places, facts)
    began_with = (setup.run.read_identity() or {}).get("teacher_sha256", teacher.sha256)
    if teacher.sha256 != began_with:
        raise Refusal(
            f"distill.teacher {run.path} is not what {setup.run.path} began with: its outputs are determined by "
            f"sha256 {teacher.sha256[:12]}, not {began_with[:12]}.",
            fix="set distill.teacher to the directory of that teacher, or start a new run with another name=NAME.",
            code=ExitCode.UNSAFE,
        )
    return teacher


def add_teacher(teacher: Teacher | None, setup: Setup, stage_input: StageInput, say: extraction.Say) -> StageInput:
    """Return the same stage with the teacher's logits for its training images; without a teacher, as it is."""
    cfg, source = setup.cfg, setup.splits["train"]
    if teacher is None or setup.state.step >= stage_input.stage.end:
        return stage_input
    if taught_in_steps(cfg):
        return replace(stage_input, teacher=lambda images: teacher.in_order(teacher.model(images)))
    prefix = extraction.Prefix(
        teacher.model,
        image_size_of(teacher.cfg),
        {"cut": "logits", **teacher.facts},
        square=teacher.cfg.data.square,
        shape=(len(teacher.columns),),
    )
    share = rows_of(setup.parallel.rank, setup.parallel.world_size, source.num_examples)
    with setup.examples.naming_bad("train", lambda: share):
        find = cached.finder(setup, prefix, partial(setup.stop_requested, cached.PHASE), say)
        logits = find(source, augmentations=cfg.data.augment, split="train by the teacher")

    def look_up(indices: Any, positions: Any) -> Any:
        views = feature_views.drawn_views(cfg.data.augment, cfg.seed, positions)
        return teacher.in_order(logits.rows(indices, views))

    return replace(stage_input, look_up=look_up)
