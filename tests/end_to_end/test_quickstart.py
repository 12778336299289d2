"""The main job: two Horovod workers fine-tune the pretrained VGG16 on real images, better than the published SVM."""

import json
import subprocess
from pathlib import Path

import pytest

from tests.end_to_end.harness import INSTALLED, records
from tl_dist.runs.directory import RunDir

CONFIG = Path(__file__).parents[2] / "configs" / "quickstart.yaml"


@pytest.mark.timeout(1200)
def test_the_main_job_beats_the_published_svm_on_656_images(tmp_path: Path) -> None:
    argv = [INSTALLED, "train", str(CONFIG), "epochs=3"]  # of 5, which give 6 more images
    folder = tmp_path / "it's a bläck box"  # a name that a shell takes apart
    folder.mkdir()
    done = subprocess.run(argv, cwd=folder, capture_output=True, text=True, timeout=1100, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    run = RunDir(folder / "runs" / "quickstart")
    test = (run.done or {})["figures"]["test"]
    assert test["num_examples"] == 656
    assert test["num_correct"] / 656 >= 0.83
    assert f"{test['num_correct']} of 656" in done.stdout
    assert "tensorboard --logdir" in done.stdout
    assert {record["workers"] for record in records(run, "train")} == {2}
    split = json.loads((run.path / "split.json").read_text())["splits"]
    assert len(split["test"]["ids"]) == 656
    assert not set(split["test"]["ids"]) & set(split["train"]["ids"])
