"""Arrays that are kept together in one .npz file. No pickled object is ever written or read."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self, get_args, get_origin, get_type_hints

import numpy as np

from tl_dist.files.npz import load_npz, save_npz


def no_text() -> np.ndarray:
    """Return an array of no text."""
    return np.array([], np.str_)


@dataclass(frozen=True, eq=False)
class Arrays:
    """A dataclass of scalars and of arrays, such as `ids: Annotated[np.ndarray, "U examples"]`.

    The text holds the kinds of dtype (or one dtype, such as f4) and the axes; with "?" the array may be empty. A
    ValueError names the arrays that do not fit.
    """

    WHAT: ClassVar[str]  # in messages, such as: predictions
    FIX: ClassVar[str]

    def __post_init__(self) -> None:
        sizes: dict[str, int] = {}
        wrong = [name for name, shape in self.shapes().items() if not _fits(getattr(self, name), shape, sizes)]
        if wrong:
            raise ValueError(f"its {' and '.join(wrong)} have another shape or type than {self.WHAT}")

    @classmethod
    def shapes(cls) -> dict[str, str]:
        """Return the annotation of each array, those with the fewest axes first, which set the sizes."""
        hints = get_type_hints(cls, include_extras=True).items()
        shapes = {name: get_args(hint)[1] for name, hint in hints if get_origin(hint) is Annotated}
        return dict(sorted(shapes.items(), key=lambda item: len(item[1].split())))

    def arrays(self) -> dict[str, Any]:
        """Return the content of the file."""
        return dict(vars(self))

    def save(self, path: Path) -> None:
        """Write the arrays to `path`, atomically."""
        save_npz(path, **self.arrays())

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what `save` wrote. Refuses (65) a missing file, and one that holds anything else."""
        scalars = {name: hint for name, hint in get_type_hints(cls).items() if hint in (int, float, str)}
        names = [*cls.shapes(), *scalars]
        return load_npz(
            path,
            lambda arrays: cls(
                **{name: scalars.get(name, np.asarray)(arrays[name]) for name in names if name in arrays}
            ),
            what=cls.WHAT,
            fix=cls.FIX,
        )


def _fits(array: np.ndarray, shape: str, sizes: dict[str, int]) -> bool:
    """Return whether an array has a shape, where each axis has the size that it has in earlier arrays."""
    kinds, *axes = shape.rstrip("?").split()
    is_kind = array.dtype.kind in kinds if kinds.isalpha() else array.dtype == np.dtype(kinds)
    if not is_kind or array.ndim != len(axes):
        return False
    if shape.endswith("?") and not len(array):
        return True
    return all(size and sizes.setdefault(axis, size) == size for axis, size in zip(axes, array.shape, strict=True))
