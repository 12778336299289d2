"""From the body of a request to images, and from probabilities to the body of its answer. Nothing of HTTP here."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from threading import Semaphore
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tl_dist.files import limits
from tl_dist.refusal import printable, shortened
from tl_dist.worker.serving.batches import Batches
from tl_dist.worker.serving.metrics import Metrics
from tl_dist.worker.serving.served import Served

AT_ONCE = 8  # bodies or images that are being read
SIGNATURES = ("", "serving_default", "encoded")


class Bad(Exception):
    """A request that cannot be answered, and why in one line."""


class Answers:
    """What both kinds of requests have in common; called by many threads."""

    def __init__(self, served: Served, metrics: Metrics, *, cores: int) -> None:
        self.served, self.metrics = served, metrics
        self._batches = Batches(served.predict, metrics.batch)
        # A decoded image takes up to 1 GiB while it is resized, and a parsed body many times its bytes.
        self._room = Semaphore(min(cores, AT_ONCE))

    def to_json(self, body: bytes) -> dict[str, Any]:
        """TensorFlow Serving's row format. One bad instance is the whole request's, as there: Bad names it."""
        images = []
        with self._room:
            for number, instance in enumerate(_instances(body)):
                try:
                    images.append(self._image(instance))
                except ValueError as error:
                    self.metrics.image_errors(1)
                    raise Bad(f"instance {number}: {_line(error)}") from None
        return {"predictions": [self._prediction(row) for row in self._probabilities(images)]}

    def to_files(self, files: Sequence[tuple[str, bytes]]) -> dict[str, Any]:
        """A prediction, or an error in its place, for each (name, bytes)."""
        if not 0 < len(files) <= limits.SERVED_IMAGES:
            raise Bad(f"{len(files)} files: send 1 to {limits.SERVED_IMAGES}, as curl -F file=@PATH does")
        found: list[dict[str, Any]] = [{"file": name} for name, _ in files]
        images, rows = [], []
        for entry, (_, encoded) in zip(found, files, strict=True):
            try:
                with self._room:
                    images.append(self.served.decode(encoded))
                rows.append(entry)
            except ValueError as error:
                self.metrics.image_errors(1)
                entry["error"] = _line(error)
        for entry, row in zip(rows, self._probabilities(images), strict=True):
            entry |= self._prediction(row)
        return {"class_names": list(self.served.class_names), "predictions": found}

    def _probabilities(self, images: Sequence[NDArray[np.uint8]]) -> list[NDArray[np.float32]]:
        return [answer.result() for answer in self._batches.put(images)]

    def _prediction(self, row: NDArray[np.float32]) -> dict[str, Any]:
        return {"probabilities": row.tolist(), "class": self.served.class_names[int(row.argmax())]}

    def _image(self, instance: Any) -> NDArray[np.uint8]:
        if isinstance(instance, dict) and isinstance(instance.get("b64"), str) and len(instance) == 1:
            try:
                encoded = base64.b64decode(instance["b64"], validate=True)
            except ValueError:
                raise ValueError("is not base64") from None
            return self.served.decode(encoded)
        size = self.served.image_size
        # As objects: of a list with one long text NumPy would make an array with room for as many as there are.
        pixels = np.array(instance, dtype=object)
        if pixels.shape != (size, size, 3) or not all(type(value) is int for value in pixels.flat):
            raise ValueError(f'is neither {{"b64": TEXT}} nor whole numbers of shape [{size}, {size}, 3]')
        try:
            return pixels.astype(np.uint8)
        except OverflowError:
            raise ValueError("has numbers outside of 0 to 255") from None


def _instances(body: bytes) -> list[Any]:
    try:
        given = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise Bad(f"the body is not JSON: {_line(error)}") from None
    instances = given.get("instances") if isinstance(given, dict) else None
    if not isinstance(instances, list) or not instances:
        raise Bad('the body has to be {"instances": [{"b64": TEXT}, ...]}')
    if len(instances) > limits.SERVED_IMAGES:
        raise Bad(f"{len(instances):,} instances: more than {limits.SERVED_IMAGES}")
    if given.get("signature_name", "") not in SIGNATURES:
        raise Bad("'signature_name' has to be serving_default or encoded")
    return instances


def _line(error: Exception) -> str:
    return shortened(printable(" ".join(str(error).split())), 300)
