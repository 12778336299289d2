"""Recomputed statistics (PreciseBN) are the mean and variance of all that a layer is given, by NumPy and by torch.

Wu and Johnson, arXiv 2105.07576, appendix: the variance of the population is E[s^2 + m^2] - E[m]^2 over batches that
the weights, held still, are shown. So it is that of all values together, which needs no formula, however they were
divided. torch's layers normalize as in training; their own variance of each batch is the unbiased one, which fvcore's
update_bn_stats undoes.
"""

from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import torch

from tests.doubles import PARALLEL, labelled, normalised
from tl_dist.data.order import Order
from tl_dist.data.pipeline import plain, train_batches
from tl_dist.trainer.precise_statistics import averaging

NUM_BATCHES = 5
RNG = np.random.default_rng(0)
# Each has a colour of its own, so that a small batch has another mean than the next one.
IMAGES = np.clip(RNG.normal(RNG.uniform(40, 215, (40, 1, 1, 3)), 25, (40, 32, 32, 3)), 0, 255).astype(np.uint8)


def recomputed(policy: str, batch: int, accumulate: int) -> tuple[Any, dict[str, np.ndarray], list[np.ndarray]]:
    """A network with wrong statistics, what these are afterwards, and the batches that it was shown."""
    net = normalised("all", policy)
    for statistic in net.statistics.values():
        statistic.assign_add(tf.fill(statistic.shape, 0.7))  # where they begin is forgotten
    order = Order(0, len(IMAGES), batch)
    read = plain(labelled(IMAGES), 32)
    batches = list(train_batches(read, order, rows=range(batch), steps=range(NUM_BATCHES)))
    average = averaging(net, PARALLEL, global_batch=batch, accumulate=accumulate)
    feed = iter(tf.data.Dataset.from_tensor_slices(type(batches[0])(*map(tf.stack, zip(*batches, strict=True)))))
    for k in range(1, NUM_BATCHES + 1):
        average(feed, tf.constant(k, tf.int64))
    found = {path: variable.numpy() for path, variable in net.statistics.items()}
    return net, found, [one.images.numpy() for one in batches]


def of_torch(net: Any) -> tuple[list[Any], list[Any]]:
    """The convolutions, and the batch norms in training mode."""
    convolutions, norms = [], []
    for k in (1, 2):
        kernel, bias = net.network.get_layer(f"conv{k}").get_weights()
        convolution = torch.nn.Conv2d(kernel.shape[2], kernel.shape[3], 3, stride=2)
        convolution.weight.data = torch.tensor(kernel.transpose(3, 2, 0, 1).copy())
        convolution.bias.data = torch.tensor(bias)
        norm = torch.nn.BatchNorm2d(kernel.shape[3], eps=net.network.get_layer(f"norm{k}").epsilon, momentum=1.0)
        convolutions.append(convolution.double())
        norms.append(norm.double().train())
    return convolutions, norms


# Of five rows in two parts one has three: the rows weigh, not the parts.
@pytest.mark.parametrize(
    ("policy", "batch", "accumulate"), [("sync", 8, 1), ("train", 8, 1), ("train", 4, 1), ("train", 5, 2)]
)
def test_they_are_those_of_all_values_that_the_layers_are_given(policy: str, batch: int, accumulate: int) -> None:
    net, found, batches = recomputed(policy, batch, accumulate)
    convolutions, norms = of_torch(net)
    given: list[list[np.ndarray]] = [[], []]
    squares, means, rows = np.zeros((2, 8)), np.zeros((2, 8)), 0
    for images in batches:
        for part in np.array_split(images.astype(np.float64) / 127.5 - 1, accumulate):
            x = torch.tensor(part.transpose(0, 3, 1, 2))
            rows += len(part)
            for k, (convolution, norm) in enumerate(zip(convolutions, norms, strict=True)):
                x = convolution(x)
                given[k].append(x.detach().numpy())
                size = x[:, 0].numel()
                x = torch.relu(norm(x))
                mean, unbiased = norm.running_mean.numpy(), norm.running_var.numpy()
                means[k] += len(part) * mean
                squares[k] += len(part) * (unbiased * (size - 1) / size + mean**2)
    for k in (0, 1):
        values = np.concatenate(given[k]).transpose(1, 0, 2, 3).reshape(8, -1)
        mean, variance = (found[f"backbone/norm{k + 1}/moving_{name}"] for name in ("mean", "variance"))
        np.testing.assert_allclose(mean, values.mean(axis=1), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(variance, values.var(axis=1), rtol=1e-4)
        # By the estimator of fvcore, from what torch's layers keep of each batch.
        np.testing.assert_allclose(variance, squares[k] / rows - (means[k] / rows) ** 2, rtol=1e-4)


def test_the_first_layer_has_the_same_ones_however_the_images_are_divided() -> None:
    """In parts of two rows as in whole batches; the mean of the variances of parts would be less by a tenth."""
    whole, parts = (recomputed("train", 8, accumulate)[1] for accumulate in (1, 4))
    for name in ("mean", "variance"):
        path = f"backbone/norm1/moving_{name}"
        np.testing.assert_allclose(parts[path], whole[path], rtol=1e-4, atol=1e-5)
    net, _, batches = recomputed("train", 8, 4)
    images = torch.tensor(np.concatenate(batches).transpose(0, 3, 1, 2).astype(np.float64) / 127.5 - 1)
    of_parts = [one.detach().numpy().var(axis=(0, 2, 3)) for one in of_torch(net)[0][0](images).split(2)]
    assert np.mean(np.mean(of_parts, axis=0) / whole["backbone/norm1/moving_variance"]) < 0.9
