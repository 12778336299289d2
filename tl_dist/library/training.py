"""Load configs, open data sets, and train from Python."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tl_dist.config import Config, DataConfig, registry
from tl_dist.config import file as config_file
from tl_dist.launcher import callbacks
from tl_dist.launcher.callbacks import CheckpointReport, EvaluationReport, StepReport
from tl_dist.library.run import Run
from tl_dist.refusal import ExitCode, Refusal
from tl_dist.terminal.console import Console

if TYPE_CHECKING:
    from tl_dist.datasets import Splits


def load_config(path: str | Path, *overrides: str) -> Config:
    """Load the config of a YAML file; `overrides`, each KEY=VALUE, take precedence, as on the command line.

    Raises `Refusal` for a missing file and for a wrong key or value, with its line and a fix.
    """
    from tl_dist.launcher.auto_config import values_for, with_authors_images

    return with_authors_images(config_file.load(Path(path), overrides, choose=values_for, by_user=True))


def open_dataset(data: Config | DataConfig) -> Splits:
    """Return the splits of a data set by name: always "train", and "validation" and "test" where it has them.

    Each has `num_examples`, `class_names`, `ids`, `labels` int32 [N], and `read(index)`, which tf.data can trace.
    Raises `Refusal` for data that is missing or not in its format.
    """
    from tl_dist.datasets.division import open_splits

    return open_splits(data.data if isinstance(data, Config) else data)[0]


def train(
    cfg: Config,
    *,
    runs: str | Path = "runs",
    here: bool = False,
    model: Any = None,
    head: Any = None,
    loss: Any = None,
    metrics: Mapping[str, Any] | None = None,
    augment: Any = None,
    data: Any = None,
    classes: Sequence[str] = (),
    workers: int | None = None,
    strategy: str | None = None,
    on_report: Callable[[StepReport], None] | None = None,
    on_evaluation: Callable[[EvaluationReport], None] | None = None,
    on_checkpoint: Callable[[CheckpointReport], None] | None = None,
    **of_keras: Any,
) -> Run:
    """Train a config to its end, or resume it, in the directory `runs`, as `tl-dist train` does.

    What is given here stands for its section of the config, and is kept in the run:
    `model` and `head`, functions that return a Keras model, or a functional model with its weights; `loss(targets,
    outputs)`, the loss of each row [rows]; `metrics` by name, functions of all targets and answers of a split, or
    metrics of Keras; `augment(image, seed)`; `data`, a split for training or splits by name (`train`, `validation`,
    `test`), each a pair of arrays (images uint8, labels), a tf.data.Dataset, a keras.utils.PyDataset or a pair (read,
    length); `classes`, their names.

    With `here` this process is the only worker: `strategy` must be single. Callbacks are called here with what rank 0
    records; one that raises stops the run. If interrupted, it returns a run whose `done` is False; the same call
    resumes it. Raises `Refusal` for any other end.
    """
    from tl_dist.datasets.given import packed
    from tl_dist.launcher import given
    from tl_dist.launcher.auto_config import with_authors_images
    from tl_dist.launcher.train import train_config
    from tl_dist.tasks import one_class_each

    given.refuse_import()
    callbacks.refuse_idioms(of_keras)
    cfg, console = callbacks.with_workers(cfg, workers, strategy), Console()
    if data is not None:
        with console.busy("keeping data") as show:
            data = packed(data, given.place(), of_classes=one_class_each(cfg), class_names=classes, show=show)
    cfg = given.with_objects(cfg, model=model, head=head, loss=loss, metrics=metrics, augment=augment, data=data)
    cfg = with_authors_images(cfg)
    listen = callbacks.Listener(Path(runs) / cfg.name, on_report, on_evaluation, on_checkpoint)
    code = _train_here(cfg, Path(runs), listen) if here else train_config(cfg, Path(runs), console, listen=listen)
    listen.raise_refusal()
    if code not in (ExitCode.DONE, ExitCode.REQUEUE):
        fix = f"see the lines above, and {Path(runs) / cfg.name / 'logs'}."
        raise Refusal(f"run '{cfg.name}' ended with exit code {code}.", fix=fix, code=ExitCode(code))
    return Run(Path(runs) / cfg.name)


def _train_here(cfg: Config, runs: Path, listen: Callable[[Mapping[str, Any]], None]) -> int:
    from tl_dist.launcher.train import open_run, resolved_here, with_trained_source

    cfg = resolved_here(cfg)
    if registry.strategy(cfg.strategy).workers != "one" or cfg.runtime.deterministic:
        setting = "runtime.deterministic" if cfg.runtime.deterministic else f"strategy '{cfg.strategy}'"
        what = f"{setting} needs processes of its own, and here=True has only this one."
        fix = "train it without here=True, or with strategy=single and runtime.deterministic=false."
        raise Refusal(what, fix=fix, code=ExitCode.USAGE)
    from tl_dist.launcher.companion import copying
    from tl_dist.terminal.progress import Progress
    from tl_dist.trainer import attempt
    from tl_dist.trainer.load_model import process_as_it_was
    from tl_dist.trainer.setup import setup

    with process_as_it_was():
        run = open_run(runs, with_trained_source(cfg, runs))
        if run.done is not None:
            return ExitCode.DONE
        run.clear_stop()
        try:
            with copying(run, cfg), Progress(Console(), every_s=cfg.report.every_s, listen=listen) as progress:
                return attempt.train(setup(run, cores=None), listen=progress.show)
        except KeyboardInterrupt:
            return ExitCode.REQUEUE
