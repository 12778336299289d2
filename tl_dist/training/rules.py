"""Say how each variable departs from the common update: rates by depth, decay, and decay toward what."""

from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from tl_dist.config import OptimizerConfig


class Rule(NamedTuple):
    """How one variable departs from the common update."""

    rate: float = 1.0  # factor on the learning rate
    decay: float = 0.0
    toward_start: bool = False
    """decay toward the initial value of the variable instead of 0; under sgd its gradient is added to the loss's, under
    lars and lamb it is part of the update, else it is decoupled"""


def rules(
    config: OptimizerConfig,
    trainable: Mapping[str, Any],
    depths: Mapping[str, int] | None = None,
    new: Collection[str] = (),
) -> dict[str, Rule]:
    """Return the rule of each variable. `depths` counts from the head (0) down; `new` has paths without pretraining.

    Weight decay and L2-SP leave out variables with fewer than two axes, as do the authors of L2-SP (`_decay`, mode 1,
    in model/network_base.py of github.com/holyseven/TransferLearningClassification).
    """
    head_rate = (config.head_learning_rate or config.learning_rate) / config.learning_rate
    new_decay = config.weight_decay if config.head_weight_decay is None else config.head_weight_decay
    table = {}
    for path, variable in trainable.items():
        is_head = path.startswith("head/") or (depths or {}).get(path) == 0
        is_new = is_head or path in new
        rate = head_rate if is_head else config.layer_decay ** (depths or {}).get(path, 0)
        if len(variable.shape) < 2:
            table[path] = Rule(rate)
        elif config.l2_sp and not is_new:
            table[path] = Rule(rate, config.l2_sp, toward_start=True)
        else:
            table[path] = Rule(rate, new_decay if is_new else config.weight_decay)
    return table
