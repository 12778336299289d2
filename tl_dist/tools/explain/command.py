"""`tl-dist explain`: show which part of an image decides its class, as a picture beside it; computed by workers."""

import io
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tl_dist import tasks
from tl_dist.config import file as config_file
from tl_dist.datasets.unlabelled import listed, unreadable
from tl_dist.files.atomic import write_output
from tl_dist.files.foreign import refuse_other_picture
from tl_dist.launcher import read_only
from tl_dist.launcher.task import Computation
from tl_dist.refusal import ExitCode, Refusal
from tl_dist.runs.directory import RunDir
from tl_dist.runs.identity import identity_of
from tl_dist.scores import explanations, figures
from tl_dist.scores.explanations import Explained
from tl_dist.tools.explain import MAX_IMAGES, Request

ENDING = ".explained.png"
_TITLES = {"layercam": "LayerCAM of {}", "gradcam": "Grad-CAM of {}", "rollout": "attention rollout"}
_LARGE_GAP = 0.01


def explain(
    run: RunDir,
    images: Sequence[str],
    how: Computation,
    say: Callable[[str], None],
    *,
    out: Path | None = None,
    cam: str = "layercam",
    of_class: str | None = None,
) -> list[Path]:
    """Write a picture for each image, and print its predicted class and where the picture is, which is returned.

    `of_class` is the class to explain, by default the one that is predicted.
    """
    if cam not in _TITLES:
        raise Refusal(f"there is no method '{cam}'.", fix=f"use one of {', '.join(_TITLES)}.", code=ExitCode.USAGE)
    tasks.refuse_others(config_file.load(run.config_file), "explain shows what decides an image's class")
    names = list(identity_of(run)["class_names"])
    if of_class is not None and of_class not in names:
        fix = f"use one of {', '.join(names[:20])}."
        raise Refusal(f"the run has no class '{of_class}'.", fix=fix, code=ExitCode.USAGE)
    paths = [path for path in listed(images) if not path.endswith(ENDING)]
    if not paths or len(paths) > MAX_IMAGES:
        what = f"{len(paths):,} images are named; one call explains 1 to {MAX_IMAGES:,}."
        raise Refusal(what, fix="name some of them.", code=ExitCode.USAGE)
    for faults in unreadable(paths):
        for k, reason in faults.items():
            raise Refusal(f"{paths[k]} {reason}.", fix="leave it out.", code=ExitCode.DATA)
    targets = _targets(paths, out, run)
    for target in targets:
        refuse_other_picture(target, explanations.is_side_by_side, option="--out")
    classes = [-1 if of_class is None else names.index(of_class)] * len(paths)
    maps = ask(run, how, cam=cam, integrated=True, files=paths, classes=classes)
    probabilities = figures.softmax(maps.logits)
    for k, (path, target) in enumerate(zip(paths, targets, strict=True)):
        best = int(probabilities[k].argmax())
        prediction = f"{names[best]} {probabilities[k, best]:.2f}"
        title = _TITLES[cam].format(names[maps.classes[k]])
        panels = [
            (prediction, maps.images[k]),
            (title, explanations.overlay(maps.images[k], maps.cam[k])),
            ("integrated gradients", explanations.signed(maps.integrated[k])),
        ]
        content = io.BytesIO()
        explanations.side_by_side(panels).save(content, "PNG")
        write_output(target, content.getvalue(), option="--out")
        line = f"{path}: {prediction} | {target}"
        if maps.gaps[k] > _LARGE_GAP:
            line += f" | integrated gradients miss their sum by {maps.gaps[k]:.1%}"
        say(line)
    return targets


def ask(run: RunDir, how: Computation, **fields: Any) -> Explained:
    """Have workers explain images with the model of a run, which may be in use; `fields` are those of `Request`."""
    with read_only.directory() as into:
        read_only.work(run, Request(**fields), into, how, what="explanation")
        return Explained.load(into)


def _targets(paths: Sequence[str], out: Path | None, run: RunDir) -> list[Path]:
    """Return a path beside each image, or in `out`. Refuse (64) a path among the images that the run trains on."""
    if out is None:
        data = config_file.load(run.config_file, imports=False).data.path
        root = Path(data).expanduser().resolve() if data else None
        for path in paths:
            if root is not None and Path(path).resolve().is_relative_to(root):
                what = f"{path} belongs to the data set of the run: a picture beside it would be trained on."
                raise Refusal(what, fix="name another folder with --out DIR.", code=ExitCode.USAGE)
        return [Path(f"{path}{ENDING}") for path in paths]
    out.mkdir(parents=True, exist_ok=True)
    used, targets = Counter[str](), []
    for name in (Path(path).name for path in paths):
        used[name] += 1
        again = f"-{used[name]}" if used[name] > 1 else ""
        targets.append(out / f"{name}{again}{ENDING}")
    return targets
