"""`tl-dist serve` answers as `predict` does on the same files, for a run and its exports, until it is stopped."""

import base64
import importlib.util
import json
import re
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
import tensorflow as tf
import uvicorn
from starlette.testclient import TestClient
from tensorflow.core.framework import types_pb2

import tl_dist as tl
from tests.doubles import digit_files
from tests.end_to_end.harness import INSTALLED, STARTED, TL_DIST
from tl_dist.refusal import ExitCode, Refusal
from tl_dist.runs.directory import RunDir
from tl_dist.tools.serve.app import application
from tl_dist.tools.serve.command import PACKAGES, listening_on, refuse_unusable
from tl_dist.tools.serve.requests import Answers
from tl_dist.tools.serve.served import Served, of_export, of_run

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of Keras, as it saves

CONFIG = """\
steps: 60
global_batch: 32
precision: float32
data: {{name: image_folder, path: '{path}', image_size: 16, test_fraction: 0.2, resize: crop}}
model: {{backbone: tiny, weights: random, train_from: all, pooling: both, normalize: true, hidden: 16}}
optimizer: {{name: adam, learning_rate: 0.01, ema: 0.9}}
checkpoint: {{every_steps: 30, keep: 3}}
report: {{tensorboard: false}}
runtime: {{threads: 1}}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """300 digits of 24 x 20 pixels: PNG, of which every third is a JPEG."""
    root = tmp_path_factory.mktemp("serve")
    digit_files(root / "images", 300, jpeg_every=3)
    return root


@pytest.fixture(scope="module")
def run(folder: Path) -> tl.Run:
    config = folder / "digits.yaml"
    config.write_text(CONFIG.format(path=folder / "images"))
    return tl.train(tl.load_config(config), runs=folder / "runs", here=True)


def answers(served: Served, files: list[Path]) -> tuple[np.ndarray, list[str], dict[str, Any]]:
    """Probabilities, classes and the metadata, by the way of TensorFlow Serving."""
    with TestClient(application(Answers(served, cores=2), hosts=["127.0.0.1"]), base_url="http://127.0.0.1") as asked:
        instances = [{"b64": base64.b64encode(file.read_bytes()).decode()} for file in files]
        found = asked.post(f"/v1/models/{served.name}:predict", json={"instances": instances})
        assert found.status_code == 200, found.text
        rows = found.json()["predictions"]
        metadata = asked.get(f"/v1/models/{served.name}/metadata").json()
    return np.array([row["probabilities"] for row in rows]), [row["class"] for row in rows], metadata


def test_a_run_is_served_with_the_answers_of_its_evaluation(run: tl.Run, folder: Path) -> None:
    said = run.predictions("test")
    assert (said.probabilities.argmax(axis=1) == said.labels).mean() > 0.5  # else it would have learnt nothing
    files = [folder / "images" / name for name in said.ids]
    found, classes, _ = answers(of_run(RunDir.open(run.path), "", cores=None), files)
    np.testing.assert_allclose(found, said.probabilities, atol=1e-6)
    assert classes == [said.class_names[k] for k in said.probabilities.argmax(axis=1)]
    earlier = of_run(RunDir.open(run.path), "30", cores=None)
    assert earlier.version == 30 and np.abs(answers(earlier, files)[0] - found).max() > 0.01
    with pytest.raises(Refusal):
        of_run(RunDir.open(run.path), "31", cores=None)


def test_a_run_with_views_is_served_with_their_mean(folder: Path) -> None:
    config = folder / "flipped.yaml"
    config.write_text(CONFIG.format(path=folder / "images") + "evaluation: {views: [flip]}\n")
    run = tl.train(tl.load_config(config, "steps=5"), runs=folder / "runs", here=True)
    said = run.predictions("test")
    found, _, _ = answers(
        of_run(RunDir.open(run.path), "", cores=None), [folder / "images" / name for name in said.ids]
    )
    np.testing.assert_allclose(found, said.probabilities, atol=1e-6)


def test_exports_are_served_and_described_as_tensorflow_describes_them(
    run: tl.Run, folder: Path, tmp_path: Path
) -> None:
    said = run.predictions("test")
    files = [folder / "images" / name for name in said.ids]
    for to in ("savedmodel", "litert"):
        run.export(to, tmp_path / to, check="none")
        found, _, metadata = answers(of_export(tmp_path / to, cores=1), files)
        np.testing.assert_allclose(found, said.probabilities, atol=1e-5)
    loaded = tf.saved_model.load(str(tmp_path / "savedmodel" / "savedmodel"))
    described = metadata["metadata"]["signature_def"]["signature_def"]
    assert described.keys() == loaded.signatures.keys()
    for name, signature in loaded.signatures.items():
        sides = {
            "inputs": signature.structured_input_signature[1],
            "outputs": signature.structured_outputs,
        }
        for side, tensors in sides.items():
            kinds = {key: types_pb2.DataType.Name(tensor.dtype.as_datatype_enum) for key, tensor in tensors.items()}
            assert {key: one["dtype"] for key, one in described[name][side].items()} == kinds
    (tmp_path / "savedmodel" / "classes.json").write_text("{}")
    with pytest.raises(Refusal, match="is no export that can be served") as refused:
        of_export(tmp_path / "savedmodel", cores=1)
    assert refused.value.code == ExitCode.DATA


def started(run: tl.Run) -> tuple[subprocess.Popen[str], str]:
    """A server by the command line, and its address."""
    command = [TL_DIST, "serve", str(run.path), "--port", "0"]
    process = subprocess.Popen(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    STARTED.append(process)
    assert process.stdout is not None
    line = process.stdout.readline()
    found = re.fullmatch(r"digits, step 60, on (http://127\.0\.0\.1:\d+/) \(Ctrl-C stops it\)\n", line)
    assert found is not None, line
    return process, found[1]


def test_the_command_serves_until_ctrl_c(run: tl.Run, folder: Path) -> None:
    process, address = started(run)
    file = folder / "images" / run.predictions("test").ids[0]
    asked = subprocess.run(
        ["curl", "-s", "-F", f"file=@{file}", "-F", "file=@/dev/null", f"{address}predict"],
        capture_output=True,
        timeout=60,
        check=True,
    )
    first, second = json.loads(asked.stdout)["predictions"]
    assert first["file"] == file.name and second["error"] == "is empty"
    np.testing.assert_allclose(first["probabilities"], run.predictions("test").probabilities[0], atol=1e-6)
    port = address.rpartition(":")[2].strip("/")
    other = [TL_DIST, "serve", str(run.path), "--port", port]
    refused = subprocess.run(other, capture_output=True, text=True, timeout=60)
    (line,) = refused.stderr.splitlines()
    assert refused.returncode == ExitCode.CANNOT_CREATE and f"port {port}" in line and "Fix: " in line
    assert httpx2.get(f"{address}healthz").json()["version"] == "60"
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out, err) == (0, "stopped after 1 request\n", "")
    with pytest.raises(httpx2.ConnectError):
        httpx2.get(address)


def test_it_can_be_stopped_while_it_loads(run: tl.Run) -> None:
    process = subprocess.Popen(
        [INSTALLED, "serve", str(run.path), "--port", "0"],
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    STARTED.append(process)
    caught = 0
    while not caught >> (signal.SIGTERM - 1) & 1:  # until it has its own answer to the signal
        assert process.poll() is None
        status = Path(f"/proc/{process.pid}/status").read_text()
        caught = int(status.partition("SigCgt:")[2].split()[0], 16)
    process.send_signal(signal.SIGTERM)
    assert process.communicate(timeout=30)[0] == "stopped before the model was loaded\n"
    assert process.returncode == 0


def test_a_mistake_is_refused_before_anything_is_loaded(
    run: tl.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "export.json").write_text("{}")
    with pytest.raises(Refusal, match="an export, of one checkpoint"):
        refuse_unusable(tmp_path, "best")
    with pytest.raises(Refusal, match="is not a run"):
        refuse_unusable(tmp_path / "nothing", "")
    for host in ("no.such.host.invalid", "192.0.2.1", "a" * 70):
        with pytest.raises(Refusal, match="no address of this machine") as refused:
            listening_on(host, 0)
        assert refused.value.code == ExitCode.USAGE
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(Refusal, match=f"{' and '.join(PACKAGES)} is not installed") as refused:
        refuse_unusable(run.path, "")
    assert refused.value.fix.startswith("pip install 'starlette>=")


def test_a_server_for_others_says_so(run: tl.Run) -> None:
    command = [TL_DIST, "serve", str(run.path), "--host", "0.0.0.0", "--at", "nonsense"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == ExitCode.USAGE and "asks for no password" in done.stdout
    assert len(done.stderr.splitlines()) == 1


@contextmanager
def served_here(run: tl.Run) -> Iterator[str]:
    """The address of a server in a thread of this process."""
    answers = Answers(of_run(RunDir.open(run.path), "", cores=None), cores=2)
    server = uvicorn.Server(uvicorn.Config(application(answers, hosts=["127.0.0.1"]), log_level="warning"))
    listening = listening_on("127.0.0.1", 0)
    thread = threading.Thread(target=server.run, args=([listening],))
    thread.start()
    try:
        yield "http://{}:{}/".format(*listening.getsockname())
    finally:
        server.should_exit = True
        thread.join()


def test_images_that_are_dropped_on_the_page_get_their_classes(
    run: tl.Run, folder: Path, tmp_path: Path, browser: Any
) -> None:
    """Two images and a file that is none, from outside of the browser; it says nothing, and asks nobody else."""
    found = run.predictions("test")
    broken = tmp_path / "<b>no image.png"
    broken.write_bytes(b"no image")
    files = [str(folder / "images" / found.ids[0]), str(broken), str(folder / "images" / found.ids[1])]
    said: list[str] = []
    with served_here(run) as address:
        tab = browser.new_page()
        tab.on("console", lambda message: said.append(f"{message.type}: {message.text}"))
        tab.on("pageerror", lambda error: said.append(f"error: {error}"))
        tab.on("request", lambda one: None if one.url.startswith((address, "blob:")) else said.append(one.url))
        tab.goto(address)
        dragged = {"items": [], "files": files, "dragOperationsMask": 1}
        hand = tab.context.new_cdp_session(tab)
        for kind in ("dragEnter", "dragOver", "drop"):
            hand.send("Input.dispatchDragEvent", {"type": kind, "x": 40, "y": 100, "data": dragged})
        items = tab.locator("#results > li")
        tab.locator(".row, .bad").nth(10).wait_for()
        for k, name in ((0, found.ids[0]), (2, found.ids[1])):
            item = items.nth(2 - k)  # the last on top
            assert item.locator("h2").inner_text() == Path(name).name
            best = found.probabilities[k // 2]
            shown = [row.split("\n")[0] for row in item.locator(".row").all_inner_texts()]
            assert shown == [found.class_names[c] for c in np.argsort(-best)[:5]]
            assert item.locator(".row span").nth(1).inner_text() == f"{100 * best.max():.1f} %"
            assert item.locator("img").evaluate("image => image.naturalWidth") == 20
        assert items.nth(1).locator("h2").inner_text() == broken.name
        assert "is no image" in items.nth(1).locator(".bad").inner_text()
        assert tab.title() == "digits"
        tab.close()
    assert said == []
