"""What the augmentations of a config make of a few images: a picture to look at before training.

python -m tl_dist.tools.augment.work CONFIG OUT ROWS [KEY=VALUE]...
"""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tensorflow as tf
from PIL import Image

from tl_dist.config import Config, registry
from tl_dist.config import file as config_file
from tl_dist.data.pipeline import Read, augmented, plain
from tl_dist.datasets import Source
from tl_dist.datasets.division import open_splits
from tl_dist.files.atomic import write_output
from tl_dist.files.picture import refuse_other_picture
from tl_dist.refusal import ExitCode, Refusal

COLUMNS = 8
_GAP = 4


def main(arguments: Sequence[str]) -> int:
    """Write the picture; a refusal is its line on standard error."""
    path, out, rows, *overrides = arguments
    try:
        picture = preview(config_file.load(path, overrides), int(rows))
        write(Image.fromarray(picture), Path(out))
    except Refusal as refusal:
        sys.stderr.write(f"{refusal}\n")
        return refusal.code
    return ExitCode.DONE


def preview(cfg: Config, rows: int) -> np.ndarray:
    """uint8 [height, width, 3]: `rows` training images, each as it is and then as at successive positions."""
    source = open_splits(cfg.data)[0]["train"]
    size = cfg.data.image_size or registry.backbone(cfg.model.backbone).input_size
    shown = np.linspace(0, source.num_examples - 1, min(rows, source.num_examples)).astype(np.int64)
    kept = cfg.data.kept_fraction
    read = augmented(source, cfg.data.augment, cfg.seed, size, cfg.data.augmentation, kept)
    strips = []
    for row, index in enumerate(shown.tolist()):
        whole = _images(plain(source, size, kept), np.full(1, index), np.zeros(1, np.int64))
        positions = np.arange(COLUMNS, dtype=np.int64) + row * COLUMNS
        strips.append(np.concatenate([whole, _mixed(read, source, index, positions)]))
    return _grid(np.stack(strips))


def _mixed(read: Read, source: Source, index: int, positions: np.ndarray) -> np.ndarray:
    """One image at each position; where examples are mixtures, its partners are those that follow it."""
    if read.mixing is None:
        return _images(read, np.full(len(positions), index), positions)
    indices = index + np.where(positions % 2 == 0, 0, 1 + positions // 2)
    images = _images(read, indices % source.num_examples, positions)
    both = read.mixing.mixed(tf.constant(images), tf.zeros(len(positions), tf.int32), tf.constant(positions))
    mixed: np.ndarray = both[0].numpy()
    return mixed


def _images(read: Read, indices: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """uint8 [rows, size, size, 3]: what the pipeline makes of these examples at these positions."""
    with tf.device("CPU:0"):
        where, at = tf.constant(indices, tf.int64), tf.constant(positions, tf.int64)
        done: np.ndarray = read.finish(read.batch(where, at)[0], at).numpy()
    return done


def _grid(images: np.ndarray) -> np.ndarray:
    """uint8 [rows, columns, size, size, 3] side by side, on white."""
    rows, columns, size = images.shape[:3]
    pitch = size + _GAP
    grid = np.full((rows * pitch - _GAP, columns * pitch - _GAP, 3), 255, np.uint8)
    for row in range(rows):
        for column in range(columns):
            grid[row * pitch :, column * pitch :][:size, :size] = images[row, column]
    return grid


def is_grid(width: int, height: int) -> bool:
    """Whether a picture of this size may be one of ours."""
    pitch, rest = divmod(width + _GAP, COLUMNS + 1)
    return not rest and not (height + _GAP) % pitch


def write(picture: Image.Image, out: Path) -> None:
    """As PNG, in the place of another such picture or of none; refuses a file that cannot be written."""
    refuse_other_picture(out, is_grid, option="--out")
    target = io.BytesIO()
    picture.save(target, "PNG")
    write_output(out, target.getvalue(), option="--out")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
