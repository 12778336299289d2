"""Train a run from its newest checkpoint through the stages that are left, to DONE or a stop: one attempt.

Start here to read how a run is trained. The calls from a worker's process to a gradient, in order:

1. `trainer.__main__.main` parses the arguments; its `_train` builds what the worker holds (`trainer.setup.setup`).
2. `trainer.attempt.train` restores the newest checkpoint, and proves that all workers agree.
3. `trainer.attempt._train_stage` adapts what the stage reads: images, a teacher's logits, cached features.
4. `trainer.stage.StageTraining.run` trains and evaluates the stage, and chooses its weights.
5. `trainer.stage.StageTraining._train` does what falls due between steps: evaluate, compare weights, save.
6. `training.loop.train` runs one chunk of steps after another; it yields a report of each.
7. `training.chunk.SequentialSteps.run_steps` loops over the steps of a chunk in the graph.
8. `training.step.TrainStep.__call__` computes one step: forward, backward, reduce, update.
9. `training.step.TrainStep._forward_backward` computes the gradient of a micro-batch, called by `gradients`.

A stop is a `StopRequested`, raised at the same step on all workers from wherever it was noticed, and caught in `train`.
"""

import json
import math
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from operator import itemgetter

from tl_dist import tasks
from tl_dist.config import batch_norm, code, registry
from tl_dist.config.rules.training import taught_in_steps
from tl_dist.config.stages import Stage
from tl_dist.data.order import batch_deviation
from tl_dist.datasets import seen
from tl_dist.models import lora
from tl_dist.refusal import ExitCode
from tl_dist.runs.checkpoint import Checkpointer
from tl_dist.runs.lock import Lock
from tl_dist.runs.lock.owner import OwningJob
from tl_dist.trainer import agreement, cached, distillation, model_selection, refit
from tl_dist.trainer.distillation import Teacher
from tl_dist.trainer.run_writer import Listen, RunWriter
from tl_dist.trainer.setup import Setup, StageInput, StopRequested, from_images, restore
from tl_dist.trainer.stage import StageTraining

REQUEUE_WAIT_S = 35.0  # longer than a lock's heartbeats are believed


def train(setup: Setup, *, job: OwningJob | None = None, listen: Listen | None = None) -> ExitCode:
    """Train from the newest checkpoint to the end, then evaluate every held-out split. Returns DONE or REQUEUE.

    `job` is the Slurm job that this process belongs to; `listen` gets each record that rank 0 writes.
    """
    model_selection.refuse_undecidable(setup.cfg, setup.splits)
    setup.objective()  # refuses weights of other classes before the run has begun, so that they may be corrected
    with ExitStack() as held, setup.parallel.naming_lost_peers():
        held.callback(setup.run.beats.space, 0.0)  # the last heartbeat of this worker, before it ends
        checkpointer = held.enter_context(_checkpointer(setup, job, held)) if setup.is_first else None
        setup.beat("starting")
        setup.beat("comparing with what its start has seen", alone=True)
        leaks = []
        if setup.is_first:
            begun, opened = setup.run.read_identity() is not None, setup.examples.opened
            leaks = seen.flattered(setup.cfg, setup.run.path.parent, "train", opened, begun=begun)
        teacher = distillation.load_teacher(setup)
        agreement.prove(setup, None if teacher is None else teacher.sha256)
        if setup.is_first:
            seen.record(setup.run, setup.cfg, opened)
        notes = _notes(setup, teacher)
        if checkpointer is not None:
            restored = restore(setup, notes.append)
            if restored is not None:
                checkpointer.resume_from(restored.step)
        state, parallel = setup.state, setup.parallel  # all workers get those of rank 0
        parallel.broadcast(list(state.variables.values()))
        (first, *_) = parallel.gather(json.dumps([state.step, state.history]).encode())
        state.agree_on(*json.loads(first))
        writer = None
        if checkpointer is not None:
            writer = RunWriter(
                setup.run,
                setup.cfg,
                setup.state,
                checkpointer,
                total_steps=setup.total_steps,
                steps_per_epoch=setup.steps_per_epoch,
                num_workers=setup.parallel.num_replicas,
                class_names=setup.splits["train"].class_names,
                meta={"versions": agreement.versions(setup.cfg), "precision": setup.precision},
                listen=listen,
            )
            held.callback(writer.close)
            for text in notes:
                writer.note(text)
            for text in leaks:
                writer.tell({"event": "note", "text": text, "flattered": True})
        try:
            for stage in setup.stages_left:
                _train_stage(setup, stage, teacher, writer)
            finished = True
        except StopRequested:
            finished = False
        setup.beat("saving", alone=True)
        if writer is not None:
            writer.save(wait=True)
            if finished:
                writer.done()
    return ExitCode.DONE if finished else ExitCode.REQUEUE


def _checkpointer(setup: Setup, job: OwningJob | None, held: ExitStack) -> Checkpointer:
    """Take the run's lock, and return its only writer of checkpoints; remove what an earlier owner left unfinished."""
    # A job that was requeued may start while the heartbeat of its first life, on another host, is still fresh.
    wait_s = REQUEUE_WAIT_S if job and job.restart_count else 0.0
    lock = held.enter_context(Lock.acquire(setup.run, job=job, wait_s=wait_s))
    setup.run.refuse_other_config(setup.cfg)
    setup.run.probe_storage()
    cfg = setup.cfg.checkpoint
    return Checkpointer(setup.run, keep=cfg.keep, owned=lock.owned, max_failed=cfg.max_failed)


def _train_stage(setup: Setup, stage: Stage, teacher: Teacher | None, writer: RunWriter | None) -> None:
    """Do what is left of a stage."""
    begins = setup.state.step == stage.first_step
    tell = writer.tell if writer else lambda record: None
    setup.prepare_for(f"preparing stage {stage.number + 1}")
    stage_input = from_images(setup, stage)
    for text in _stage_notes(setup, stage_input):
        tell({"event": "note", "text": text})
    refit.fit_layers(setup, tell)
    if stage.number and begins:
        setup.optimizer.begin(stage.number)
    for adapt in (partial(distillation.add_teacher, teacher), cached.use_features, cached.fit_head):
        stage_input = adapt(setup, stage_input, tell)
    own = code.among((*setup.cfg.data.augment, setup.cfg.loss.name))
    setup.prepare_for(f"compiling stage {stage.number + 1}{own}")
    StageTraining(setup, stage_input, writer).run()


def _notes(setup: Setup, teacher: Teacher | None) -> list[str]:
    """Return the notes that rank 0 records before any other."""
    notes, bad, cfg, order = [], setup.examples.bad, setup.cfg, setup.order
    notes += [f"look at the labels: {remark}" for remark in tasks.of(cfg).remarks(setup.splits["train"].class_names)]
    if bad:
        several = "s" if len(bad) > 1 else ""
        file = setup.run.quarantine_file.name
        notes.append(f"{len(bad)} bad example{several} in {file}, first {bad[0].id}: {bad[0].reason}")
    if setup.is_first and order.block:
        labels = setup.splits["train"].labels
        ours, full = (batch_deviation(shuffled, labels) for shuffled in (order, replace(order, block=0)))
        notes.append(
            f"shuffled in blocks of {order.block:,} and windows of {order.window:,}: the classes of a batch deviate "
            f"by {ours:.3f} from those of the set, {full:.3f} if fully shuffled"
        )
    if order.by_class is not None:
        names, often = setup.splits["train"].class_names, order.by_class.draws_per_epoch()
        (rare, most), (common, least) = max(often, key=itemgetter(1)), min(often, key=itemgetter(1))
        notes.append(
            f"classes are drawn equally often: per epoch, each example of '{names[rare]}' is seen {most:.3g} times, "
            f"of '{names[common]}' {least:.3g} times"
        )
    if setup.model.statistics and cfg.model.batch_norm == "auto":
        notes.append(f"batch norm: {batch_norm.explained(cfg)}")
    if teacher is not None:
        how = "in each step" if taught_in_steps(cfg) else "from its kept outputs"
        notes.append(f"taught by {teacher.cfg.model.backbone} of {teacher.run.path}, {how}")
    if not isinstance(cfg.model.adapt, str):
        shapes = [v.shape for path, v in setup.model.trainable.items() if path.endswith(lora.NAMES)]
        notes.append(f"LoRA: {sum(map(math.prod, shapes)):,} parameters in {len(shapes) // 2} adapters")
    if cfg.model.prune:
        network = setup.model.network
        whole = registry.backbone(cfg.network).build(network.input_shape[1:])
        notes.append(f"pruned: {network.count_params():,} of the backbone's {whole.count_params():,} parameters")
    return notes


def _stage_notes(setup: Setup, stage_input: StageInput) -> list[str]:
    """Return the notes that rank 0 records when a stage begins or resumes."""
    notes, stage, settings = [], stage_input.stage, stage_input.stage.optimizer
    if setup.cfg.stages:
        notes.append(
            f"stage {stage.number + 1} of {len(setup.stages)}: train_from '{stage.train_from}' to step {stage.end}"
        )
    if settings.layer_decay < 1 and stage.train_from != "head":
        # The rates: published values of layer_decay mean little without the number of blocks.
        path, factor = setup.optimizer.slowest(stage.number)
        blocks = {depth for path, depth in setup.model.depths.items() if path in stage_input.model.trainable}
        notes.append(
            f"layer_decay {settings.layer_decay:g} over {len(blocks)} block{'s' * (len(blocks) > 1)}: "
            f"{path.split('/')[1]} learns at {settings.learning_rate * factor:.2g}, "
            f"the head at {settings.head_learning_rate or settings.learning_rate:g}"
        )
    return notes
