"""What images were to the authors of weights, by the description of transformers or timm in the folder of the file."""

import json
import math
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from tl_dist.files import limits
from tl_dist.files.foreign import read_file
from tl_dist.models.backbones import IMAGENET, Preprocessing, Scaling
from tl_dist.refusal import ExitCode, Refusal

FILES = ("preprocessor_config.json", "config.json")  # of transformers, and of timm
_FILTERS = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")  # by Pillow's numbers
_CONVNEXT_WHOLE = 384  # from this size on, ConvNeXt's images are stretched
_KNOWN = {"torch": IMAGENET, "tf": Scaling((0.5,) * 3, (0.5,) * 3), "inside": IMAGENET}
_STRETCHED = {"resize": "stretch"}

Images = Mapping[str, Any]
"""`mean` and `std` of images scaled to 0..1 and, where they are known, the keys `interpolation`, `resize` and
`crop_fraction` of a config's `data`"""


def beside(file: Path) -> Images | None:
    """Return what images were in training, by the description in the folder of `file`; None without one."""
    for name in FILES:
        with suppress(OSError, ValueError, TypeError, LookupError, AttributeError, ZeroDivisionError, RecursionError):
            described: Mapping[str, Any] = json.loads(read_file(file.parent / name, max_bytes=limits.RUN_JSON))
            return _of_transformers(described) if "image_mean" in described else _of_timm(described)
    return None


def _of_timm(described: Mapping[str, Any]) -> Images:
    described = described.get("pretrained_cfg", described)
    kept, mode = described.get("crop_pct", 0), described.get("crop_mode", "center")
    square = _kept(kept) if mode == "center" else _STRETCHED if (mode, kept) == ("squash", 1) else {}
    return _scaled(described["mean"], described["std"]) | _filter(described.get("interpolation")) | square


def _of_transformers(described: Mapping[str, Any]) -> Images:
    factor = 255 * described.get("rescale_factor", 1 / 255) if described.get("do_rescale", True) else 255
    mean, std = described["image_mean"], described["image_std"]
    if not described.get("do_normalize", True):
        mean, std = [0.0] * 3, [1.0] * 3
    images = _scaled(mean, std, factor)
    if type(number := described.get("resample")) is int:
        images |= _filter(_FILTERS[number])
    with suppress(ValueError, TypeError, KeyError):
        images |= _square(described)
    return images


def _square(described: Mapping[str, Any]) -> dict[str, Any]:
    """Return how an image processor of transformers makes squares; empty if in a way that is none of ours."""
    size, cropped = described["size"], described.get("crop_size") if described.get("do_center_crop") else None
    side: Any
    part: Any
    (side,), (part,) = (set(s.values()) if isinstance(s, Mapping) else {s} for s in (size, cropped))
    if "crop_pct" in described:
        return _kept(described["crop_pct"]) if side < _CONVNEXT_WHOLE else _STRETCHED
    is_shorter = "shortest_edge" in size if isinstance(size, Mapping) else part == side
    if is_shorter:
        return _kept(part / side)
    return _STRETCHED if part in (None, side) else {}


def _kept(fraction: float) -> dict[str, Any]:
    """Return the keys of `data` that keep a fraction, rounded so that 224 of 248 gives 248 again."""
    return {"resize": "crop", "crop_fraction": math.floor(1e6 * fraction) / 1e6} if 0 < fraction <= 1 else {}


def _filter(name: Any) -> dict[str, Any]:
    return {"interpolation": name} if name in _FILTERS else {}


def _scaled(mean: Any, std: Any, factor: float = 1.0) -> dict[str, Any]:
    """Return mean and std of images scaled to 0..1, of those for images scaled to 0..factor."""
    moments = {name: [float(value) / factor for value in values] for name, values in (("mean", mean), ("std", std))}
    if any(len(v) != 3 or not all(map(math.isfinite, v)) for v in moments.values()) or min(moments["std"]) <= 0:
        raise ValueError("not three numbers each")
    return moments


def scaling_if_other(ours: Preprocessing, images: Images | None) -> Scaling | None:
    """Return the authors' mean and std if they are known, and are not those of a network."""
    own = ours if isinstance(ours, Scaling) else _KNOWN.get(ours)
    if images is None or own is None:
        return None
    theirs = Scaling(tuple(images["mean"]), tuple(images["std"]))
    pairs = zip((*theirs.mean, *theirs.std), (*own.mean, *own.std), strict=True)
    return theirs if any(abs(a - b) > 1e-3 for a, b in pairs) else None


def refuse_other_scaling(spec: str, name: str, ours: Preprocessing, images: Images | None) -> None:
    """Refuse (64) weights whose authors scaled images otherwise than the network `name` has them scaled."""
    theirs = scaling_if_other(ours, images)
    if theirs is not None:
        own = ours if isinstance(ours, Scaling) else _KNOWN[ours]
        what = f"the weights '{spec}' were trained on images of mean {list(theirs.mean)} and std {list(theirs.std)}, "
        what += f"but those of {name} get mean {list(own.mean)} and std {list(own.std)}."
        fix = f"write 'preprocessing: {{mean: {list(theirs.mean)}, std: {list(theirs.std)}}}' below 'model:'."
        if ours == "inside":
            fix = "use weights for images of that mean and std, which layers of the network itself apply."
        raise Refusal(what, fix=fix, code=ExitCode.USAGE)
