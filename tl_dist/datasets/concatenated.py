"""Several sources as one."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tl_dist.datasets import SoftLabels, Source, host_tensor, is_encoded, types_of
from tl_dist.datasets.location import locator


@dataclass(frozen=True, eq=False)
class Concatenated:
    """Sources with the same classes, one after the other, as one `Source`; what one of them has, all have to have.

    Of weights alone a part may have none: they are 1 there.
    """

    parts: Sequence[Source]

    @property
    def num_examples(self) -> int:
        return sum(part.num_examples for part in self.parts)

    @property
    def num_classes(self) -> int:
        return self.parts[0].num_classes

    @property
    def class_names(self) -> Sequence[str]:
        return self.parts[0].class_names

    @cached_property
    def fingerprint(self) -> str:
        return hashlib.sha256(" ".join(part.fingerprint for part in self.parts).encode()).hexdigest()

    @cached_property
    def ids(self) -> Sequence[str]:
        return [name for part in self.parts for name in part.ids]

    @cached_property
    def labels(self) -> NDArray[np.int32]:
        return np.concatenate([part.labels for part in self.parts])

    @cached_property
    def _starts(self) -> NDArray[np.int64]:
        return np.cumsum([0, *(part.num_examples for part in self.parts)])

    @cached_property
    def location(self) -> Any:
        """Where an encoded example lies, by index; None unless every part knows."""
        locators = [locator(part) for part in self.parts]

        def locate(index: int) -> Any:
            part, offset = self._place(index)
            return locators[part](offset)  # type: ignore[misc]

        return None if None in locators else locate

    @cached_property
    def weights(self) -> NDArray[np.float32] | None:
        weights = [getattr(part, "weights", None) for part in self.parts]
        if all(some is None for some in weights):
            return None
        ones = [np.ones(part.num_examples, np.float32) for part in self.parts]
        return np.concatenate(
            [one if some is None else some for some, one in zip(weights, ones, strict=True)]
        )

    @cached_property
    def groups(self) -> Sequence[str] | None:
        groups: list[Any] = [getattr(part, "groups", None) for part in self.parts]
        return None if None in groups else [name for some in groups for name in some]

    @cached_property
    def types(self) -> Sequence[str]:
        types = [types_of(part) for part in self.parts]
        return [name for some in types for name in some] if all(types) else []

    @cached_property
    def soft(self) -> SoftLabels | None:
        soft = [found for part in self.parts if (found := getattr(part, "soft", None)) is not None]
        if len(soft) < len(self.parts):
            return None
        return SoftLabels(*(np.concatenate(column) for column in zip(*soft, strict=True)))

    def read(self, index: Any) -> tuple[Any, Any]:
        import tensorflow as tf

        image, label = self._of_part(index, [part.read for part in self.parts])
        return tf.ensure_shape(image, [None, None, 3]), label

    def __getattr__(self, name: str) -> Any:
        # What only sources of encoded images have.
        if name == "encoded" and all(map(is_encoded, self.parts)):
            return lambda index: self._of_part(index, [part.encoded for part in self.parts])  # type: ignore[attr-defined]
        if name == "encoded_bytes" and all(map(is_encoded, self.parts)):
            return self._encoded_bytes
        raise AttributeError(name)

    def _encoded_bytes(self, index: int) -> bytes:
        part, offset = self._place(index)
        return self.parts[part].encoded_bytes(offset)  # type: ignore[attr-defined]

    def _place(self, index: int) -> tuple[int, int]:
        """Which part an example is in, and where in it."""
        part = int(np.searchsorted(self._starts, index, side="right")) - 1
        return part, index - int(self._starts[part])

    def _of_part(self, index: Any, reads: Sequence[Callable[[Any], Any]]) -> Any:
        import tensorflow as tf

        starts = host_tensor(self._starts[:-1])
        part = tf.reduce_sum(tf.cast(index >= starts, tf.int32)) - 1
        offset = index - tf.gather(starts, part)
        return tf.switch_case(part, [lambda read=read: read(offset) for read in reads])
