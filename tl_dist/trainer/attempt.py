"""One attempt at a run: from the newest checkpoint through the stages that are left, to DONE or a stop.

Start here to read how a run goes. What each worker holds is made by `setup`, what falls due between the steps of a
stage is in `stage`, the loop over steps in `training.loop`, and a step's arithmetic in `training.step`.
"""

from __future__ import annotations

import json
from contextlib import ExitStack
from dataclasses import replace
from functools import partial

from tl_dist.config import batch_norm, registry
from tl_dist.config.stages import Stage
from tl_dist.data.order import batch_deviation
from tl_dist.datasets import seen
from tl_dist.refusal import ExitCode
from tl_dist.runs.checkpoint import Checkpointer
from tl_dist.runs.lock import Lock
from tl_dist.runs.lock.owner import OwningJob
from tl_dist.trainer import agreement, cached, decidable, distillation, rank_zero, refit
from tl_dist.trainer.distillation import Teacher
from tl_dist.trainer.rank_zero import Listen, Recorder
from tl_dist.trainer.setup import Setup, restore
from tl_dist.trainer.stage import StageTraining
from tl_dist.trainer.stage_input import StageInput, from_images

REQUEUE_WAIT_S = 35.0  # longer than a lock's heartbeats are believed


def train(setup: Setup, *, job: OwningJob | None = None, listen: Listen | None = None) -> ExitCode:
    """Train from the newest checkpoint to the end, then evaluate every held-out split. Returns DONE or REQUEUE.

    `job` is the Slurm job that this is a part of; `listen` gets each record that rank 0 writes down.
    """
    decidable.refuse(setup.cfg, setup.splits)
    with ExitStack() as held, setup.parallel.naming_lost_peers():
        held.callback(setup.run.beats.space, 0.0)  # the last word of this worker, before it ends
        checkpointer = held.enter_context(_checkpointer(setup, job, held)) if setup.is_first else None
        setup.beat("starting")
        flattered = _flattered(setup)
        teacher = distillation.loaded(setup)
        agreement.prove(setup, None if teacher is None else teacher.sha256)
        if setup.is_first:
            seen.record(setup.run, setup.cfg, setup.examples.opened)
        notes = _notes(setup, teacher)
        if checkpointer is not None:
            restored = restore(setup, notes.append)
            if restored is not None:
                checkpointer.resume_from(restored.step)
        _same_state(setup)
        recorder = held.enter_context(rank_zero.recorder(setup, checkpointer, notes, listen))
        for text in flattered:
            recorder.tell({"event": "note", "text": text, "flattered": True})
        finished = all(_train_stage(setup, stage, teacher, recorder) for stage in setup.stages_left)
        setup.beat("saving", alone=True)
        recorder.save(wait=True)
        if finished:
            recorder.done()
    return ExitCode.DONE if finished else ExitCode.REQUEUE


def _checkpointer(setup: Setup, job: OwningJob | None, held: ExitStack) -> Checkpointer:
    """The run's only writer of checkpoints: takes the lock, and removes what an earlier owner left unfinished."""
    # A job that was requeued may start while the heartbeat of its first life, on another host, is still fresh.
    wait_s = REQUEUE_WAIT_S if job and job.restart_count else 0.0
    lock = held.enter_context(Lock.acquire(setup.run, job=job, wait_s=wait_s))
    setup.run.refuse_other_config(setup.cfg)
    setup.run.probe_storage()
    cfg = setup.cfg.checkpoint
    return Checkpointer(setup.run, keep=cfg.keep, owned=lock.owned, max_failed=cfg.max_failed)


def _same_state(setup: Setup) -> None:
    """Give all workers the state of rank 0."""
    state, parallel = setup.state, setup.parallel
    parallel.broadcast(list(state.variables.values()))
    (first, *_) = parallel.gather(json.dumps([state.step, state.history]).encode())
    state.agree_on(*json.loads(first))


def _train_stage(setup: Setup, stage: Stage, teacher: Teacher | None, recorder: Recorder) -> bool:
    """Do what is left of a stage; whether its end was reached, rather than a stop."""
    first_step = setup.state.step
    setup.prepare_for(f"preparing stage {stage.number + 1}")
    given = from_images(setup, stage)
    for text in _of_stage(setup, given):
        recorder.tell({"event": "note", "text": text})
    if not refit.refitted(setup, recorder.tell):
        return False
    if stage.number and first_step == stage.first_step:
        setup.optimizer.begin(stage.number)
    stop_requested = partial(setup.stop_requested, "extracting features")
    if teacher is not None and first_step < stage.end:
        taught = distillation.by(teacher, setup, given, stop_requested, recorder.tell)
        if taught is None:
            return False
        given = taught
    if cached.is_wanted(setup, given, recorder.tell):
        features = cached.from_features(setup, given, stop_requested, recorder.tell)
        if features is None:
            return False
        given = features
    computed = setup.cfg.classifier.computed and first_step == 0
    if computed and not cached.fit_head(setup, given, recorder.tell):
        return False
    setup.prepare_for(f"compiling stage {stage.number + 1}")
    return StageTraining(setup, given, recorder).run()


def _flattered(setup: Setup) -> list[str]:
    """What is to be said of held-out images that were seen before this run; it is refused before it begins."""
    run, begun = setup.run, setup.run.read_identity() is not None
    setup.beat("comparing with what its start has seen", alone=True)
    if not setup.is_first:
        return []
    return seen.flattered(setup.cfg, run.path.parent, "train", setup.examples.opened, begun=begun)


def _notes(setup: Setup, teacher: Teacher | None) -> list[str]:
    """What rank 0 writes down before anything else."""
    notes, bad = [], setup.examples.bad
    if bad:
        several = "s" if len(bad) > 1 else ""
        file = setup.run.quarantine_file.name
        notes.append(f"{len(bad)} bad example{several} in {file}, first {bad[0].id}: {bad[0].reason}")
    if setup.is_first and setup.order.block:
        notes.append(_how_mixed(setup))
    if setup.model.statistics and setup.cfg.model.batch_norm == "auto":
        notes.append(f"batch norm: {batch_norm.explained(setup.cfg)}")
    if teacher is not None:
        notes.append(distillation.note(teacher, setup.cfg))
    if setup.cfg.model.prune:
        network = setup.model.network
        whole = registry.backbone(setup.cfg.model.backbone).build(network.input_shape[1:])
        notes.append(
            f"pruned: {network.count_params():,} of the backbone's {whole.count_params():,} parameters"
        )
    return notes


def _how_mixed(setup: Setup) -> str:
    order, labels = setup.order, setup.splits["train"].labels
    ours, full = (batch_deviation(made, labels) for made in (order, replace(order, block=0)))
    return (
        f"shuffled in blocks of {order.block:,} and windows of {order.window:,}: the classes of a batch deviate by "
        f"{ours:.3f} from those of the set, {full:.3f} if fully shuffled"
    )


def _of_stage(setup: Setup, given: StageInput) -> list[str]:
    """What rank 0 writes down of a stage that begins or resumes."""
    notes, stage = [], given.stage
    if setup.cfg.stages:
        notes.append(
            f"stage {stage.number + 1} of {len(setup.stages)}: train_from '{stage.train_from}' to step {stage.end}"
        )
    if stage.optimizer.layer_decay < 1 and stage.train_from != "head":
        notes.append(_rates(setup, given))
    return notes


def _rates(setup: Setup, given: StageInput) -> str:
    """What layer_decay makes of the learning rate: published values mean little without the number of blocks."""
    settings = given.stage.optimizer
    path, factor = setup.optimizer.slowest(given.stage.number)
    blocks = {depth for path, depth in setup.model.depths.items() if path in given.model.trainable}
    return (
        f"layer_decay {settings.layer_decay:g} over {len(blocks)} block{'s' * (len(blocks) > 1)}: "
        f"{path.split('/')[1]} learns at {settings.learning_rate * factor:.2g}, "
        f"the head at {settings.head_learning_rate or settings.learning_rate:g}"
    )
