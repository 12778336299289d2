"""`tl-dist prune`: write the config of a run that starts from another without some channels, and learns from it."""

from collections.abc import Sequence

from tl_dist import config
from tl_dist.config import file as config_file
from tl_dist.runs.directory import RunDir

EPOCHS = 10.0
OPTIMIZER = config.OptimizerConfig(
    name="adamw",
    learning_rate=1e-4,
    weight_decay=0.01,
    ema=0.99,
    schedule=config.ScheduleConfig(name="cosine", warmup_epochs=0.5),
)
"""for a network that has lost channels in every block, whatever optimizer trained the whole one"""


def pruned(run: RunDir, by: float, overrides: Sequence[str] = ()) -> config.Config:
    """Return the config that removes the share `by` of the channels of `run` and trains all of the rest, taught by it.

    Data, head, loss, batch and evaluation stay as in `run`. Refuse what any config with these values would refuse.
    """
    cfg = config_file.load(run.config_file)
    share = round(1 - (1 - cfg.model.prune) * (1 - by), 6)
    path = str(run.path.absolute())
    model = {"prune": share, "train_from": "all", "reinitialize": None}
    changes = {
        "name": f"{cfg.name}-pruned-{share:g}",
        "recipe": None,
        "epochs": EPOCHS,
        "steps": None,
        "model": cfg.model.model_copy(update=model),
        "classifier": config.ClassifierConfig(),
        "features": config.FeaturesConfig(),
        "optimizer": OPTIMIZER,
        "stages": (),
        "source": config.SourceConfig(run=path, head=True, refit=True),
        "distill": config.DistillConfig(teacher=path),
        "runtime": cfg.runtime.model_copy(update={"prefix_cache": "off"}),
    }
    return config_file.changed(cfg.model_copy(update=changes), overrides)
