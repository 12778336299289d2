"""Settings for a data set by its size and that of its images, after Big Transfer's rule. Imports no TensorFlow.

BiT-HyperRule: Kolesnikov et al., arXiv 1912.11370, section 3.3, and bit_hyperrule.py in
https://github.com/google-research/big_transfer for the milestones of its schedule. What differs here: the batch is 128
by default, where the paper has 512 (the rate is scaled, the steps are not), large images are trained at the backbone's
own size where that is below 480, and the crop varies in aspect as well.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tl_dist.config.file import section

BATCH = 128
SMALL_AREA = 96 * 96
_RULE = (  # below this many examples: end of the warm-up, three drops, end
    (20_000, (100, 200, 300, 400, 500)),
    (500_000, (500, 3_000, 6_000, 9_000, 10_000)),
    (None, (500, 6_000, 12_000, 18_000, 20_000)),
)

Values = dict[str, Any]


def auto(written: Mapping[str, Any], num_examples: int, image_area: float, input_size: int) -> Values:
    """Values for the keys of a config that `written` leaves out, nested as in the file.

    `image_area` is in pixels, that of a typical image; `input_size` that of the backbone.
    """
    model, optimizer = section(written, "model"), section(written, "optimizer")
    batch = written.get("global_batch", BATCH)
    per_epoch = num_examples / batch
    milestones = next(m for below, m in _RULE if below is None or num_examples < below)
    small = image_area < SMALL_AREA
    found: Values = {"global_batch": batch}
    if not written.get("stages"):
        found["model"] = {"train_from": "all"}
        if not written.keys() & {"steps", "epochs"}:
            found["steps"] = milestones[-1]
    total = written.get("steps") or written.get("epochs", 0) * per_epoch or milestones[-1]
    found["data"] = {"image_size": 128 if small else min(480, input_size)}
    side = 128 / 160 if small else 480 / 512
    cached = section(written, "runtime").get("prefix_cache") == "on" or model.get("train_from") == "head"
    found["data"]["augment"] = ["flip"] if cached else ["random_resized_crop", "flip"]
    augmentation = {"mixup": 0.0 if num_examples < 20_000 or cached else 0.1}
    found["data"]["augmentation"] = {"crop_area": [round(side * side, 4), 1.0], **augmentation}
    if optimizer.get("name", "sgd") == "sgd":
        found["optimizer"] = {"name": "sgd", "learning_rate": 0.003 * batch / 512, "momentum": 0.9}
    if "schedule" not in optimizer and not written.get("stages"):
        warmup, *drops, end = (round(m * total / milestones[-1] / per_epoch, 4) for m in milestones)
        del end
        schedule = {"name": "step", "warmup_epochs": warmup, "drop_at_epochs": drops, "drop_factor": 0.1}
        found.setdefault("optimizer", {})["schedule"] = schedule
    return found
