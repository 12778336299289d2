"""Draw a few images under the augmentations of a config: a picture to look at before training.

python -m tl_dist.tools.augment.work CONFIG OUT ROWS [KEY=VALUE]...
"""

import io
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tensorflow as tf
from PIL import Image

from tl_dist.config import Config, registry
from tl_dist.data.pipeline import Read, augmented, plain
from tl_dist.datasets.division import open_splits
from tl_dist.files.atomic import write_output
from tl_dist.files.foreign import refuse_other_picture
from tl_dist.launcher.train import Request
from tl_dist.refusal import ExitCode, Refusal

COLUMNS = 8
_GAP = 4


def main(arguments: Sequence[str]) -> int:
    """Write the picture and return the exit code; print a refusal as one line on standard error."""
    path, out, rows, *overrides = arguments
    try:
        pixels = preview(Request(Path(path), overrides).load(resolve=False), int(rows))
        refuse_other_picture(Path(out), is_grid, option="--out")
        content = io.BytesIO()
        Image.fromarray(pixels).save(content, "PNG")
        write_output(Path(out), content.getvalue(), option="--out")
    except Refusal as refusal:
        sys.stderr.write(f"{refusal}\n")
        return refusal.code
    return ExitCode.DONE


def preview(cfg: Config, rows: int) -> np.ndarray:
    """Return a grid, uint8 [height, width, 3]: a row for each training image, followed by COLUMNS augmentations."""
    source = open_splits(cfg.data)[0]["train"]
    size = cfg.data.image_size or registry.backbone(cfg.network).input_size
    indices = np.linspace(0, source.num_examples - 1, min(rows, source.num_examples)).astype(np.int64)
    square = cfg.data.square
    read = augmented(source, cfg.data.augment, cfg.seed, size, cfg.data.augmentation, square)
    strips = []
    for row, index in enumerate(indices.tolist()):
        original = _images(plain(source, size, square), np.full(1, index), np.zeros(1, np.int64))
        positions = np.arange(COLUMNS, dtype=np.int64) + row * COLUMNS
        # Examples that are mixed in pairs are shown with the images that follow them.
        following = np.where(positions % 2 == 0, 0, 1 + positions // 2) if read.mixing else 0 * positions
        shown = (index + following) % source.num_examples
        strips.append(np.concatenate([original, _images(read, shown, positions)]))
    return _grid(np.stack(strips))


def _images(read: Read, indices: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Return these examples as the pipeline reads them at these positions: uint8 [rows, size, size, 3]."""
    with tf.device("CPU:0"):
        batch = read(tf.constant(indices, tf.int64), tf.constant(positions, tf.int64))
        images: np.ndarray = batch.images.numpy()
    return images


def _grid(images: np.ndarray) -> np.ndarray:
    """Lay out uint8 [rows, columns, size, size, 3] as one picture on white."""
    gap = (0, _GAP)
    padded = np.pad(images, [(0, 0), (0, 0), gap, gap, (0, 0)], constant_values=255)
    rows, columns, pitch = padded.shape[:3]
    grid = padded.swapaxes(1, 2).reshape(rows * pitch, columns * pitch, 3)
    return np.asarray(grid[:-_GAP, :-_GAP])


def is_grid(width: int, height: int) -> bool:
    """Return whether a picture of this size may be an earlier preview."""
    pitch, rest = divmod(width + _GAP, COLUMNS + 1)
    return not rest and not (height + _GAP) % pitch


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
