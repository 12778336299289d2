"""Train in one process on several devices, by MirroredStrategy, whose replicas sum gradients inside the step."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any, TypeVar

import tensorflow as tf

from tl_dist.config import Config
from tl_dist.parallel import rows_of
from tl_dist.parallel.gpus import take_first, too_few
from tl_dist.parallel.replicas import OneProcess

T = TypeVar("T")

HOST = "CPU:0"


class Mirrored(OneProcess):
    """Replicas on the GPUs of this host or, without any, on as many logical CPU devices as the config asks for."""

    def __init__(self, config: Config) -> None:
        gpus = tf.config.list_physical_devices("GPU")
        self.num_replicas = config.workers or max(1, len(gpus))
        if gpus:
            if self.num_replicas > len(gpus):
                raise too_few(self.num_replicas, len(gpus))
            devices = take_first(self.num_replicas)
        else:
            cpu = tf.config.list_physical_devices("CPU")[0]
            tf.config.set_logical_device_configuration(
                cpu, [tf.config.LogicalDeviceConfiguration()] * self.num_replicas
            )
            devices = [f"CPU:{k}" for k in range(self.num_replicas)]
        self._devices = devices
        self.copies_ahead = bool(gpus)
        self._strategy = tf.distribute.MirroredStrategy(
            devices, cross_device_ops=None if gpus else tf.distribute.ReductionToOneDevice()
        )

    def scope(self) -> AbstractContextManager[Any]:
        """Enter the strategy's scope, in which each variable gets a copy per replica."""
        return self._strategy.scope()

    def feed(self, batches: Any) -> Iterator[Any]:
        """Iterate over batches, each replica's rows copied ahead to its device if it is a GPU and the shares are equal.

        TensorFlow distributes only elements of one shape.
        """
        rows = int(batches.element_spec[0].shape[0])
        if not self.copies_ahead or rows % self.num_replicas:
            return iter(batches)
        each = rows // self.num_replicas

        def in_shares(batch: Any) -> tf.data.Dataset:  # `unbatch` crashes on tensors without elements
            starts = tf.data.Dataset.range(0, rows, each)
            return starts.map(
                lambda at: tf.nest.map_structure(
                    lambda t: tf.ensure_shape(t[at : at + each], [each, *t.shape[1:]]), batch
                )
            )

        shares = batches.flat_map(in_shares)
        # With a finite data set, TensorFlow asks before each step, on the host, if every replica has a share left.
        endless = shares.apply(tf.data.experimental.assert_cardinality(tf.data.INFINITE_CARDINALITY))
        return iter(
            self._strategy.distribute_datasets_from_function(
                lambda context: endless, tf.distribute.InputOptions(experimental_per_replica_buffer_size=2)
            )
        )

    def run(self, fn: Callable[..., T], batch: Any, step: Any) -> T:
        """Run `fn` on every replica with its rows of the batch; return the sums over replicas."""

        def share(context: Any) -> Any:
            replica = context.replica_id_in_sync_group
            rows = rows_of(replica, self.num_replicas, int(batch[0].shape[0]))
            # Slice on the host: else the first GPU would get every row, and send most of them on.
            with tf.device(HOST):
                own = tf.nest.map_structure(lambda t: t[rows.start : rows.stop], batch)
            with tf.device(self._devices[replica]):
                return tf.nest.map_structure(tf.identity, own)

        ahead = isinstance(batch[0], tf.distribute.DistributedValues)
        shares = batch if ahead else self._strategy.experimental_distribute_values_from_function(share)
        sums = self._strategy.run(fn, args=(shares, step))
        return tf.nest.map_structure(lambda v: self._strategy.reduce(tf.distribute.ReduceOp.SUM, v, axis=None), sums)

    def reduce_gradients(self, grads: Sequence[Any]) -> list[Any]:
        """Sum gradients over replicas in float32."""
        context = tf.distribute.get_replica_context()
        grads = [tf.cast(g, tf.float32) for g in grads]
        return list(context.all_reduce(tf.distribute.ReduceOp.SUM, grads))

    def total_in_step(self, value: Any, name: str) -> Any:
        """Sum over replicas; TensorFlow defines the gradient of this sum as the sum of the gradients."""
        del name
        return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, value)

    def replica(self) -> Any:
        """Return the number of the replica that calls this."""
        return tf.distribute.get_replica_context().replica_id_in_sync_group
