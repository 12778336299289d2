"""Settings by the number and size of the images of a data set (Big Transfer's rule). Imports no TensorFlow.

BiT-HyperRule: Kolesnikov et al., arXiv 1912.11370, section 3.3, and bit_hyperrule.py in
https://github.com/google-research/big_transfer for the milestones of its schedule, for batches of 512. For another
batch size, the rate is proportional to it and the steps inversely (Goyal et al., arXiv 1706.02677; bit_tf2/train.py).

Differences: the default batch is 128, large images are trained at the backbone's own size if that is below 480, and the
crop varies in aspect as well.
"""

from collections.abc import Mapping
from typing import Any

from tl_dist.config.file import section

BATCH = 128
PAPER_BATCH, PAPER_RATE = 512, 0.003
SMALL_AREA = 96 * 96
_RULE = (  # below this many examples: end of the warm-up, three drops, end
    (20_000, (100, 200, 300, 400, 500)),
    (500_000, (500, 3_000, 6_000, 9_000, 10_000)),
    (None, (500, 6_000, 12_000, 18_000, 20_000)),
)

Values = dict[str, Any]


def auto(written: Mapping[str, Any], num_examples: int, image_area: float, input_size: int) -> Values:
    """Return values for the keys that `written` leaves out, nested as in the file.

    `image_area` is a typical image's, in pixels; `input_size` the backbone's. A computed classifier gets no optimizer.
    """
    batch = written.get("global_batch", BATCH)
    computed = section(written, "classifier").get("name", "head") != "head"
    values: Values = {"global_batch": batch}
    if computed or not written.get("stages"):
        values["model"] = {"train_from": "head" if computed else "all"}
    train_from = section(written, "model").get("train_from", values.get("model", {}).get("train_from"))
    cached = section(written, "runtime").get("prefix_cache") == "on" or train_from == "head"
    values["data"] = _data(num_examples, image_area, input_size, cached=cached)
    return values if computed else {**values, **_training(written, num_examples, batch)}


def _data(num_examples: int, image_area: float, input_size: int, *, cached: bool) -> Values:
    small = image_area < SMALL_AREA
    side = 128 / 160 if small else 480 / 512
    mixup = 0.0 if num_examples < 20_000 or cached else 0.1
    return {
        "image_size": 128 if small else min(480, input_size),
        "augment": ["flip"] if cached else ["random_resized_crop", "flip"],
        "augmentation": {"crop_area": [round(side * side, 4), 1.0], "mixup": mixup},
    }


def _training(written: Mapping[str, Any], num_examples: int, batch: int) -> Values:
    """Return duration, update rule and schedule; a duration in `written` stretches the schedule."""
    optimizer = section(written, "optimizer")
    per_epoch = num_examples / batch
    milestones = next(m for below, m in _RULE if below is None or num_examples < below)
    steps = max(1, round(milestones[-1] * PAPER_BATCH / batch))
    values: Values = {}
    if not written.get("stages") and not written.keys() & {"steps", "epochs"}:
        values["steps"] = steps
    if optimizer.get("name", "sgd") == "sgd":
        rate = PAPER_RATE * batch / PAPER_BATCH
        values["optimizer"] = {"name": "sgd", "learning_rate": rate, "momentum": 0.9}
    if "schedule" not in optimizer and not written.get("stages"):
        total = written.get("steps") or written.get("epochs", 0) * per_epoch or steps
        warmup, *drops = (round(m * total / milestones[-1] / per_epoch, 6) for m in milestones[:-1])
        schedule = {"name": "step", "warmup_epochs": warmup, "drop_at_epochs": drops, "drop_factor": 0.1}
        values.setdefault("optimizer", {})["schedule"] = schedule
    return values
