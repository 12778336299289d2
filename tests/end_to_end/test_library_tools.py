"""Each command as a Python function: it returns the figures that the command shows or writes, and prints none."""

import json
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx2
import keras
import numpy as np
import pytest
from safetensors.numpy import save_file
from scipy.stats import binomtest
from sklearn.metrics import accuracy_score, log_loss

import tl_dist as tl
from tests.doubles import digit_files
from tests.end_to_end.harness import EVERY_STEP, STARTED, Workspace
from tl_dist.cli.main import main
from tl_dist.config import registry
from tl_dist.launcher import train as launcher
from tl_dist.tools.curate import init

CONFIG = (
    EVERY_STEP
    + """\
steps: 30
global_batch: 24
data: {name: image_folder, path: images, image_size: 16, test_fraction: 0.25, validation_fraction: 0.25}
model: {backbone: tiny, weights: tiny.safetensors, train_from: all}
optimizer: {name: adam, learning_rate: 0.01}
"""
)
EVERY_TENTH = r"(\d)\.png$"
COMPUTED = ("model.train_from=head", "classifier.name=logistic", "classifier.l2=0.1", "epochs=null", "steps=1")


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    root = tmp_path_factory.mktemp("tools")
    digit_files(root / "images", 160, jpeg_every=0)
    keras.utils.set_random_seed(0)
    network = registry.backbone("tiny").build((16, 16, 3))
    save_file({v.path: v.numpy() for v in network.weights}, root / "tiny.safetensors")
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(root)
        made = Workspace(root, CONFIG)
        made.train_here("one")
        made.train_here("two", "seed=1", "steps=8")
    return made


@pytest.fixture
def run(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> tl.Run:
    monkeypatch.chdir(workspace.directory)
    return tl.Run("runs/one")


def printed(capfd: pytest.CaptureFixture[str], arguments: Sequence[str]) -> str:
    """What a command prints; whatever was printed before it is forgotten."""
    capfd.readouterr()
    assert main(arguments) == 0
    return capfd.readouterr().out


def test_evaluate_returns_the_record_of_the_command(run: tl.Run, capfd: pytest.CaptureFixture[str]) -> None:
    record = run.evaluate("validation", by=EVERY_TENTH, views=["flip"])
    assert capfd.readouterr() == ("", "")
    said = run.predictions("validation")
    assert record["accuracy"] == pytest.approx(accuracy_score(said.labels, said.probabilities.argmax(axis=1)))
    assert record["figures"]["log_loss"] == pytest.approx(log_loss(said.labels, said.probabilities), rel=1e-5)
    text = printed(capfd, ["eval", "runs/one", "--split", "validation", "--views", "flip"])
    assert f"{record['num_correct']} of {record['num_examples']}" in text
    command = json.loads(Path("runs/one/evaluations/validation.json").read_text())
    assert {key: record[key] for key in command} == command
    assert sum(row["num_examples"] for row in record["groups"][EVERY_TENTH]) == record["num_examples"]
    other = run.evaluate(data="images")
    assert other["num_examples"] == 160 and other["data"]["seen"] == 80


def test_explain_draws_the_pictures_of_the_command(run: tl.Run, capfd: pytest.CaptureFixture[str]) -> None:
    images = sorted(Path("images").rglob("*.png"))[:2]
    paths = run.explain(images, "maps", method="gradcam")
    assert capfd.readouterr() == ("", "")
    assert [path.name for path in paths] == [f"{image.name}.explained.png" for image in images]
    text = printed(capfd, ["explain", "runs/one", *map(str, images), "--out", "command", "--method", "gradcam"])
    assert all(str(Path("command", path.name)) in text for path in paths)
    assert [path.read_bytes() for path in paths] == [Path("command", path.name).read_bytes() for path in paths]


def test_compare_returns_the_figures_of_the_paired_test(run: tl.Run, capfd: pytest.CaptureFixture[str]) -> None:
    figures = tl.compare(run, "runs/two")
    assert capfd.readouterr() == ("", "")
    right = [
        r.probabilities.argmax(axis=1) == r.labels
        for r in (run.predictions("test"), tl.Run("runs/two").predictions("test"))
    ]
    only = [int((a & ~b).sum()) for a, b in (right, right[::-1])]
    assert [figures["only_first"], figures["only_second"]] == only and sum(only)
    assert figures["p_value"] == pytest.approx(binomtest(only[0], sum(only)).pvalue)
    text = printed(capfd, ["compare", "runs/one", "runs/two"])
    assert f"difference {figures['difference']:+.4f}" in text


def test_cross_validate_returns_the_summary_that_the_command_shows(
    run: tl.Run, capfd: pytest.CaptureFixture[str]
) -> None:
    cfg = tl.load_config("trial.yaml", "name=folds", *COMPUTED)
    figures = tl.cross_validate(cfg, folds=2, seeds=1)
    assert "Nadeau" not in capfd.readouterr().out
    with np.load("runs/folds-cv/predictions/out_of_fold.npz") as kept:
        right = kept["probabilities"][0].argmax(axis=1) == kept["labels"]
        of_folds = [right[kept["fold"][0] == k].mean() for k in range(2)]
    np.testing.assert_allclose(figures["fold_accuracies"], [of_folds])
    assert figures["accuracy"] == pytest.approx(np.mean(of_folds)) and figures["num_examples"] == 160
    text = printed(capfd, ["cv", "trial.yaml", "name=folds", *COMPUTED, "--folds", "2", "--seeds", "1"])
    assert f"accuracy {figures['accuracy']:.4f} | mean of 2 folds x 1 seeds" in text


@pytest.mark.full
def test_trained_folds_are_resumed_and_merged(run: tl.Run, capfd: pytest.CaptureFixture[str]) -> None:
    cfg = tl.load_config("trial.yaml", "name=trained", "steps=2", "data.test_fraction=0", "data.validation_fraction=0")
    first = tl.cross_validate(cfg, folds=2, seeds=1)
    capfd.readouterr()
    assert tl.cross_validate(cfg, folds=2, seeds=1) == first
    assert capfd.readouterr().out.count("this run is done") == 2
    assert tl.Run("runs/trained-cv-0-1").done and first["folds"] == 2


def test_tune_returns_the_best_config_and_every_setting(run: tl.Run, capfd: pytest.CaptureFixture[str]) -> None:
    best, settings = tl.tune(tl.load_config("trial.yaml", "name=search", *COMPUTED))
    assert "best of" not in capfd.readouterr().out
    assert best == tl.load_config("runs/search-tune/best.yaml") and best.name == "search-best"
    assert (best.classifier.name, best.model.pooling) == (
        settings[0]["classifier"]["name"],
        settings[0]["model"]["pooling"],
    )
    whole = [setting for setting in settings if setting["folds"] == settings[0]["folds"]]
    assert settings[0]["accuracy"] == max(setting["accuracy"] for setting in whole)
    assert settings == json.loads(Path("runs/search-tune/tuning.json").read_text())


def test_rank_returns_the_order_of_the_command_and_configs_that_train(
    run: tl.Run, capfd: pytest.CaptureFixture[str]
) -> None:
    overrides = ("name=ranked", "model.train_from=head", "steps=2")
    rows = tl.rank(tl.load_config("trial.yaml", *overrides), ["tiny:block1", "tiny"])
    assert "linear\nprobe" not in capfd.readouterr().out
    names = "tiny:block1,tiny"
    assert main(["rank", "trial.yaml", *overrides, "--candidates", names, "--json", "--out", "best.yaml"]) == 0
    text = capfd.readouterr().out
    command = json.loads(text[text.index("{") :])
    assert [dict(row.scores) for row in rows] == command["candidates"]
    assert re.fullmatch(r"Ranked\(candidate='tiny\S*', linear_probe=0\.\d+, interval=\[.*\]\)", repr(rows[0]))
    assert rows[0].config.model == tl.load_config("best.yaml").model
    assert {row.config.name for row in rows} == {"ranked-tiny", "ranked-tiny-block1"}
    assert tl.train(rows[0].config, here=True).done


def test_prune_returns_the_config_that_the_command_trains(
    run: tl.Run, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[tl.Config] = []
    monkeypatch.setattr(launcher, "train_config", lambda cfg, runs, console: trained.append(cfg))
    cfg = run.prune(0.25, "steps=2")
    assert printed(capfd, ["prune", "runs/one", "--by", "0.25", "steps=2"]) == ""
    assert trained == [cfg] and (cfg.name, cfg.model.prune, cfg.steps) == ("one-pruned-0.25", 0.25, 2)


def test_init_writes_what_the_command_writes(
    run: tl.Run, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(init, "this_machine", lambda: init.Machine(gpus=0, online=False))
    path = tl.init("images", "function.yaml")
    assert path == Path("function.yaml")
    printed(capfd, ["init", "images", "--out", "command.yaml"])
    assert path.read_text().replace("function", "command") == Path("command.yaml").read_text()
    assert tl.load_config(path).classifier.name == "logistic"
    with pytest.raises(tl.Refusal, match=r"function\.yaml is there already.* Fix: "):
        tl.init("images", "function.yaml")


def served() -> tuple[subprocess.Popen[str], str]:
    """A process in which `Run.serve` serves, and the address of its server."""
    # A job in the background of a shell, and all that it starts, ignores SIGINT.
    code = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    code += "import tl_dist as tl; tl.Run('runs/one').serve(port=0); print('returned', flush=True)"
    process = subprocess.Popen([sys.executable, "-P", "-c", code], text=True, stdout=subprocess.PIPE)
    STARTED.append(process)
    assert process.stdout is not None
    address = re.search(r"http://\S+", process.stdout.readline())
    assert address is not None
    return process, address[0]


def test_serve_answers_until_it_is_interrupted(run: tl.Run) -> None:
    process, address = served()
    assert httpx2.get(f"{address}v1/models/one").json()["model_version_status"][0]["state"] == "AVAILABLE"
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=30)[0] == "stopped after 0 requests\nreturned\n"
    assert process.returncode == 0
    with pytest.raises(httpx2.ConnectError):
        httpx2.get(address)


def test_a_server_dies_with_the_process_that_started_it(run: tl.Run) -> None:
    process, address = served()
    process.kill()
    process.communicate(timeout=30)  # waits for all that hold the pipe
    with pytest.raises(httpx2.ConnectError):
        httpx2.get(address)


MISTAKES: dict[str, Any] = {
    "there is no method 'cam'": lambda run: run.explain("images", "maps", method="cam"),
    "has no split 'tset'": lambda run: run.evaluate("tset"),
    "'nonsense' names no checkpoint": lambda run: run.evaluate(at="nonsense"),
    "takes the run's own images, without groups": lambda run: run.evaluate(corruptions="all", by="any"),
    "needs --corruptions": lambda run: run.evaluate(severity="3"),
    "from 0 up and below 1": lambda run: run.prune(1.5),
    "there is no port 70000": lambda run: run.serve(port=70_000),
    "is no address of this machine": lambda run: run.serve("192.0.2.1", 0),
    "runs/nowhere/predictions/test.npz holds no predictions": lambda run: tl.compare(run, "runs/nowhere"),
    "folds=1 is too few": lambda run: tl.tune(run.config, folds=1),
    "seeds=0 is too few": lambda run: tl.cross_validate(run.config, seeds=0),
    "has no other folds or seeds": lambda run: tl.cross_validate(run.config, folds=3, by="group"),
    "only classifiers that are computed": lambda run: tl.tune(run.config),
    "one candidate leaves nothing": lambda run: tl.rank(run.config, ["tiny"]),
    "'vgg17' is not known": lambda run: tl.rank(run.config, ["tiny", "vgg17"]),
    "images=3 is too few": lambda run: tl.rank(run.config, ["tiny", "vgg16"], images=3),
    "there is nothing at nowhere": lambda run: tl.init("nowhere"),
}


@pytest.mark.parametrize("what", MISTAKES)
def test_a_mistake_is_a_refusal_with_a_fix(run: tl.Run, what: str) -> None:
    with pytest.raises(tl.Refusal, match=f"{re.escape(what)}.* Fix: ") as refused:
        MISTAKES[what](run)
    assert "\n" not in str(refused.value)
