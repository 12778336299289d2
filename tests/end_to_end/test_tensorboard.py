"""What a run leaves for TensorBoard is what TensorBoard shows: features, curves, config, a profile of some steps."""

import json
import subprocess
import time
from collections.abc import Iterator
from typing import Any
from urllib.request import urlopen

import numpy as np
import pytest
from tensorflow.tsl.profiler.protobuf import xplane_pb2

import tl_dist as tl
from tests.end_to_end.harness import BIN, Workspace, losses
from tl_dist.runs.directory import RunDir

WAY = (
    "data.name=synthetic",
    "data.num_examples=64",
    "data.augment=[]",
    "model.train_from=block3",
    "steps=12",
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    space = Workspace(tmp_path_factory.mktemp("tensorboard"))
    plain = space.train_here("plain", *WAY, "report.every_steps=5")
    shown = ("report.tensorboard=true", "report.profile=[4,8]", "runtime.prefix_cache=on")
    made = space.train_here("shown", *WAY, "report.every_steps=5", *shown)
    assert losses(made)[10] == pytest.approx(losses(plain)[10], rel=1e-4)  # chunks end elsewhere, no more
    assert {4, 5, 6, 7, 8} <= losses(made).keys()
    return made


def test_a_profile_has_the_steps_that_were_asked_for(run: RunDir) -> None:
    """By the trace's own protobuf."""
    (file,) = run.tensorboard.glob("plugins/profile/*/*.xplane.pb")
    trace = xplane_pb2.XSpace.FromString(file.read_bytes())
    names = {meta.name for plane in trace.planes for meta in plane.event_metadata.values()}
    events = sum(len(line.events) for plane in trace.planes for line in plane.lines)
    steps = [
        next(stat.int64_value for stat in event.stats if plane.stat_metadata[stat.metadata_id].name == "step_num")
        for plane in trace.planes
        for line in plane.lines
        for event in line.events
        if plane.event_metadata[event.metadata_id].name == "train"
    ]
    assert events > 100 and steps == [5, 6, 7, 8]
    assert any("MatMul" in name for name in names) and any("Conv2D" in name for name in names)


@pytest.fixture(scope="module")
def address(run: RunDir) -> Iterator[str]:
    argv = [str(BIN / "tensorboard"), "--logdir", str(run.tensorboard), "--port=0", "--load_fast=false"]
    with subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        said = next(line for line in process.stderr if " at http" in line)
        yield said.split(" at ")[1].split()[0]
        process.kill()


def asked(address: str, path: str) -> Any:
    with urlopen(f"{address}data/plugin/{path}", timeout=60) as answer:
        return answer.read()


def test_its_server_reads_the_features_and_their_classes(run: RunDir, address: str) -> None:
    projector = "projector/{}?run=.&name=features"
    (info,) = json.loads(asked(address, projector.format("info")))["embeddings"]
    num, width = info["tensorShape"]
    points = np.frombuffer(asked(address, projector.format("tensor")), np.float32).reshape(num, width)
    names, *rows = asked(address, projector.format("metadata")).decode().splitlines()
    source = tl.open_dataset(tl.Run(run.path).config)["train"]
    assert names == "class\tid" and len(rows) == num == source.num_examples
    assert [row.split("\t")[1] for row in rows] == list(source.ids)
    assert np.isfinite(points).all() and points.std(axis=0).max() > 0


def test_a_browser_shows_them(run: RunDir, address: str, browser: Any) -> None:
    deadline = time.monotonic() + 120
    num = tl.open_dataset(tl.Run(run.path).config)["train"].num_examples
    tab = browser.new_page()
    tab.goto(f"{address}#text")
    tab.get_by_text("model.backbone").first.wait_for(timeout=120_000)
    tab.goto(f"{address}#pr_curves")
    tab.get_by_text("test_precision_recall").first.wait_for(timeout=120_000)
    tab.goto(f"{address}#profile")  # the page of xprof, whose charts would come from elsewhere
    (session,) = run.tensorboard.glob("plugins/profile/*")
    wanted, said = (session.name, "Overview Page", "Number of Hosts used: 1"), ""
    while not all(text in said for text in wanted) and time.monotonic() < deadline:
        tab.wait_for_timeout(200)
        said = "".join(one.locator("body").inner_text() for one in tab.frames[1:])
    assert all(text in said for text in wanted)
    deadline = time.monotonic() + 120
    tab.goto(f"{address}#projector")
    shown: list[str] = []
    while shown != [str(num)] and time.monotonic() < deadline:
        tab.wait_for_timeout(200)
        # In a frame of its own, which comes when it likes.
        shown = [text for one in tab.frames for text in one.locator("span.numDataPoints").all_inner_texts()]
    assert shown == [str(num)]
    tab.close()
