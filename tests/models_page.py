"""Write the page with every network that a config may name: `python -m tests.models_page > docs/pages/models.md`."""

import sys

from tl_dist.tools.networks.command import networks

_HEAD = """\
# Networks

Every network that `model.backbone` may name. `tl-dist models list` shows the same in a terminal, and `tl-dist models
show NAME` the stages of one with their outputs and parameters, which `train_from` and `layers` may name. A network of
another package is named as `package.module:NAME` ([Extending](extending.md)).

Accuracies are published ones of Keras's ImageNet weights ([Keras](https://keras.io/api/applications)), and of those of
EfficientNet-Lite's authors ([TPU](https://github.com/tensorflow/tpu/tree/master/models/official/efficientnet/lite));
none was measured here. Weights *imagenet* are downloaded by Keras; others come from a Python package or a file
([Which weights](your-own-images.md#which-weights)). Mean and deviation are ImageNet's.

"""


def page() -> str:
    """Return the page as Markdown, with a row for each network."""
    lines = [
        "| network | pixels | least | top-1 | stages | weights | images are scaled |",
        "|--|--|--|--|--|--|--|",
    ]
    for row in networks():
        top1 = "" if row["imagenet_top1"] is None else f"{row['imagenet_top1']:.3f}"
        stages = row["stages"] if len(row["stages"]) < 9 else [*row["stages"][:2], "...", *row["stages"][-2:]]
        cells = row["image_size"], row["min_size"], top1, ", ".join(stages), row["weights"], row["images"]
        lines.append(f"| `{row['name']}` | {' | '.join(map(str, cells))} |")
    return _HEAD + "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.stdout.write(page())
