"""A table and the same table packed are one data set: same batches, same splits, same losses."""

import json
from pathlib import Path

from PIL import Image

from tests.end_to_end.harness import Workspace, records
from tests.official_layouts import digits_32px
from tl_dist.cli.main import main

CONFIG = """\
global_batch: 8
steps: 6
precision: float32
data: {image_size: 32, augment: [flip], validation_fraction: 0.25, test_fraction: 0.2}
model: {backbone: tiny, weights: random, train_from: all}
optimizer: {learning_rate: 0.05}
report: {every_steps: 1, tensorboard: false}
"""


def test_a_packed_table_trains_as_the_table(tmp_path: Path) -> None:
    lines = ["path,label,weight,group"]
    for k, image in enumerate(digits_32px(60).images):
        Image.fromarray(image).save(tmp_path / f"{k:02}.png")
        lines.append(f"{k:02}.png,{k % 3},{0.5 + k % 4},patient {k // 4}")
    (tmp_path / "table.csv").write_text("\n".join(lines) + "\n")
    workspace = Workspace(tmp_path, CONFIG)
    assert main(["data", "pack", str(tmp_path / "table.csv"), str(tmp_path / "dst"), "-n", "1"]) == 0
    losses, examples = [], []
    for name, path in (("csv", "table.csv"), ("packed", "dst")):
        run = workspace.train_here(name, f"data.name={name}", f"data.path={tmp_path / path}")
        every = [*records(run, "train"), *records(run, "evaluation")]
        losses.append([(r["step"], r.get("split"), r["loss"]) for r in every])
        splits = json.loads((run.path / "split.json").read_text())["splits"]
        examples.append({split: part["ids"] for split, part in splits.items()})
    assert losses[0] == losses[1] and len(losses[0]) > 6
    assert examples[0] == examples[1] and len(examples[0]) == 3
