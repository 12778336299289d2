"""Photographs of 12 megapixels to crops of 224, against the same pipeline that decodes them at full size.

The photographs are those of scikit-learn, enlarged, with the noise of a sensor put over them: without it they would
be easier to decode than a camera's.

Where the limit is, in CPU time of one core relative to a whole decode by TensorFlow (33 ms): at an eighth of the size,
where next to nothing but entropy decoding is left, 0.65 by TensorFlow, 0.66 by Pillow and 0.63 by OpenCV, which all
have libjpeg-turbo. A window of 1,600 pixels in the middle takes 0.60 at full size and 0.53 at a quarter; some 94 % of
that is entropy decoding of the rows down to its end. No decoder skips it in a file without restart markers.
"""

import io
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.comparison import Comparison, in_turn
from benchmarks.input_jpeg import AUGMENT, whole_pipeline
from benchmarks.photographs import rate, write_folder

NUMBER, BATCH = 96, 8
EXTENT = (4000, 3000)


def large_photographs(number: int) -> list[bytes]:
    """JPEGs of quality 90, of 2.4 and 2.9 MB in turn."""
    import numpy as np
    from PIL import Image
    from sklearn.datasets import load_sample_image

    random = np.random.default_rng(0)
    noise = random.normal(0, 4, (EXTENT[1], EXTENT[0], 1))
    large = []
    for name in ("china.jpg", "flower.jpg"):
        whole = Image.fromarray(load_sample_image(name)).crop((0, 0, 569, 427))
        pixels = np.asarray(whole.resize(EXTENT, Image.Resampling.BICUBIC)) + noise
        target = io.BytesIO()
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(target, "JPEG", quality=90)
        large.append(target.getvalue())
    return [large[k % 2] for k in range(number)]


class _Pixels:
    """A source that gives decoded images alone."""

    def __init__(self, source: Any) -> None:
        self.num_examples, self.read = source.num_examples, source.read


def comparisons() -> Iterator[Comparison]:
    from tl_dist.datasets.curation.layout import opened_whole

    root = Path(tempfile.mkdtemp(prefix="tl-dist-benchmark-"))
    cores = len(os.sched_getaffinity(0))
    try:
        images = large_photographs(NUMBER)
        write_folder(root, images)
        source = opened_whole(root)["train"]
        sides = {
            "scaled": rate(lambda: whole_pipeline(source, AUGMENT, cores, BATCH), NUMBER),
            "full": rate(lambda: whole_pipeline(_Pixels(source), AUGMENT, cores, BATCH), NUMBER),
        }
        found = in_turn(sides, rounds=5)
        yield Comparison(
            "input_large_photos[12 MP to 224]",
            "images/s",
            found["scaled"],
            "decoding at full size",
            found["full"],
            bar=3,
            note=f"{sum(map(len, images)) / NUMBER / 1e6:.1f} MB a photograph",
        )
    finally:
        shutil.rmtree(root)
