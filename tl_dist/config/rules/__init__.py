"""The rules between the keys of a config, by sections: cheap checks before any worker starts."""

from collections.abc import Iterator
from functools import partial

from tl_dist.config import Config, code, extensions, registry
from tl_dist.config.problems import Broken
from tl_dist.config.rules import data, model, training
from tl_dist.config.source import of_source
from tl_dist.refusal import Refusal

MAX_PROFILED = 200
"""steps: a trace is kept in memory until it ends, and grows by some MB per step"""


def broken(cfg: Config, *, imports: bool = True) -> Iterator[Broken]:
    """Yield every rule that `cfg` breaks, in the order in which the user reads the file.

    Without `imports`, rules are skipped that depend on code of other packages.
    """
    unknown = list(_names(cfg, imports=imports))
    yield from unknown
    if not unknown and (imports or not registry.names_others(cfg)):
        for rules in (
            _workers, data.data, partial(_source, imports=imports), model.backbone, model.model, model.classifier,
            model.features, training.loss, training.optimizer, training.schedule, training.prefix_cache,
            training.distill, training.deciding, _safety, _profile,
        ):  # fmt: skip
            yield from rules(cfg)


def _names(cfg: Config, *, imports: bool) -> Iterator[Broken]:
    for kind, path, name in registry.named(cfg):
        is_backbone = kind is registry.BACKBONE
        try:
            if not (is_backbone and cfg.model.is_function):
                kind.check(name, imports=imports)
            elif imports and cfg.model.preprocessing is not None:
                registry.backbone(cfg.network)
        except Refusal as refusal:
            fix = refusal.fix
            if is_backbone and ":" in name and not cfg.model.is_function:
                fix += " Or, if it is a function that returns a Keras model, write 'preprocessing: torch' or another."
            yield Broken(path, refusal.what, fix)
    yield from _functions(cfg)
    model = cfg.model
    if model.is_function and model.preprocessing is None:
        what = f"what images the network of {registry.without_folder(model.backbone)} takes is not known."
        fix = "write 'preprocessing: torch', tf, caffe, inside, or {mean: [...], std: [...]} below 'model:'."
        yield Broken(("model", "preprocessing"), what, fix)
    if model.arguments and not model.is_function:
        what = f"arguments are for a function that returns a network, and {model.backbone} is none."
        yield Broken(("model", "arguments"), what, "remove them.")


def _functions(cfg: Config) -> Iterator[Broken]:
    """Yield functions of the user that are not there; they are imported by workers alone."""
    for path, name in code.beside_backbone(cfg):
        try:
            extensions.home(name)
        except Refusal as refusal:
            yield Broken(path, refusal.what, refusal.fix)
    files = code.files(cfg.model_dump(mode="json"))
    twice = [file.name for k, file in enumerate(files) if file.name in [other.name for other in files[:k]]]
    if twice:
        what = f"two files of functions are called {twice[0]}, and the run keeps them side by side."
        yield Broken(("model", "backbone"), what, "rename one of them.")


def _workers(cfg: Config) -> Iterator[Broken]:
    workers = cfg.workers or 1
    if registry.strategy(cfg.strategy).workers == "one" and workers > 1:
        fix = "write 'strategy: auto' (or mirrored, horovod, collective), or remove 'workers'."
        yield Broken(("workers",), f"strategy '{cfg.strategy}' has one worker, not {workers}.", fix)
    if cfg.global_batch < workers * cfg.accumulate:
        share = f"{workers} workers" + (f" x {cfg.accumulate} micro-batches" if cfg.accumulate > 1 else "")
        fix = f"write 'global_batch: {workers * cfg.accumulate}' or more, or use fewer workers."
        yield Broken(("global_batch",), f"global_batch is {cfg.global_batch}, too few rows for {share}.", fix)


def _source(cfg: Config, *, imports: bool) -> Iterator[Broken]:
    source = cfg.source
    if source is None:
        return
    if (source.run is None) == (source.data is None):
        state = "neither is given" if source.run is None else "both are given"
        what = f"a source is either a run or data to train on first; {state}."
        yield Broken(("source",), what, "write 'source: {run: runs/NAME}', or data and a duration instead.")
    elif source.data is None:
        keys = ("epochs", "steps", "optimizer", "name")
        needless = [key for key in keys if getattr(source, key) is not None]
        if needless:
            what = f"source.{needless[0]} is for a task that is trained first; this source is a run."
            yield Broken(("source", needless[0]), what, f"remove '{needless[0]}'.")
    elif source.head:
        what = "source.head transfers the head of an earlier run; a task that is trained first has its own classes."
        fix = "remove 'head', or write 'source: {run: runs/NAME, head: true}'."
        yield Broken(("source", "head"), what, fix)
    elif (source.epochs is None) == (source.steps is None):
        what = "the source task needs exactly one of epochs and steps."
        yield Broken(("source",), what, "write 'epochs: 10' below 'source:'.")
    elif (task := of_source(cfg)) is not None:
        for rule in broken(task, imports=imports):
            yield Broken(("source", *rule.path), f"source task: {rule.what}", rule.fix)


def _safety(cfg: Config) -> Iterator[Broken]:
    hang_s, heartbeat_s = cfg.safety.hang_s, cfg.safety.heartbeat_s
    if hang_s < 2 * heartbeat_s:
        what = f"safety.hang_s {hang_s:g} is less than twice heartbeat_s {heartbeat_s:g}."
        yield Broken(("safety", "hang_s"), what, f"write 'hang_s: {4 * heartbeat_s:g}' or more.")


def _profile(cfg: Config) -> Iterator[Broken]:
    steps = cfg.report.profile
    if steps is not None and not steps[0] < steps[1] <= steps[0] + MAX_PROFILED:
        what = f"report.profile [{steps[0]}, {steps[1]}] is not 1 to {MAX_PROFILED} steps."
        fix = "write the step after which the trace begins and its last step, such as [20, 30]."
        yield Broken(("report", "profile"), what, fix)
