"""Model, head, loss, metric, augmentation, data of one's own: killed, resumed, exported; what cannot be is one line."""

import os
import re
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Container
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import tl_dist as tl
from tests.end_to_end.harness import EVERY_STEP, INSTALLED, TL_DIST, Workspace, bits, losses, records
from tests.own_code import IMAGES, LABELS, build, config
from tl_dist.config import file as config_file
from tl_dist.files import consent
from tl_dist.launcher.command import local_commands
from tl_dist.refusal import Refusal
from tl_dist.runs.directory import RunDir

MINE = """\
import time

import keras
import tensorflow as tf
from keras import layers


def whole(input_shape):
    base = keras.Sequential([keras.Input(input_shape), layers.Conv2D(8, 3, strides=2, activation="relu")], name="base")
    inputs = keras.Input(input_shape)
    x = layers.GlobalAveragePooling2D()(base(layers.Rescaling(1 / 255)(inputs)))
    return keras.Model(inputs, layers.Dense(10, activation="softmax")(layers.Dropout(0.2)(x)))


def head(input_shape, num_classes):
    return keras.Sequential(
        [layers.GlobalMaxPooling2D(), layers.Dense(16, "relu"), layers.Dropout(0.1), layers.Dense(num_classes)]
    )


def loss(targets, outputs):
    return keras.losses.sparse_categorical_crossentropy(targets, outputs)


def of_logits(targets, outputs):
    return tf.nn.sparse_softmax_cross_entropy_with_logits(targets, outputs)


def right(targets, answers):
    return (answers.argmax(1) == targets).mean()


def darker(image, seed):
    return tf.image.stateless_random_brightness(image, 0.2, seed)


def mean(targets, outputs):
    return tf.reduce_mean(of_logits(targets, outputs))


def counts_calls(targets, outputs, calls=[0]):
    calls[0] += 1
    return of_logits(targets, outputs) * calls[0]


def reads_the_clock(targets, outputs):
    return of_logits(targets, outputs) * (1 + time.time() % 1)


def looks_at_others(targets, outputs):
    return of_logits(targets, outputs - tf.reduce_mean(outputs, axis=0))


def is_nan(targets, outputs):
    return of_logits(targets, outputs) * float("nan")


def has_no_gradient(targets, outputs):
    return tf.cast(targets, tf.float32)


def leaves(targets, outputs):
    raise SystemExit(3)


def prints(targets, outputs):
    print("of no harm")
    return of_logits(targets, outputs)


def many(targets, answers):
    return answers


def grows(image, seed):
    return tf.image.resize(image, (40, 40))


def hangs(*arguments):
    time.sleep(1000)
"""
CONFIG = f"""\
steps: 10
global_batch: 15
data: {{name: digits, image_size: 32, validation_fraction: 0.2, augment: [flip, mine.py:darker]}}
evaluation: {{metrics: {{right: mine.py:right}}, every_epochs: 0.06}}
checkpoint: {{every_steps: 4, best: {{metric: validation.right}}}}
optimizer: {{name: sgd, learning_rate: 0.01}}
{EVERY_STEP}"""
KINDS = {
    "whole": ["model.backbone=mine.py:whole", "model.preprocessing=inside", "loss.name=mine.py:loss"],
    "head": ["model.backbone=tiny", "model.head=mine.py:head", "loss.name=mine.py:of_logits"],
}
RANDOM = ("model.weights=random", "model.train_from=all")
TINY = ("model.backbone=tiny", *RANDOM)
PAGES = Path(__file__).parents[2] / "docs" / "pages"
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of Keras, as it saves


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    directory = tmp_path_factory.mktemp("own")
    (directory / "mine.py").write_text(MINE)
    return Workspace(directory, CONFIG)


@pytest.fixture(autouse=True)
def _inside(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workspace.directory)


@pytest.fixture(scope="module", params=KINDS)
def trained(request: pytest.FixtureRequest, workspace: Workspace) -> str:
    kind = str(request.param)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(workspace.directory)
        workspace.train(kind, *RANDOM, *KINDS[kind])
    return kind


def test_two_workers_train_as_one_and_a_kill_changes_no_bit(trained: str, workspace: Workspace) -> None:
    settings = [*RANDOM, *KINDS[trained]]
    workspace.train(f"{trained}-two", "strategy=collective", "workers=2", *settings)
    one, two = (losses(workspace.run(name)) for name in (trained, f"{trained}-two"))
    np.testing.assert_allclose(list(two.values()), list(one.values()), rtol=1e-5)
    assert records(workspace.run(trained), "evaluation")[0]["figures"]["right"] > 0
    argv = workspace.argv(f"{trained}-killed", *settings)
    killed = workspace.start(argv, TL_FAILPOINT="train.chunk_done:7=kill", TL_ALLOW_FAILPOINTS="1")
    text, _ = killed.communicate(timeout=240)
    assert killed.returncode == 0 and records(workspace.run(f"{trained}-killed"), "resumed"), text
    assert bits(workspace.run(f"{trained}-killed")) == bits(workspace.run(trained))


MORE = {
    **KINDS,
    "loss": ["model.backbone=tiny", "loss.name=mine.py:of_logits"],
    "augmentation": ["model.backbone=tiny"],  # and a metric
}


@pytest.mark.full
@pytest.mark.parametrize("workers", [2, 3, 4])
@pytest.mark.parametrize("strategy", ["collective", "horovod", "mirrored"])
@pytest.mark.parametrize("kind", MORE)
def test_any_number_of_workers_trains_as_one_does(workspace: Workspace, kind: str, strategy: str, workers: int) -> None:
    settings = [*RANDOM, *MORE[kind]]
    if not (workspace.directory / "runs" / f"one-{kind}").exists():
        workspace.train(f"one-{kind}", *settings)
    name = f"{kind}-{strategy}-{workers}"
    workspace.train(name, f"strategy={strategy}", f"workers={workers}", *settings)
    one, several = (workspace.run(name) for name in (f"one-{kind}", name))
    np.testing.assert_allclose(list(losses(several).values()), list(losses(one).values()), rtol=1e-5)


def all_together(runs: Path, **more: Any) -> tl.Run:
    import mine  # type: ignore[import-not-found]

    images = {"train": (IMAGES[:400], LABELS[:400]), "validation": (IMAGES[400:600], LABELS[400:600])}
    cfg = config("all", steps=8, checkpoint={"every_steps": 3})
    functions = {"model": build, "loss": mine.loss, "metrics": {"right": mine.right}, "augment": mine.darker}
    return tl.train(cfg, runs=runs, data=images, **functions, **more)


def test_a_task_that_is_trained_first_has_augmentations_of_its_own(workspace: Workspace) -> None:
    task = ("steps=3", "data.name=digits", "data.image_size=32", "data.validation_fraction=0.2")
    settings = [f"source.{setting}" for setting in (*task, "data.augment=[mine.py:darker]")]
    workspace.train("later", *settings, "steps=3", "data.augment=[]", *TINY)
    source = workspace.run("later-source")
    assert (source.path / "code" / "mine.py").read_text() == MINE
    assert "code/mine.py:darker" in source.config_file.read_text()
    assert "darker" not in workspace.run("later").config_file.read_text()


@pytest.mark.parametrize(
    "workers", [2, pytest.param(3, marks=pytest.mark.full), pytest.param(4, marks=pytest.mark.full)]
)
def test_all_together_with_data_from_python_is_killed_and_changes_no_bit(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    monkeypatch.syspath_prepend(workspace.directory)
    one, several = (all_together(tmp_path / str(n), workers=n, strategy="collective") for n in (1, workers))
    losses_of = [[record["loss"] for record in run.history()] for run in (one, several)]
    np.testing.assert_allclose(*losses_of, rtol=1e-5)
    monkeypatch.setenv("TL_ALLOW_FAILPOINTS", "1")
    monkeypatch.setenv("TL_FAILPOINT", "train.chunk_done:7=kill")
    killed = all_together(tmp_path / "killed", workers=workers, strategy="collective")
    assert killed.history("resumed") and bits(RunDir.open(killed.path)) == bits(RunDir.open(several.path))
    predicted = killed.predictions("validation").probabilities
    np.testing.assert_array_equal(predicted, several.predictions("validation").probabilities)
    np.testing.assert_allclose(predicted, killed.keras_model().predict(IMAGES[400:600], verbose=0), atol=1e-5)


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        pytest.param("loss.name=mine.py:hangs", "while trying loss 'mine.py:hangs'", marks=pytest.mark.full, id="loss"),
        pytest.param("data.augment=[mine.py:hangs]", "while compiling stage 1, with 'mine.py:hangs'", id="augment"),
        pytest.param(
            "evaluation.metrics.f2=mine.py:hangs",
            "the figures of validation, with 'mine.py:right' and 'mine.py:hangs'",
            marks=pytest.mark.full,
            id="metric",
        ),
    ],
)
def test_what_hangs_is_ended_by_its_name(workspace: Workspace, setting: str, said: str) -> None:
    patience = [f"safety.{key}_s=20" for key in ("first_step", "hang", "alone")]
    name = f"hangs-{said[:20].replace(' ', '-')}".replace("'", "")
    more = [*TINY, setting, *patience, "safety.max_restarts=0", "steps=2"]
    argv = workspace.argv(name, *more, program=INSTALLED)
    text, _ = workspace.start(argv).communicate(timeout=240)
    (line,) = [line for line in text.splitlines() if line.startswith("error: ")]
    assert said in line and "stalled" in line, text[-3000:]


def test_it_is_exported_and_predicts_without_its_file(trained: str, workspace: Workspace) -> None:
    Path("mine.py").rename("gone.py")
    try:
        run = tl.Run(workspace.run(trained).path)
        images = IMAGES[:8]
        model = run.keras_model()
        model.save("saved.keras")
        argv = [
            "-c",
            "import keras, numpy; print(keras.models.load_model('saved.keras')(numpy.load('x.npy')).numpy().tolist())",
        ]
        np.save("x.npy", images)
        told = subprocess.run([sys.executable, *argv], capture_output=True, text=True, check=True).stdout
        np.testing.assert_allclose(eval(told.strip().splitlines()[-1]), model(images).numpy(), atol=1e-6)
        report = run.export("keras")
        assert report["num_agreeing"] == report["num_examples"] == run.scores["test"]["num_examples"]
    finally:
        Path("gone.py").rename("mine.py")


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("loss.name=mine.py:mean", "loss 'mine.py:mean' returns one number for all rows"),
        ("loss.name=mine.py:counts_calls", "gives another value for the same rows the second time"),
        ("loss.name=mine.py:reads_the_clock", "gives another value for the same rows the second time"),
        ("loss.name=mine.py:looks_at_others", "gives a row another loss beside other rows"),
        ("loss.name=mine.py:is_nan", "loss 'mine.py:is_nan' gives nan"),
        ("loss.name=mine.py:has_no_gradient", "has no gradient"),
        ("loss.name=mine.py:leaves", r"raised SystemExit in line \d+ of mine.py"),
        ("loss.name=mine.py:absent", "loss 'mine.py:absent' is not in mine.py"),
        ("loss.name=theirs.py:mean", "there is no file"),
        ("evaluation.metrics.many=mine.py:many", "metric many, 'mine.py:many', returned float32"),
        ("data.augment=[mine.py:grows]", r"augmentation 'mine.py:grows' returns shape \(40, 40, 3\)"),
        ("evaluation.metrics.accuracy=mine.py:right", "'accuracy' is a figure of every evaluation"),
        ("checkpoint.best.metric=validation.rihgt", "Fix: write 'metric: validation.right'"),
    ],
)
def test_what_cannot_be_is_one_line_that_names_it(workspace: Workspace, setting: str, said: str) -> None:
    name = re.sub(r"\W+", "-", setting).strip("-")[:60]
    with pytest.raises(Refusal, match=said) as refused:
        workspace.train_here(name, *TINY, setting)
    assert "\n" not in str(refused.value) and "Fix:" in str(refused.value)


def test_what_prints_does_no_harm(workspace: Workspace) -> None:
    assert workspace.train_here("prints", *TINY, "loss.name=mine.py:prints", "steps=2").done


SCRIPT = """\
import keras
import numpy as np
from keras import layers

import tl_dist as tl

WIDTH = 8


def build(input_shape):
    return keras.Sequential(
        [keras.Input(input_shape), layers.Conv2D(WIDTH, 3, strides=2), layers.GlobalMaxPooling2D(), layers.Dense(10)]
    )


def stop(report):
    if report.step > STOP:
        raise ValueError("enough")


STOP = 1000
cfg = tl.Config.model_validate(
    {"name": "script", "steps": 600, "global_batch": 30, "report": {"tensorboard": False, "every_steps": 1}}
)
kept = np.load("digits.npz")
data = kept["images"], kept["labels"]
run = tl.train(cfg, model=build, data=data, workers=2, strategy="collective", on_report=stop)
print("done", run.done, run.config.model.weights)
"""


def test_a_script_is_stopped_by_its_callback_resumes_and_is_bound_to_its_functions(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.savez("digits.npz", images=IMAGES[:300], labels=LABELS[:300])
    script = Path("script.py")

    def played(text: str, code: int = 0) -> str:
        script.write_text(text)
        done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=False)
        assert bool(done.returncode) == bool(code), done.stdout + done.stderr
        return done.stdout + done.stderr

    told = played(SCRIPT.replace("STOP = 1000", "STOP = 3"), 1)
    assert re.search("on_report raised ValueError in line 18: enough; the run was stopped. Fix: correct it", told)
    assert "raise ValueError" in (workspace.run("script").logs / "callbacks.log").read_text()
    told = played(SCRIPT)  # another line of the script has changed, but neither function that is kept
    assert "resumed from step" in told and "done True random" in told
    told = played(SCRIPT.replace("WIDTH = 8", "WIDTH = 9"), 1)
    assert "Refusal" in told and "WIDTH = 8" in told


def test_idioms_of_keras_are_answered(tmp_path: Path) -> None:
    data = (IMAGES[:60], LABELS[:60])
    for name, said in {
        "epochs": "'epochs' in the config",
        "callbacks": "on_evaluation",
        "batch_size": "global_batch",
    }.items():
        with pytest.raises(Refusal, match=rf"no argument '{name}'.*{said}"):
            tl.train(config("x"), data=data, **{name: 3})
    with pytest.raises(Refusal, match="names no model"):
        tl.train(config("x"), data=data)
    with pytest.raises(Refusal, match="names no data"):
        tl.train(config("x", model={"backbone": "tiny"}))


def test_a_model_that_was_compiled_or_hides_what_it_does_is_refused(tmp_path: Path) -> None:
    import keras

    compiled = build()
    compiled.compile("adam", "mse")

    class Subclassed(keras.Model):  # type: ignore[misc]
        def call(self, images: Any) -> Any:
            return images

    for model, said in ((compiled, "model was compiled"), (Subclassed(), "subclassed")):
        with pytest.raises(Refusal, match=said):
            tl.train(config("x"), model=model, data=(IMAGES[:60], LABELS[:60]), runs=tmp_path)


def test_code_that_came_with_a_run_waits_until_it_is_trusted(
    trained: str, workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = shutil.copytree(workspace.run(trained).path, tmp_path / "theirs")
    Image.fromarray(IMAGES[0]).save(tmp_path / "digit.png")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))  # as somebody else's

    def played(*arguments: str, code: Container[int] = (0,)) -> str:
        process = workspace.start([TL_DIST, *arguments])
        text, _ = process.communicate(timeout=240)
        assert process.returncode in code, text
        return text

    image, copy = str(tmp_path / "digit.png"), run / "code" / "mine.py"
    played("config", "show", str(run / "config.yaml"))  # to read it trusts nothing
    said = played("predict", str(run), image, code=(64,))
    assert f"is in {copy}, which came with a run" in said and f"Fix: read it, then 'tl-dist trust {run}'." in said
    assert played("trust", str(run)) == f"may run from now on: {copy}\n"
    assert "digit.png: " in played("predict", str(run), image)
    copy.write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n{MINE}")
    played("predict", str(run), image, code=(64, 78))
    assert not (tmp_path / "ran").exists()
    shutil.rmtree(run / "code")
    assert "has no code" in played("trust", str(run), code=(64,))


@pytest.mark.parametrize("trusted", [True, False])
def test_workers_of_a_host_with_another_cache_run_what_their_launcher_may(
    workspace: Workspace, tmp_path: Path, trusted: bool
) -> None:
    settings = ["name=far", "steps=1", "strategy=single", "workers=1", *RANDOM, *KINDS["head"]]
    cfg = config_file.load(workspace.directory / "trial.yaml", settings, by_user=True)
    run = RunDir.create(tmp_path, cfg)
    (command,) = local_commands(cfg, run.path, os.environ, processes=1)
    environment = {**command.environment, "XDG_CACHE_HOME": str(tmp_path / "another host's")}
    if not trusted:
        del environment[consent.TRUSTED]
    done = subprocess.run(command.argv, env=environment, capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == (0 if trusted else 64), done
    assert trusted or "tl-dist trust" in done.stderr


def examples_of(page: str, section: str = "") -> tuple[dict[str, str], str]:
    """The files of a page, or of one section, and its command."""
    text = (PAGES / page).read_text().partition(f"## {section}")[2].partition("\n## ")[0]
    text = text if section else (PAGES / page).read_text()
    (command,) = re.findall(r"```console\n\$ (.*?)\n```", text)
    return dict(re.findall(r"```\w+\n# (\w+\.\w+)\n(.*?)```", text, re.DOTALL)), command


def test_the_functions_of_the_page_train(tmp_path: Path) -> None:
    files, command = examples_of("extending.md", "A loss, a head, a metric, an augmentation of your own")
    assert {*files} == {"mine.py", "mine.yaml"}
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    argv = [TL_DIST, *command.split()[1:]]
    text, _ = Workspace(tmp_path).start([*argv, "steps=40", "epochs=null"]).communicate(timeout=240)
    run = tl.Run(tmp_path / "runs" / "mine")
    assert run.done and 0 <= run.scores["validation"]["recall_of_3"] <= 1, text


def test_the_script_of_the_page_trains_two_stages_on_two_workers(tmp_path: Path) -> None:
    """With a small network for Xception, whose weights are not to be had without a network."""
    (script,), _ = (list(part.values()) if isinstance(part, dict) else part for part in examples_of("from_fit.md"))
    for number, name in enumerate(("cat", "dog")):
        (tmp_path / "my_images" / name).mkdir(parents=True)
        for k in range(24):
            pixels = np.random.default_rng(k).integers(0, 100, (48, 64, 3)) + number * 150
            Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / "my_images" / name / f"{k}.png")
    small = "keras.Sequential([keras.Input(input_shape), layers.Conv2D(8, 5, strides=4), layers.Conv2D(8, 3)])"
    script = re.sub(r"keras\.applications\.Xception\(.*\)", small, script)
    script = script.replace("    base =", "    keras.utils.set_random_seed(0)\n    base =")
    script = script.replace(
        '"global_batch": 64', '"global_batch": 8, "optimizer": {"name": "adam", "learning_rate": 0.1}'
    )
    (tmp_path / "cats.py").write_text(script)
    argv = [sys.executable, "cats.py"]
    done = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "stage 2 of 2: train_from 'all'" in done.stdout and float(done.stdout.split()[-1]) > 0.9, done.stdout


def test_what_is_imported_does_not_train(tmp_path: Path) -> None:
    from tl_dist.config import code

    file = tmp_path / "trains.py"
    file.write_text(
        textwrap.dedent("""\
        import tl_dist as tl
        def loss(targets, outputs): ...
        tl.train(None)
        """)
    )
    consent.grant([file])
    with pytest.raises(Refusal, match=r"trains.py calls tl_dist.train when it is imported.*__main__"):
        code.load(f"{file}:loss", "loss")
