"""The handwritten digits of scikit-learn: 1,797 grey images of 8 x 8. Real data without a download."""

import numpy as np

from tl_dist.config import DataConfig
from tl_dist.datasets import Splits
from tl_dist.datasets.arrays import array_source
from tl_dist.datasets.split import divide


def open_digits(data: DataConfig) -> Splits:
    """Open the digits 0 to 9 (UCI Optical Recognition of Handwritten Digits, the test part), stratified by class."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    grey = np.rint(bunch.images * (255 / 16)).astype(np.uint8)
    source = array_source(
        images=np.repeat(grey[..., np.newaxis], 3, axis=-1),
        labels=bunch.target.astype(np.int32),
        class_names=[str(name) for name in bunch.target_names],
        ids=[f"digits:{k}" for k in range(len(grey))],
    )
    return divide(source, data)
