"""What MLflow and W&B get of a run is what its directory says, once, whatever was lost on the way; and no password."""

import importlib
import importlib.util
import json
import os
import struct
import subprocess
import sys
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.doubles import run_writer
from tests.unit.tools.mlflow_server import MlflowServer, mlflow_server
from tl_dist.config import Config
from tl_dist.launcher import companion
from tl_dist.refusal import ExitCode, Refusal
from tl_dist.runs.directory import RunDir
from tl_dist.runs.records import records
from tl_dist.scores.evaluation import Evaluation
from tl_dist.tools import track
from tl_dist.training.state import Report

FIGURES = {"accuracy": 0.75, "interval": [0.5, 0.9], "roc_auc": None, "log_loss": float("nan")}
PASSWORD = "sesame"


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    """Trained to step 20, killed, and resumed at 10; not done."""
    cfg = Config.model_validate(
        {
            "name": "digits",
            "steps": 30,
            "data": {"name": "digits", "image_size": 8},
            "model": {"backbone": "tiny", "weights": "random", "train_from": "all"},
            "optimizer": {"name": "sgd", "learning_rate": 0.1},
            "report": {"track": ("mlflow", "wandb")},
        }
    )
    made = RunDir.create(tmp_path / "runs", cfg)
    write(made, 0, (10, 20))
    write(made, 10, (20,))
    return made


def write(run: RunDir, from_step: int, steps: tuple[int, ...], done: bool = False) -> None:
    writer = run_writer(run, from_step, total_steps=30, steps_per_epoch=10.0)
    for step in steps:
        writer.report(Report(step, 10, 1 / step, 0.5, 0.1, 2.0, 320, 0, 1.0, 2.0, [0.1, 0.4], 0.2, False))
        for number in (3, 2):  # the last step, and then the best, may be the same one
            confusion = np.array([[2, 0], [4 - number, number - 2]])
            figures = {"accuracy": number / 4, "interval": [number / 9, number / 4 + 0.1], "mcc": None}
            figures["log_loss"] = float("nan") if number == 3 else 0.3
            writer.evaluated(step, Evaluation("validation", 4, number, number / 10, confusion, figures=figures))
    if done:
        summary = {"step": 30, "figures": {"test": FIGURES}, "seconds": 3.5, "best_validation": None}
        writer.tell({"event": "done", **summary})
        run.mark_done(summary)
    writer.close()


def expected(run: RunDir) -> Counter[tuple[str, int, str]]:
    """(name, step, value) by the file itself; of evaluations one figure and the accuracy stand for all."""
    found: Counter[tuple[str, int, str]] = Counter()
    for record in records(run.metrics_file):
        if record["event"] == "train":
            for key in ("loss", "learning_rate", "examples_per_s", "step_s", "epoch"):
                found[f"train/{key}", record["step"], repr(float(record[key]))] += 1
        elif record["event"] == "evaluation":
            for key in ("accuracy", "loss", "num_correct", "log_loss"):
                value = record["figures"][key] if key == "log_loss" else record[key]
                found[f"{record['split']}/{key}", record["step"], repr(float(value))] += 1
            found[f"{record['split']}/interval_high", record["step"], repr(record["figures"]["interval"][1])] += 1
    if run.done:
        for key in ("accuracy", "log_loss"):
            found[f"final/test/{key}", 30, repr(run.done["figures"]["test"][key])] += 1
        found["final/seconds", 30, "3.5"] += 1
    return found


def is_there(names: Counter[tuple[str, int, str]], run: RunDir) -> bool:
    """Whether all that is expected is there, so often; and of the same names nothing else."""
    wanted = expected(run)
    kinds = {name for name, _, _ in wanted}
    return Counter({key: n for key, n in names.items() if key[0] in kinds}) == wanted


def in_wandb(run: RunDir) -> tuple[Counter[tuple[str, int, str]], dict[str, Any], dict[str, str]]:
    """Rows, last figures and parameters in the one offline file, by the library's own messages.

    The file is a log of LevelDB: blocks of 32 KiB, in which each piece has a checksum, a length and a kind.
    """
    from wandb.proto.wandb_internal_pb2 import Record

    (file,) = (run.path / "track" / "wandb").glob("offline-run-*/run-*.wandb")
    data, at, whole = file.read_bytes(), 7, b""
    rows: Counter[tuple[str, int, str]] = Counter()
    summary: dict[str, Any] = {}
    config: dict[str, str] = {}
    while at + 7 <= len(data):
        if (left := 32768 - at % 32768) < 7:
            at += left
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # a whole record, or the last piece of one
            record = Record.FromString(whole)
            whole = b""
            values = {"/".join(one.nested_key): json.loads(one.value_json) for one in record.history.item}
            for name, value in values.items():
                if "step" in values and name != "step" and not name.startswith(("_", "report")):
                    rows[name, values["step"], repr(float(value))] += 1
            summary |= {one.key: json.loads(one.value_json) for one in record.summary.update if one.key}
            config |= {one.key: json.loads(one.value_json) for one in record.run.config.update}
    for name, value in summary.items():
        if name.startswith("final/"):
            rows[name, 30, repr(float("nan" if value is None else value))] += 1  # JSON has no NaN
    return rows, summary, config


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[MlflowServer]:
    with mlflow_server() as made:
        password = f"http://me:{PASSWORD}@"
        monkeypatch.setenv("MLFLOW_TRACKING_URI", made.address.replace("http://", password))
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        yield made


def in_server(server: MlflowServer) -> Counter[tuple[str, int, str]]:
    return Counter((name, step, value) for name, step, value, _ in server.metrics)


def test_a_server_gets_each_number_once_while_the_run_goes_on(run: RunDir, server: MlflowServer) -> None:
    track.sync(run, ["mlflow"], live=True)
    assert server.runs[0]["info"]["status"] == "RUNNING"
    assert is_there(in_server(server), run)
    sent = server.num_metrics_sent
    track.sync(run, ["mlflow"])
    assert server.num_metrics_sent == sent and server.runs[0]["info"]["status"] == "KILLED"
    assert companion.left_for_sync(run, ["mlflow"]) is None
    write(run, 10, (20, 30), done=True)  # killed before the checkpoint of 20: it is done again
    assert "sent to mlflow: " in (companion.left_for_sync(run, ["mlflow"]) or "")
    track.sync(run, ["mlflow"])
    assert is_there(in_server(server), run)
    same = 3  # both evaluations of a step are of as many examples
    assert server.num_metrics_sent == len(server.metrics) + same > sent
    assert [one["info"]["status"] for one in server.runs] == ["FINISHED"]
    assert server.parameters["data.name"] == "digits" and server.parameters["optimizer.name"] == "sgd"
    assert server.files["config.yaml"] == run.config_file.read_bytes()
    (run.path / "report.html").write_bytes(b"<p>page</p>")
    track.sync(run, ["mlflow"])
    assert server.files["report.html"] == b"<p>page</p>"
    requests = len(server.requests)
    track.sync(run, ["mlflow"])
    assert len(server.requests) == requests  # all of it is known to be there


def test_whichever_answer_is_lost_nothing_is_there_twice(run: RunDir, server: MlflowServer) -> None:
    """Each request in turn is obeyed and not answered, as when a process or a line dies in that moment."""
    write(run, 20, (30,), done=True)
    refused: list[str] = []
    for number in range(10):
        server.lost = {len(server.requests) + number}
        for path in (run.path / "track").glob("mlflow.json"):
            path.unlink()
        server.runs.clear()
        server.metrics.clear()
        with suppress(Refusal):
            track.sync(run, ["mlflow"])
        if companion.left_for_sync(run, ["mlflow"]):
            server.lost = set()
            refused += track.sync(run, ["mlflow"])
        assert is_there(in_server(server), run), number
        assert len(server.runs) == 1
    assert len(refused) >= 7


def test_a_server_that_hangs_or_is_gone_is_one_line(
    run: RunDir, server: MlflowServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    server.hangs = True
    with pytest.raises(Refusal, match="MLflow has not taken all of digits") as refused:
        track.sync(run, ["mlflow"])
    assert refused.value.code == ExitCode.REQUEUE and PASSWORD not in str(refused.value)
    assert str(refused.value).endswith(f"tl-dist sync {run.path}.")
    server.hangs = False
    server.released.set()
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
    track.sync(run, ["mlflow"])
    assert is_there(in_server(server), run)
    for path in run.path.rglob("*"):
        assert path.is_dir() or PASSWORD.encode() not in path.read_bytes()


def test_mlflows_own_database_and_wandbs_own_file_say_what_the_run_says(
    run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the command line, without a server: MLflow's client reads the one, and W&B's messages the other."""
    for name in [name for name in os.environ if name.startswith(("MLFLOW", "WANDB"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_API_KEY", PASSWORD.ljust(40, "0"))
    write(run, 20, (30,), done=True)
    (run.path / "report.html").write_bytes(b"<p>page</p>")
    argv = [sys.executable, "-m", "tl_dist", "sync", str(run.path)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=240, check=False, cwd=run.path.parent)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    assert "mlflow: run " in done.stdout and "wandb: offline in " in done.stdout
    file = next((run.path / "track" / "wandb").glob("offline-run-*/run-*.wandb"))
    before = file.stat()
    assert track.sync(run, ["mlflow", "wandb"]) and file.stat() == before
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from mlflow import MlflowClient

        client = MlflowClient(f"sqlite:///{run.path.parent}/mlflow.db")
        (found,) = client.search_runs([client.get_experiment_by_name("tl_dist").experiment_id])
        names = Counter(
            (name, metric.step, repr(metric.value))
            for name in found.data.metrics
            for metric in client.get_metric_history(found.info.run_id, name)
        )
        pages = [one.path for one in client.list_artifacts(found.info.run_id)]
    assert is_there(names, run)
    assert sorted(pages) == ["config.yaml", "report.html"]
    assert found.info.status == "FINISHED" and found.info.run_name == "digits"
    rows, summary, config = in_wandb(run)
    assert is_there(rows, run)
    assert config["data.name"] == "digits" and summary["final/test/accuracy"] == 0.75
    (page,) = file.parent.rglob("*.html")
    assert page.read_bytes() == b"<p>page</p>"
    for path in run.path.rglob("*"):
        assert path.is_dir() or PASSWORD.encode() not in path.read_bytes()


def test_databases_of_mlflow_know_a_row_that_is_sent_again(
    run: RunDir, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A kill between a request and the note about it: the rule on which `to_mlflow` builds, by MLflow's own store."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/other.db")
    monkeypatch.chdir(tmp_path)  # where MLflow puts files by default
    import mlflow

    real = mlflow.MlflowClient.log_batch

    def killed(self: Any, run_id: str, **what: Any) -> None:
        real(self, run_id, **what)
        if what.get("metrics"):
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(mlflow.MlflowClient, "log_batch", killed)
        with pytest.raises(KeyboardInterrupt):
            track.sync(run, ["mlflow"])
    track.sync(run, ["mlflow"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/other.db")
        (found,) = client.search_runs(["1"])
        history = client.get_metric_history(found.info.run_id, "train/loss")
    assert [(one.step, one.value) for one in history] == [(10, 0.1), (20, 0.05)]


def test_a_library_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "wandb" else real(name, *rest))
    companion.require_trackers(["mlflow"])
    with pytest.raises(Refusal, match=r"Fix: pip install 'wandb>=[\d.]+'\.$") as refused:
        companion.require_trackers(["mlflow", "wandb"])
    assert refused.value.code == ExitCode.USAGE


def test_names_and_values_of_a_config_are_bounded(run: RunDir) -> None:
    text = run.config_file.read_text()
    run.config_file.write_text(text.replace("path: null", f"path: {'/long' * 400}", 1))
    copied = track.Copied(run, "0" * 16, "stopped", run.path / "track")
    assert len(copied.parameters["data.path"]) == track.MAX_VALUE
    assert track.name_of("a\n\x1b[b:é" * 99).isascii() and len(track.name_of("x" * 999)) <= 200
