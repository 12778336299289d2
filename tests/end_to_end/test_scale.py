"""What ImageNet has more of than other sets: shards and classes."""

import json
import subprocess
from pathlib import Path

import numpy as np

from tests.end_to_end.harness import ONE_WORKER, TL_DIST, Workspace, records
from tests.official_layouts import imagenet_record, photographs, write_tfrecords
from tl_dist.scores import predictions


def test_300_shards_are_read_where_128_files_may_be_open(tmp_path: Path) -> None:
    images = photographs(300)
    wnids = ["n01440764", "n01443537", "n01484850"]
    rows = [
        imagenet_record(image, 1 + k % 3, wnids[k % 3], f"photo_{k}.JPEG", (64, 48)) for k, image in enumerate(images)
    ]
    write_tfrecords(tmp_path / "data", "train", rows, 300)
    write_tfrecords(tmp_path / "data", "validation", rows[:20], 2)
    workspace = Workspace(tmp_path)
    argv = workspace.argv(
        "trial", *ONE_WORKER, "data.name=imagenet", "data.path=data", "steps=20", "data.augment=[]"
    )  # 20 steps of 15: one epoch
    cache = str(tmp_path / "cache")
    process = workspace.start(["bash", "-c", 'ulimit -n 128; exec "$@"', "bash", *argv], XDG_CACHE_HOME=cache)
    said, _ = process.communicate(timeout=240)
    assert process.returncode == 0, said
    run = workspace.run("trial")
    assert run.done is not None and "restart" not in said
    assert not run.quarantine_file.exists()


def test_1000_classes_are_evaluated_drawn_and_evaluated_again(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    said = workspace.train(
        "trial",
        *ONE_WORKER,
        "data.name=synthetic",
        "data.num_classes=1000",
        "steps=2",
        "report.tensorboard=true",
    )
    run = workspace.run("trial")
    (record,) = [r for r in records(run, "evaluation") if r["split"] == "test"]
    assert len(json.dumps(record)) < 100_000 and "predicted as" in said
    assert not [r for r in records(run, "note") if "picture" in r["text"]]
    with np.load(predictions.confusion_file_of(run.path, "test")) as found:
        assert found["confusion"].shape == (1000, 1000)
        assert found["confusion"].sum() == record["num_examples"]
        assert np.trace(found["confusion"]) == record["num_correct"]
    again = subprocess.run(
        [TL_DIST, "eval", "runs/trial"], cwd=tmp_path, capture_output=True, text=True, timeout=200, check=True
    )
    assert "evaluating with strategy=single workers=1" in again.stdout
    assert f"accuracy {record['num_correct']:,} of {record['num_examples']:,}" in again.stdout
