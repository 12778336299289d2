"""`tl-dist tune`: find the best classifier on the cached features of a config, and write its config."""

import json
from pathlib import Path
from typing import Any

from rich.table import Table

from tl_dist import tasks
from tl_dist.config import file as config_file
from tl_dist.config import yaml_text
from tl_dist.datasets import seen
from tl_dist.files import limits
from tl_dist.files.atomic import write_atomically
from tl_dist.files.foreign import read_file
from tl_dist.launcher import train
from tl_dist.launcher.task import run_shown
from tl_dist.refusal import ExitCode, Refusal
from tl_dist.terminal.console import Console
from tl_dist.terminal.tables import relative
from tl_dist.tools.tune import Request

SHOWN = 10


def tune(request: train.Request, folds: int, console: Console) -> int:
    """Search, show the best settings, and write the config of the best to NAME-tune/best.yaml."""
    best, settings = tuned(request, folds, console)
    show(settings, console)
    if config_file.load(best, imports=False).loss.class_weights is not None:
        console.say("ranked by accuracy and log loss weighted by loss.class_weights, as in the fit")
    console.say(f"best setting: tl-dist train {relative(best)}")
    return ExitCode.DONE


def tuned(request: train.Request, folds: int, console: Console) -> tuple[Path, list[dict[str, Any]]]:
    """Search, and return the config of the best setting, NAME-tune/best.yaml, and all settings, best first."""
    cfg = request.load()
    tasks.refuse_others(cfg, "tune ranks classifiers by accuracy", "write 'l2: auto' below 'classifier:' instead")
    if not cfg.classifier.computed or cfg.model.normalize or cfg.model.pooling == "flatten":
        what = "tuning searches only classifiers that are computed from pooled, unnormalized features."
        fix = "write 'classifier: {name: logistic}', without model.normalize and without pooling 'flatten'."
        raise Refusal(what, fix=fix, code=ExitCode.USAGE)
    seen.flattered(cfg, request.runs, "tune")
    cfg = request.load(f"name={json.dumps(cfg.name + '-tune')}")
    run = run_shown(request, cfg, Request(folds=folds), "tuning", console)
    settings = json.loads(read_file(run.path / "tuning.json", max_bytes=limits.RUN_JSON))
    # The config of the run, since it names the source run that was trained first.
    values = config_file.load(run.config_file).model_dump(mode="json")
    values["name"] = f"{cfg.name.removesuffix('-tune')}-best"
    values["model"] |= settings[0]["model"]
    values["classifier"] |= settings[0]["classifier"]
    values["classifier"]["layers"] = "all"  # model.layers names only the chosen ones
    if values["classifier"]["name"] != "logistic":
        del values["classifier"]["l2"]
    best = run.path / "best.yaml"
    write_atomically(best, yaml_text.dump(values).encode())
    return best, settings


def show(settings: list[dict[str, Any]], console: Console) -> None:
    """Show the best settings with their scores and the number of folds behind them."""
    table = Table("classifier", "l2", "scaling", "layers", "pooling", "folds", "accuracy", "log loss")
    for setting in settings[:SHOWN]:
        kind, model = setting["classifier"], setting["model"]
        l2 = f"{kind['l2']:g}" if "l2" in kind else ""
        table.add_row(
            kind["name"], l2, kind["scaling"], " ".join(model["layers"]), model["pooling"],
            str(setting["folds"]), f"{setting['accuracy']:.4f}", f"{setting['log_loss']:.4f}",
        )  # fmt: skip
    console.print(table)
    console.say(f"best of {len(settings)}; chosen by these same scores, so a little optimistic")
