"""What a GPU would be given, seen in graphs, since none is at hand: nothing to wait for, few kernels, no transposes.

Kernels are counted as a GPU would launch them; TensorFlow's own rewrites are those for a virtual H100.
"""

import lzma
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import keras
import pytest
import tensorflow as tf
from keras.src.applications import resnet
from tensorflow.core.protobuf import config_pb2, device_properties_pb2, meta_graph_pb2
from tensorflow.python.grappler import cluster, tf_optimizer

from tests import gpu_kernels
from tests.doubles import PARALLEL, build, memory_source, normalised
from tl_dist.config import ModelConfig, OptimizerConfig, registry
from tl_dist.data.order import Order
from tl_dist.data.pipeline import plain, train_batches
from tl_dist.models import classifier, precision
from tl_dist.training import chunk, losses, optim, step

ADAM = OptimizerConfig(name="adamw", learning_rate=0.01, weight_decay=0.01, clip_norm=1.0, ema=0.9)
# What costs a GPU nothing: views, what the host does, and what only calls something else.
NO_KERNEL = {
    *(
        "Const",
        "Identity",
        "IdentityN",
        "Reshape",
        "Squeeze",
        "ExpandDims",
        "StopGradient",
        "PreventGradient",
    ),
    *(
        "ReadVariableOp",
        "VarHandleOp",
        "Placeholder",
        "NoOp",
        "Shape",
        "ShapeN",
        "Size",
        "StridedSlice",
        "Pack",
    ),
    *("BroadcastGradientArgs", "IteratorGetNext", "While", "StatefulPartitionedCall", "PartitionedCall"),
}


def trained_by(net: Any, *, image_size: int, **settings: Any) -> tuple[step.TrainStep, Any]:
    """A step, and batches for it."""
    optimizer = optim.Optimizer(ADAM, net.trainable, scale_loss=True)
    objective = losses.Objective(3, 4)
    rate = lambda at: 0.01 * tf.cast(at + 1, tf.float32)  # noqa: E731
    source = memory_source(4, size=image_size)
    batches = train_batches(plain(source, image_size), Order(0, 4, 4), rows=range(4), steps=range(9))
    return step.TrainStep(net, optimizer, objective, PARALLEL, rate, **settings), batches


def loop_of(train_step: step.TrainStep, batches: Any) -> tuple[Any, Any]:
    """The condition and the body of a chunk's loop, as graphs."""
    scalars = tf.TensorSpec([], tf.int64), tf.TensorSpec([], tf.int32)
    graph = chunk.train_chunk(train_step).get_concrete_function(iter(batches), *scalars).graph
    (loop,) = (op for op in graph.get_operations() if op.type == "While")
    return tuple(graph._get_function(loop.get_attr(part).name).graph for part in ("cond", "body"))


def within(graph: Any, *, compiled: bool = True) -> Iterator[Any]:
    """The operations of a graph and of every function that it calls, or of those alone that XLA does not compile."""
    for op in graph.get_operations():
        yield op
        for attr in op.node_def.attr.values():
            function = graph._get_function(attr.func.name) if attr.func.name else None
            if function is not None and (compiled or not _by_xla(function)):
                yield from within(function.graph, compiled=compiled)


def _by_xla(function: Any) -> bool:
    return bool(function.cached_definition.attr["_XlaMustCompile"].b)


def on_the_host(graph: Any) -> list[tuple[str, str]]:
    """The operations for which GPUs have no kernel, by type and name."""
    calls = {"Placeholder", "NoOp", "While", "StatefulPartitionedCall", "PartitionedCall"}
    every = (op for op in within(graph) if op.type not in calls)
    return [(op.type, op.name) for op in every if gpu_kernels.kernel_for(op) is None]


def before(operation: Any) -> set[Any]:
    """All that must be done before it: by data or by order."""
    earlier: set[Any] = set()
    left = [operation]
    while left:
        op = left.pop()
        more = {*(tensor.op for tensor in op.inputs), *op.control_inputs} - earlier
        earlier |= more
        left += more
    return earlier


def waits(condition: Any, body: Any) -> set[str]:
    """What in a loop would have the host wait for a GPU, in words."""
    reasons = set()
    if any(op.type == "Less" and op.inputs[0].dtype != tf.int32 for op in condition.get_operations()):
        reasons.add("a count in the GPU's memory")
    for op in within(body):
        if op.type in ("If", "StatelessIf") or op.type == "Timestamp" or "CPU" in op.device:
            reasons.add(op.type)
    fetches = [op for op in body.get_operations() if op.type == "IteratorGetNext"]
    arguments = {op for op in before(fetches[0]) if op.type == "Placeholder"}
    if any(op.outputs[0].dtype != tf.resource for op in arguments):
        reasons.add("batches after results")
    return reasons


@pytest.fixture(scope="module")
def plain_chunk() -> tuple[Any, Any]:
    """On a CPU."""
    return loop_of(*trained_by(build(train_from="all"), image_size=32))


@pytest.fixture(scope="module")
def gpu_chunk() -> tuple[Any, Any]:
    """The same for a GPU, without XLA, whose clusters would hide a branch."""
    return loop_of(*trained_by(build(train_from="all"), image_size=32, gpu=True))


def test_within_a_chunk_the_host_waits_for_nothing_that_a_gpu_computes(
    gpu_chunk: tuple[Any, Any], plain_chunk: tuple[Any, Any]
) -> None:
    assert waits(*plain_chunk) == {"If", "Timestamp", "batches after results"}  # it would be seen
    assert waits(*gpu_chunk) == set()


def test_a_turn_begins_when_the_one_before_has_its_batch(gpu_chunk: tuple[Any, Any]) -> None:
    """TensorFlow orders what has effects, but not turns of a loop: their batches would change places."""
    _, body = gpu_chunk
    (fetch,) = (op for op in body.get_operations() if op.type == "IteratorGetNext")
    turn = body.outputs[0].op
    assert fetch in before(turn)


def test_what_all_variables_share_is_computed_once(gpu_chunk: tuple[Any, Any]) -> None:
    """Powers of the betas, above all: for each variable they were kernels by the hundred."""
    _, body = gpu_chunk
    types = [op.type for op in within(body)]
    assert types.count("AssignVariableOp") + types.count("ResourceApplyAdam") > 20  # there are many variables
    assert types.count("Pow") <= 4


POLICIES = ("float32", "mixed_bfloat16", "mixed_float16")
STATISTICS = ("train", "inference", "sync")


@pytest.mark.parametrize(
    ("statistics", "policy"),
    [
        pytest.param(s, p, marks=() if STATISTICS.index(s) == POLICIES.index(p) else pytest.mark.full)
        for s in STATISTICS
        for p in POLICIES
    ],
)
def test_every_operation_within_a_chunk_has_a_kernel_for_gpus(statistics: str, policy: str) -> None:
    """One that has none would run on the host, which would wait for its inputs."""
    keras.config.set_dtype_policy(policy)
    try:
        loop = loop_of(*trained_by(normalised("all", statistics), image_size=32, gpu=True))
    finally:
        keras.config.set_dtype_policy("float32")
    assert not [left for graph in loop for left in on_the_host(graph)]
    counts = [op for graph in loop for op in graph.get_operations() if op.type in ("Less", "AddV2")]
    on_host = [op for op in counts if op.inputs[0].dtype == tf.int32]
    assert {op.type for op in on_host} >= {"Less", "AddV2"}
    assert all(gpu_kernels.kernel_for(op).host_memory_arg for op in on_host), "a turn would wait for the GPU"


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("mobilenetv3small", marks=pytest.mark.full),
        "convnexttiny",
        pytest.param("efficientnetb0", marks=pytest.mark.full),
    ],
)
def test_the_layers_of_other_networks_have_kernels_for_gpus_in_mixed_precision(name: str) -> None:
    config = ModelConfig(backbone=name, weights="random", train_from="all")
    record = registry.backbone(name)
    network = partial(classifier.Classifier, record, config, image_size=64, num_classes=3, seed=0)
    graph = forward_backward("mixed_bfloat16", network)
    assert len(list(within(graph))) > 500 and not on_the_host(graph)
    with graph.as_default():
        tf.nn.fractional_max_pool(tf.zeros([1, 4, 4, 1]), 2.0)
    assert [kind for kind, _ in on_the_host(graph)] == ["FractionalMaxPool"]  # it would be seen


@pytest.mark.skipif(not tf.test.is_built_with_cuda(), reason="TensorFlow's CUDA build, whose kernels are kept")
def test_the_kept_kernels_are_those_of_the_cuda_build() -> None:
    assert lzma.decompress(gpu_kernels.KEPT.read_bytes()) == gpu_kernels.registered()


H100 = "/job:localhost/replica:0/task:0/device:GPU:0"


def rewritten(graph: Any, options: dict[str, bool]) -> Any:
    """A graph as TensorFlow would hand it to an H100."""
    definition = graph.as_graph_def()
    for node in definition.node:
        if node.op != "Placeholder":
            node.device = H100
    meta = meta_graph_pb2.MetaGraphDef(graph_def=definition)
    meta.collection_def["train_op"].node_list.value.extend(t.op.name for t in graph.outputs)
    config = config_pb2.ConfigProto()
    rewrites = config.graph_options.rewrite_options
    rewrites.min_graph_nodes = -1
    if options.get("layout_optimizer", True) is False:
        rewrites.layout_optimizer = rewrites.OFF
    card = device_properties_pb2.DeviceProperties(
        type="GPU", num_cores=132, frequency=1700, memory_size=80 << 30, bandwidth=3_350_000_000
    )
    card.environment["architecture"] = "9.0"
    host = device_properties_pb2.DeviceProperties(type="CPU", num_cores=8, frequency=2000)
    devices = {H100: card, H100.replace("GPU", "CPU"): host}
    named = [device_properties_pb2.NamedDevice(name=name, properties=p) for name, p in devices.items()]
    return tf_optimizer.OptimizeGraph(config, meta, cluster=cluster.Cluster(devices=named))


def kernels(nodes: Any) -> list[str]:
    return [op for op in nodes if op not in NO_KERNEL]


def short_resnet() -> classifier.Classifier:
    """A ResNet-50 with one block in each stage, and two in the first: every kind of its layers, in a third of them."""

    def stages(x: Any) -> Any:
        x = resnet.stack_residual_blocks_v1(x, 64, 2, stride1=1, name="conv2")
        for k, filters in enumerate((128, 256, 512), start=3):
            x = resnet.stack_residual_blocks_v1(x, filters, 1, name=f"conv{k}")
        return x

    def built(input_shape: tuple[int, int, int]) -> Any:
        return resnet.ResNet(stages, False, True, include_top=False, weights=None, input_shape=input_shape)

    record = replace(registry.backbone("resnet50"), build=built)
    config = ModelConfig(backbone="resnet50", weights="random", train_from="all", batch_norm="train")
    return classifier.Classifier(record, config, image_size=64, num_classes=3, seed=0)


def forward_backward(policy: str, network: Callable[[], classifier.Classifier], **settings: Any) -> Any:
    """The graph of a network's forward and backward pass; keeps the dtype policy as it was."""
    keras.config.set_dtype_policy(policy)
    try:
        net = network()
        train_step, batches = trained_by(net, image_size=64, gpu=True, **settings)
        return tf.function(train_step.gradients).get_concrete_function(batches.element_spec).graph
    finally:
        keras.config.set_dtype_policy("float32")


@pytest.mark.parametrize(
    ("policy", "most"),
    [
        ("float32", 260),
        ("mixed_bfloat16", 385),
        pytest.param("mixed_float16", 345, marks=pytest.mark.full),
    ],
)
def test_an_h100_gets_few_kernels_and_no_transpose(policy: str, most: int) -> None:
    graph = forward_backward(policy, short_resnet)
    left = rewritten(graph, precision.gpu_graph_options(policy))
    ops = [node.op for node in left.node]
    assert ops.count("Transpose") == 0
    assert ops.count("FusedBatchNormV3") + ops.count("_FusedBatchNormEx") == 20
    assert len(kernels(ops)) <= most
    if policy == "float32":
        as_it_comes = rewritten(graph, {})
        assert sum(node.op == "Transpose" for node in as_it_comes.node) > 0  # it would be seen


@pytest.mark.parametrize(
    ("settings", "num_fused"),
    [
        ({"gpu": True}, 2),
        (
            {"gpu": True, "clock": step.no_clock},
            0,
        ),  # TensorFlow refuses the backward pass in deterministic mode
        ({}, 0),  # a CPU keeps its bits
    ],
)
def test_batch_norm_is_fused_on_gpus_alone_and_not_in_deterministic_mode(
    settings: dict[str, Any], num_fused: int
) -> None:
    train_step, batches = trained_by(normalised("all", "inference"), image_size=32, **settings)
    graph = tf.function(train_step.gradients).get_concrete_function(batches.element_spec).graph
    assert sum(op.type == "FusedBatchNormV3" for op in graph.get_operations()) == num_fused


def test_what_xla_leaves_of_a_resnet_are_a_few_dozen_kernels() -> None:
    _, body = loop_of(*trained_by(short_resnet(), image_size=64, gpu=True, xla=True))
    everything = kernels(op.type for op in within(body))
    assert len(everything) > 2000
    assert len(kernels(op.type for op in within(body, compiled=False))) <= 30
