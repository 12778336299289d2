"""tl_dist from Python: what `import tl_dist` offers. Importing this module imports no framework.

import tl_dist as tl

cfg = tl.load_config("configs/quickstart.yaml", "epochs=4")
run = tl.train(cfg)
run.scores["test"]["accuracy"]
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tl_dist.config import Config, DataConfig, registry
from tl_dist.config import file as config_file
from tl_dist.refusal import ExitCode, Refusal
from tl_dist.runs.directory import RunDir

if TYPE_CHECKING:
    from tl_dist.datasets import Splits
    from tl_dist.scores.calibration import Calibration
    from tl_dist.scores.predictions import Predicted, Predictions


def load_config(path: str | Path, *overrides: str) -> Config:
    """The config of a YAML file with `overrides`, each KEY=VALUE, put over it, as the command line reads them.

    Imports the records that it names of other packages. Raises `Refusal` for a file that is missing, and for a key or
    value that is wrong, with its line and a fix.
    """
    from tl_dist.launcher.auto_config import values_for

    return config_file.load(Path(path), overrides, choose=values_for)


def open_dataset(data: Config | DataConfig) -> Splits:
    """The splits of a data set by name: "train" always, "validation" and "test" where they are.

    Each has `num_examples`, `class_names`, `ids`, `labels` int32 [N], and `read(index)`, to be traced by tf.data.
    Nothing is decoded. Raises `Refusal` for data that is not there or not what its format says.
    """
    from tl_dist.datasets.division import open_splits

    return open_splits(data.data if isinstance(data, Config) else data)[0]


def train(cfg: Config, *, runs: str | Path = "runs", here: bool = False) -> Run:
    """Train a config to its end, or resume it, below the directory `runs`; the same as `tl-dist train`.

    Workers are started as the config says, and shown as on the command line. With `here` this process is the only
    worker, as in a notebook: `strategy` must be single. It leaves dtype policy, seeds, umask and signal handlers as
    it found them, and may be called again. Interrupted, it returns a run whose `done` is False, and that the same call
    resumes. Raises `Refusal`.
    """
    from tl_dist.launcher.train import train_config
    from tl_dist.terminal.console import Console

    code = _train_here(cfg, Path(runs)) if here else train_config(cfg, Path(runs), Console())
    if code not in (ExitCode.DONE, ExitCode.REQUEUE):
        raise Refusal(
            f"run '{cfg.name}' ended with exit code {code}.",
            fix=f"see the lines above, and {Path(runs) / cfg.name / 'logs'}.",
            code=ExitCode(code),
        )
    return Run(Path(runs) / cfg.name)


def _train_here(cfg: Config, runs: Path) -> int:
    from tl_dist.launcher.train import resolved_here

    cfg = resolved_here(cfg)
    if registry.strategy(cfg.strategy).workers != "one" or cfg.runtime.deterministic:
        what = "runtime.deterministic" if cfg.runtime.deterministic else f"strategy '{cfg.strategy}'"
        raise Refusal(
            f"{what} needs processes of its own, and here=True has this one alone.",
            fix="train it without here=True, or with strategy=single and runtime.deterministic=false.",
            code=ExitCode.USAGE,
        )
    from tl_dist.launcher.companion import copying
    from tl_dist.launcher.train import open_run, with_trained_source
    from tl_dist.terminal.console import Console
    from tl_dist.terminal.progress import Progress
    from tl_dist.trainer import attempt
    from tl_dist.trainer.setup import process_as_it_was, setup

    with process_as_it_was():
        run = open_run(runs, with_trained_source(cfg, runs))
        if run.done is not None:
            return ExitCode.DONE
        run.clear_stop()
        try:
            with copying(run, cfg), Progress(Console(), every_s=cfg.report.every_s) as progress:
                return attempt.train(setup(run, cores=None), listen=progress.show)
        except KeyboardInterrupt:
            return ExitCode.REQUEUE


class Run:
    """A run on disk: its figures, its history, its predictions and its model. Reads only."""

    def __init__(self, path: str | Path) -> None:
        """Opens a run directory; raises `Refusal` where there is none."""
        self._directory = RunDir.open(path)
        self.path = self._directory.path

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r})"

    @property
    def config(self) -> Config:
        """What the run was started with, every value written out."""
        return config_file.load(self._directory.config_file, imports=False)

    @property
    def done(self) -> bool:
        """Whether it has been trained to its end and evaluated."""
        return self._directory.done is not None

    @property
    def scores(self) -> Mapping[str, Mapping[str, Any]]:
        """By split: accuracy, loss, and every other figure with its interval; empty before the end of the run."""
        return dict((self._directory.done or {}).get("figures", {}))

    def history(self, event: str = "train") -> list[dict[str, Any]]:
        """The records of one kind, oldest first: "train" (every `report.every_steps`), "evaluation", "resumed"."""
        from tl_dist.runs.records import records

        return [record for record in records(self._directory.metrics_file) if record.get("event") == event]

    def predictions(self, split: str) -> Predictions:
        """ids [N], labels [N] and probabilities [N, classes] of a held-out split. Raises `Refusal` without any."""
        from tl_dist.scores import predictions

        return predictions.load(predictions.file_of(self.path, split))

    def predict(self, images: str | Path | Sequence[str | Path], at: str = "") -> Predicted:
        """Probabilities [N, classes] of image files, folders and patterns, as `tl-dist predict` has them.

        In this process, on one device; `at` as for `keras_model`. The run may be in use, and its data set gone. Raises
        `Refusal` without a checkpoint, and for a name for which there is nothing.
        """
        from tl_dist.datasets.unlabelled import listed, unreadable
        from tl_dist.trainer.load_model import loaded
        from tl_dist.trainer.predict import predicted
        from tl_dist.trainer.setup import process_as_it_was

        names = [images] if isinstance(images, str | Path) else images
        paths = listed([str(name) for name in names])
        with process_as_it_was():
            overrides = ("strategy=single", "workers=1")
            model = loaded(self._directory, at, cores=None, overrides=overrides)
            known = {k: reason for some in unreadable(paths) for k, reason in some.items()}
            return predicted(model, paths, known)

    def calibrate(self, *, unknown: bool = False, at: str = "") -> Calibration:
        """Fit a temperature to the validation split of a checkpoint and keep it, as `tl-dist calibrate` does.

        In this process; from then on `predict`, `keras_model` and `export` give calibrated probabilities of this
        checkpoint. With `unknown` also what `tl-dist predict --unknown` compares images with. Raises `Refusal` without
        a validation split.
        """
        from tl_dist.launcher import read_only
        from tl_dist.tools.calibrate.command import keep
        from tl_dist.tools.calibrate.work import calibrate
        from tl_dist.trainer.load_model import loaded
        from tl_dist.trainer.setup import process_as_it_was

        with process_as_it_was(), read_only.directory() as place:
            overrides = ("strategy=single", "workers=1")
            model = loaded(self._directory, at, cores=None, overrides=overrides)
            calibrate(model, place, unknown=unknown)
            return keep(place, self._directory)

    def report(
        self,
        out: str | Path | None = None,
        *,
        against: Sequence[Run] = (),
        split: str | None = None,
        heat_maps: int = 40,
    ) -> Path:
        """Write the page of `tl-dist report` about this run, or about it and others `against` it; where it lies.

        `out` is by default `report.html` in the run directory, of several runs `comparison.html` here; `split` is by
        default test. Heat maps of so many errors are computed by a worker of its own; 0 starts none. A page of a
        tracked run is sent. Raises `Refusal` without predictions, without jinja2, and rather than replace a file that
        is no such page.
        """
        from tl_dist.tools.explain.command import ask
        from tl_dist.tools.report.command import Request, report
        from tl_dist.tools.track.command import after_report

        paths = [self.path, *(run.path for run in against)]
        target = None if out is None else Path(out)
        made = report(Request(paths, target, split, heat_maps, explain=ask), lambda text: None)
        if not against:
            after_report(self.path, made)
        return made

    def keras_model(self, at: str = "") -> Any:
        """A `keras.Model`: uint8 RGB images [batch, size, size, 3] in, probabilities [batch, classes] out.

        Preprocessing, backbone and head of a checkpoint, with averaged weights where the run keeps them: what the run
        evaluated. `at` is "best", "last" or a step; by default the best where the run keeps one. Before its end that
        holds but for batch norm, whose moving statistics are taken as they are. Made of Keras's own
        layers. Raises `Refusal` without a checkpoint.
        """
        from tl_dist.trainer.load_model import restored

        return restored(self._directory, at).model

    def export(
        self,
        to: str,
        out: str | Path | None = None,
        *,
        numbers: str = "float32",
        check: str = "test",
        min_agreement: float | None = None,
        at: str = "",
    ) -> dict[str, Any]:
        """Write the model for another runtime, compared with the run image by image, as `tl-dist export`; its report.

        `to` is savedmodel, keras, onnx or litert, `numbers` also float16 or int8 for litert; `out` is a directory, by
        default below the run's `exports`; `check` is a split, or "none"; `at` names a checkpoint, as for `keras_model`.
        Raises `Refusal` for an export that gives fewer images than `min_agreement` the class that the run gives them;
        then nothing is written.
        """
        from tl_dist.tools.export import Request
        from tl_dist.tools.export.command import default_directory
        from tl_dist.tools.export.work import export
        from tl_dist.trainer.setup import process_as_it_was

        target = Path(out) if out is not None else default_directory(self._directory, to, numbers)
        with process_as_it_was():
            return export(
                self._directory,
                Request(
                    to=to, numbers=numbers, out=str(target), check=check, min_agreement=min_agreement, at=at
                ),
                cores=None,
            )
