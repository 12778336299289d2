"""`tl-dist models`: list the networks that a config may name, and show the stages of one."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tl_dist.config import ModelConfig, extensions, registry
from tl_dist.config import file as config_file
from tl_dist.files import consent
from tl_dist.models.backbones import Scaling
from tl_dist.models.weights.sources import PYPI_WEIGHTS
from tl_dist.refusal import ExitCode, Refusal
from tl_dist.terminal.console import Console, plain
from tl_dist.terminal.tables import narrow_table

IMAGES = {
    "caffe": "BGR less mean",
    "torch": "mean, deviation",
    "tf": "-1 to 1",
    "inside": "in the network",
}
"""how a network has its images scaled, in words"""


def networks() -> list[dict[str, Any]]:
    """Return the facts of every network by name: of tl_dist, and of other packages that are installed."""
    names = [*registry.BACKBONES, *extensions.offers(registry.BACKBONE.group)]
    return [_facts(name) for name in names]


def _facts(name: str) -> dict[str, Any]:
    record = registry.backbone(name)
    kind = record.preprocessing
    weights = ["imagenet"] if record.pretrained is not None else []
    weights += [f"pypi:{package}" for package, published in PYPI_WEIGHTS.items() if published.backbone == name]
    weights += ["a file of torch"] if record.of_torch is not None else []
    if record.function:
        weights = ["function, random or a file"]
    images = f"its own mean {list(kind.mean)}, std {list(kind.std)}" if isinstance(kind, Scaling) else IMAGES[kind]
    return {
        "name": registry.without_folder(registry.parts_of(name)[0]),
        "image_size": record.input_size,
        "min_size": record.min_size,
        "imagenet_top1": record.imagenet_top1,
        "weights": " or ".join(weights) or "random",
        "images": images,
        "stages": list(record.stages),
    }


def show_networks(facts: Sequence[Mapping[str, Any]], console: Console) -> None:
    """Print a row for each network."""
    table = narrow_table("network", "pixels", "top-1", "stages", "weights", "images", folds=("images", "weights"))
    for row in facts:
        top1 = "-" if row["imagenet_top1"] is None else f"{row['imagenet_top1']:.3f}"
        cells = str(row["image_size"]), top1, str(len(row["stages"])), row["weights"], row["images"].partition(" [")[0]
        table.add_row(plain(row["name"]), *cells)
    console.print(table)
    console.say(
        "top-1: published accuracy on ImageNet of Keras's or the authors' weights, not measured here", style="dim"
    )
    console.say("the stages of one, which train_from and layers may name: tl-dist models show NAME", style="dim")


def network(name: str, image_size: int | None) -> dict[str, Any]:
    """Return the facts of a network, with the output and the parameters of each stage; builds it, with random weights.

    It is that of a config, if `name` is a YAML file; else a name or a function, which is called without arguments.
    Refuses (64) an unknown name, and an image size that does not fit it.
    """
    if name.endswith((".yaml", ".yml")):
        sizes = [f"data.image_size={image_size}"] if image_size else []
        name = config_file.load(name, sizes, by_user=True).network
    elif ":" in name:
        file = extensions.code_file(name)
        consent.grant([file] if file else [])
        path = str(Path(name).absolute()) if file else name
        name = ModelConfig(backbone=path, preprocessing="inside").network(image_size)
    facts, record = _facts(name), registry.backbone(name)
    size = image_size or record.input_size
    if size < record.min_size or size % record.patch:
        of = f", a multiple of {record.patch}," if record.patch > 1 else ""
        what = f"{record.name} takes images of {record.min_size} pixels{of} and more, not of {size}."
        raise Refusal(what, fix=f"write --image-size {record.input_size}.", code=ExitCode.USAGE)
    built = record.build((size, size, 3))
    names = [layer.name for layer in built.layers]
    starts = [*(names.index(first) for first in record.stages.values()), len(names)]
    rows = []
    for stage, first, end in zip(record.stages, starts, starts[1:], strict=False):
        layers = built.layers[0 if stage == next(iter(record.stages)) else first : end]
        rows.append(
            {
                "stage": stage,
                "first_layer": names[first],
                "output": [int(side) for side in layers[-1].output.shape[1:]],
                "parameters": sum(layer.count_params() for layer in layers),
            }
        )
    return {**facts, "image_size": size, "stages": rows, "parameters": built.count_params()}


def show_network(facts: Mapping[str, Any], console: Console) -> None:
    """Print a row for each stage, and what the network is."""
    size = facts["image_size"]
    console.say(f"{facts['name']}: {facts['parameters']:,} parameters, images of {size} x {size}", style="bold")
    table = narrow_table("stage", "first layer", "output", "parameters", folds=("first layer",))
    for row in facts["stages"]:
        output = " x ".join(map(str, row["output"]))
        table.add_row(plain(row["stage"]), plain(row["first_layer"]), output, f"{row['parameters']:,}")
    console.print(table)
    console.say(f"weights: {facts['weights']}; images are scaled: {facts['images']}")
    console.say("train_from, reinitialize and layers may name a stage; train_from also a layer", style="dim")
