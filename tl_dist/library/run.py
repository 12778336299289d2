"""Give access to a run on disk from Python, and do with it what the command line does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tl_dist.config import Config
from tl_dist.config import file as config_file
from tl_dist.refusal import ExitCode, Refusal
from tl_dist.runs.directory import RunDir
from tl_dist.runs.records import records
from tl_dist.scores import predictions

if TYPE_CHECKING:
    from tl_dist.scores.calibration import Calibration
    from tl_dist.scores.decision import Decision
    from tl_dist.scores.predictions import Predicted, Predictions
    from tl_dist.scores.residuals import Residuals

_HERE = ("strategy=single", "workers=1")


class Run:
    """Give access to a run on disk: its figures, history, predictions and model."""

    def __init__(self, path: str | Path) -> None:
        """Open a run directory. Raises `Refusal` where there is none."""
        self._directory = RunDir.open(path)
        self.path = self._directory.path

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r})"

    @property
    def config(self) -> Config:
        """The config that the run was started with, with every default filled in."""
        return config_file.load(self._directory.config_file, imports=False)

    @property
    def done(self) -> bool:
        """True once the run has been trained to its end and evaluated."""
        return self._directory.done is not None

    @property
    def scores(self) -> Mapping[str, Mapping[str, Any]]:
        """Accuracy, loss and all other figures with intervals, by split; empty before the end of the run."""
        return dict((self._directory.done or {}).get("figures", {}))

    @property
    def decision(self) -> Decision | None:
        """The rule for the class that `tl-dist threshold` has chosen; None if the most probable class is taken."""
        from tl_dist.runs.identity import identity_of
        from tl_dist.scores import decision

        return decision.kept(self.path, len(identity_of(self._directory)["class_names"]))

    def history(self, event: str = "train") -> list[dict[str, Any]]:
        """Return records oldest first: "train" (every `report.every_steps`), "evaluation" or "resumed"."""
        return [record for record in records(self._directory.metrics_file) if record.get("event") == event]

    def predictions(self, split: str) -> Predictions:
        """Load ids [N], labels [N] and probabilities [N, classes] of a held-out split. Raises `Refusal` without any.

        Of a task with several labels or with numbers, `targets` [N, names] are the truth, and `probabilities` the
        answers.
        """
        return predictions.load(predictions.file_of(self.path, split))

    def predict(self, images: str | Path | Sequence[str | Path], at: str = "") -> Predicted:
        """Predict probabilities [N, classes] for image files, folders and patterns, as `tl-dist predict` does.

        Runs in this process, on one device; `at` as for `keras_model`. The run may be in use and its data set gone.
        Raises `Refusal` without a checkpoint, and for a name that matches nothing.
        """
        from tl_dist.datasets.unlabelled import listed, unreadable
        from tl_dist.trainer.load_model import loaded, process_as_it_was
        from tl_dist.trainer.predict import predicted

        names = [images] if isinstance(images, str | Path) else images
        paths = listed([str(name) for name in names])
        with process_as_it_was():
            model = loaded(self._directory, at, cores=None, overrides=_HERE)
            known = {k: reason for reasons in unreadable(paths) for k, reason in reasons.items()}
            return predicted(model, paths, known)

    def evaluate(
        self,
        split: str = "",
        *,
        data: str | Path | None = None,
        views: str | Sequence[str] | None = None,
        by: str | Sequence[str] = (),
        corruptions: str | None = None,
        severity: str | None = None,
        at: str = "",
        workers: int | None = None,
    ) -> Mapping[str, Any]:
        """Evaluate a checkpoint as `tl-dist eval` does, and return its record, as in `history("evaluation")`.

        "accuracy", "loss", "num_examples", "figures" as in `scores`, "classes", and "groups" by each kind in `by`
        ("any", a column or a regular expression). `split` is test by default; `data` names other labelled images or a
        config; `views` are averaged. With `corruptions` ("all", or such as "noise,blur") the record is of corrupted
        images: "accuracy" by name and `severity`, by default "1-5". Starts `workers`, by default one for each GPU; `at`
        as for `keras_model`. Raises `Refusal` for a split that the run has not, and while it trains.
        """
        from tl_dist.launcher.task import Computation
        from tl_dist.tools.evaluate.command import record_of

        names = views if isinstance(views, str) else ",".join(views or ())
        how = Computation(at, None, workers, [] if views is None else [f"evaluation.views=[{names}]"])
        place, kinds = None if data is None else Path(data), [by] if isinstance(by, str) else by
        options: dict[str, Any] = {"corruptions": corruptions, "severity": severity}
        return record_of(self.path, split or None, how, data=place, by=kinds, **options)

    def calibrate(self, *, unknown: bool = False, at: str = "") -> Calibration | Residuals:
        """Fit a temperature to the validation split of a checkpoint and keep it, as `tl-dist calibrate` does.

        Of a regression, keep how far its numbers are from the truth, for the intervals of `tl-dist predict`.
        Runs in this process; from then on `predict`, `keras_model` and `export` give calibrated probabilities for this
        checkpoint. With `unknown` it also keeps the features that `tl-dist predict --unknown` compares images with.
        Raises `Refusal` without a validation split.
        """
        from tl_dist.launcher import read_only
        from tl_dist.tools.calibrate.command import keep
        from tl_dist.tools.calibrate.work import calibrate
        from tl_dist.trainer.load_model import loaded, process_as_it_was

        with process_as_it_was(), read_only.directory() as place:
            model = loaded(self._directory, at, cores=None, overrides=_HERE)
            calibrate(model, place, unknown=unknown)
            return keep(place, self._directory)

    def threshold(
        self,
        *,
        recall: float | None = None,
        precision: float | None = None,
        of_class: str | None = None,
        costs: str | Path | None = None,
        f1: bool = False,
        at: str = "",
    ) -> Decision:
        """Choose a rule for the class on the validation split and keep it in the run, as `tl-dist threshold` does.

        Give exactly one of `recall` and `precision`, shares of `of_class` (default: the second of two), `costs`, a CSV
        table of mistakes, and `f1`, of several labels. Raises `Refusal` for what no threshold reaches.
        """
        from tl_dist.tools.threshold.command import Wish, choose

        wish = Wish(recall, precision, of_class, None if costs is None else Path(costs), f1)
        if sum(aim not in (None, False) for aim in (recall, precision, costs, f1)) != 1:
            what = "threshold needs one aim."
            raise Refusal(what, fix="give one of recall, precision, costs and f1.", code=ExitCode.USAGE)
        return choose(self.path, wish, at)[0]

    def explain(
        self,
        images: str | Path | Sequence[str | Path],
        out: str | Path | None = None,
        *,
        method: str = "layercam",
        of_class: str | None = None,
        at: str = "",
    ) -> list[Path]:
        """Draw which parts of each image decide its class, as `tl-dist explain` does; return the paths of the pictures.

        `images` as for `predict`; the pictures lie beside them, or in the folder `out`. `method` is layercam, gradcam
        or rollout; `of_class` defaults to the predicted one. Starts workers; `at` as for `keras_model`. Raises
        `Refusal` for an image that cannot be decoded, an unknown class, and where another picture would be replaced.
        """
        from tl_dist.launcher.task import Computation
        from tl_dist.tools.explain.command import explain

        names = [str(name) for name in ([images] if isinstance(images, str | Path) else images)]
        options: dict[str, Any] = {"out": None if out is None else Path(out), "cam": method, "of_class": of_class}
        return explain(self._directory, names, Computation(at), lambda text: None, **options)

    def report(
        self,
        out: str | Path | None = None,
        *,
        against: Sequence[Run] = (),
        split: str | None = None,
        heat_maps: int = 40,
    ) -> Path:
        """Write the page of `tl-dist report` and return its path; with `against`, compare those runs with this one.

        `out` defaults to `report.html` in the run directory, or to `comparison.html` in the working directory for
        several runs; `split` to test. A worker draws `heat_maps` errors; 0 starts none. The page of a tracked run is
        sent. Raises `Refusal` without predictions and where `out` is another file.
        """
        from tl_dist.tools.explain.command import ask
        from tl_dist.tools.report.command import Request, report
        from tl_dist.tools.track.command import after_report

        paths = [self.path, *(run.path for run in against)]
        target = None if out is None else Path(out)
        page = report(Request(paths, target, split, heat_maps, explain=ask), lambda text: None)
        if not against:
            after_report(self.path, page)
        return page

    def keras_model(self, at: str = "") -> Any:
        """Build a `keras.Model`: uint8 RGB images [batch, size, size, 3] in, probabilities [batch, classes] out.

        It is what the run evaluated, in Keras's own layers; before the end of a run, batch norm has its moving
        statistics as they are. `at` is "best", "last" or a step; default: the best if the run keeps one, else the
        last. Raises `Refusal` without a checkpoint.
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
        """Export the model for another runtime, as `tl-dist export` does, and return the comparison with the run.

        `to` is savedmodel, keras, onnx or litert; `numbers` may be float16 or int8 for litert; `out` is a directory, by
        default below the run's `exports`; `check` is a split, or "none"; `at` names a checkpoint, as for `keras_model`.
        Raises `Refusal`, and writes nothing, where export and run agree on a smaller share of images than
        `min_agreement`.
        """
        from tl_dist.tools.export import Request
        from tl_dist.tools.export.command import default_directory
        from tl_dist.tools.export.work import export
        from tl_dist.trainer.load_model import process_as_it_was

        target = str(out or default_directory(self._directory, to, numbers))
        wanted = Request(to=to, numbers=numbers, out=target, check=check, min_agreement=min_agreement, at=at)
        with process_as_it_was():
            return export(self._directory, wanted, cores=None)

    def prune(self, by: float = 0.5, *overrides: str) -> Config:
        """Return the config of a copy with fewer channels that learns from this run, as `tl-dist prune` trains it.

        `by` is the share of channels to remove, smallest filters first; `overrides`, each KEY=VALUE, take precedence.
        Raises `Refusal` for a share out of range, and for a network that cannot be pruned.
        """
        from tl_dist.tools.prune.command import pruned

        return pruned(self._directory, by, overrides)

    def serve(self, host: str = "127.0.0.1", port: int = 8501, *, at: str = "") -> None:
        """Serve the model over HTTP as `tl-dist serve` does, in a process of its own, until this one is interrupted.

        Prints the address; `port` 0 takes a free one; `at` as for `keras_model`. Raises `Refusal` for a port that is
        taken, and without the packages of the extra "serve".
        """
        from tl_dist.tools.serve.command import serve

        serve(self.path, host=host, port=port, at=at)
