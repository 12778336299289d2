"""Turn the body of a request into images, compute them in batches, and make the body of the answer; without HTTP."""

import base64
import json
import re
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Condition, Thread
from typing import Any

import numpy as np
from numpy.typing import NDArray
from prometheus_client import CollectorRegistry, Counter, Histogram, disable_created_metrics

from tl_dist.files import limits
from tl_dist.models.export import Predict
from tl_dist.refusal import printable, shortened
from tl_dist.tools.serve.served import Served

BATCH = 32
AT_ONCE = 8  # images that are decoded at the same time
SIGNATURES = ("", "serving_default", "encoded")
_VALUES_AT_ONCE = 200_000  # 20 ms
_BEGIN = re.compile(rb'\s*\{\s*("signature_name"\s*:\s*"\w*"\s*,\s*)?"instances"\s*:\s*\[')
_IMAGE_END = re.compile(rb"\]\s*\]\s*\]")
_COMMA = re.compile(rb"\s*(?:,(?!\s*\])|(?=\]))")


class Bad(Exception):
    """A request that cannot be answered, and why in one line."""


class Full(Exception):
    """The server has no room for more images or requests."""


class Metrics:
    """What a server has done, for Prometheus; several threads add to it."""

    def __init__(self) -> None:
        disable_created_metrics()  # else each has a second series with the time of its creation
        self.registry = registry = CollectorRegistry()
        self.requests = Counter("tl_dist_requests", "Answered predictions", ["code"], registry=registry)
        self.seconds = Histogram("tl_dist_request_seconds", "Time of an answer", registry=registry)
        self.images = Counter("tl_dist_images", "Computed images", registry=registry)
        self.image_errors = Counter("tl_dist_image_errors", "Undecodable images", registry=registry)
        self.batches = Counter("tl_dist_batches", "Computed batches", registry=registry)


class Batches:
    """Computes waiting images in batches; a batch never waits for more images to fill it."""

    def __init__(self, predict: Predict, metrics: Metrics) -> None:
        self._predict, self._metrics = predict, metrics
        self._waiting: deque[tuple[NDArray[np.uint8], Future[NDArray[np.float32]]]] = deque()
        self._arrived = Condition()
        Thread(target=self._work, name="batches", daemon=True).start()

    def put(self, images: Sequence[NDArray[np.uint8]]) -> list[Future[NDArray[np.float32]]]:
        """Queue all images and return a future of each one's probabilities, or raise Full and queue none."""
        entries = [(image, Future[NDArray[np.float32]]()) for image in images]
        with self._arrived:
            if len(self._waiting) + len(entries) > limits.SERVED_WAITING:
                raise Full
            self._waiting += entries
            self._arrived.notify()
        return [answer for _, answer in entries]

    def _work(self) -> None:
        while True:
            with self._arrived:
                self._arrived.wait_for(lambda: self._waiting)
                batch = [self._waiting.popleft() for _ in range(min(BATCH, len(self._waiting)))]
            try:
                rows = self._predict(np.stack([image for image, _ in batch]))
                self._metrics.images.inc(len(batch))
                self._metrics.batches.inc()
                for (_, answer), row in zip(batch, rows, strict=True):
                    answer.set_result(row)
            except Exception as error:  # fails these requests alone: the thread must outlive it
                for _, answer in batch:
                    if not answer.done():
                        answer.set_exception(error)


class Answers:
    """Answers requests of both kinds; many threads call it."""

    def __init__(self, served: Served, *, cores: int) -> None:
        self.served, self.metrics = served, Metrics()
        self._batches = Batches(served.predict, self.metrics)
        # Bounded pools, first come first served: an image takes up to 1 GiB while it is resized, a parsed body many
        # times its bytes.
        self._images = ThreadPoolExecutor(min(cores, AT_ONCE))
        self._bodies = ThreadPoolExecutor(1)

    def to_json(self, body: bytes) -> dict[str, Any]:
        """Answer a request in TensorFlow Serving's row format; as there, one bad instance fails it: Bad names it."""
        images: list[NDArray[np.uint8]] = []
        for part in _parts(body, 3 * self.served.image_size**2):
            instances = self._bodies.submit(_instances, part, is_all=len(part) == len(body)).result()
            if len(images) + len(instances) > limits.SERVED_IMAGES:
                raise Bad(f"{len(images) + len(instances):,} instances: more than {limits.SERVED_IMAGES}")
            for instance in instances:
                try:
                    images.append(self._images.submit(self._image, instance).result())
                except ValueError as error:
                    self.metrics.image_errors.inc()
                    raise Bad(f"instance {len(images)}: {_line(error)}") from None
        return {"predictions": self._predictions(images)}

    def to_files(self, files: Sequence[tuple[str, bytes]]) -> dict[str, Any]:
        """Return a prediction, or else an error, for each (name, bytes)."""
        if not 0 < len(files) <= limits.SERVED_IMAGES:
            raise Bad(f"{len(files)} files: send 1 to {limits.SERVED_IMAGES}, as curl -F file=@PATH does")
        entries: list[dict[str, Any]] = [{"file": name} for name, _ in files]
        images, decoded = [], []
        for entry, (_, encoded) in zip(entries, files, strict=True):
            try:
                images.append(self._images.submit(self.served.decode, encoded).result())
                decoded.append(entry)
            except ValueError as error:
                self.metrics.image_errors.inc()
                entry["error"] = _line(error)
        for entry, prediction in zip(decoded, self._predictions(images), strict=True):
            entry |= prediction
        return {"class_names": list(self.served.class_names), "predictions": entries}

    def _predictions(self, images: Sequence[NDArray[np.uint8]]) -> list[dict[str, Any]]:
        rows = [answer.result() for answer in self._batches.put(images)]
        served = self.served
        return served.task.entries(served.class_names, np.stack(rows), served.decision) if rows else []

    def _image(self, instance: Any) -> NDArray[np.uint8]:
        if isinstance(instance, dict) and isinstance(instance.get("b64"), str) and len(instance) == 1:
            try:
                encoded = base64.b64decode(instance["b64"], validate=True)
            except ValueError:
                raise ValueError("is not base64") from None
            return self.served.decode(encoded)
        size = self.served.image_size
        # As objects: from a list with one long text NumPy would make an array with that much room for every element.
        pixels = np.array(instance, dtype=object)
        if pixels.shape != (size, size, 3) or not all(type(value) is int for value in pixels.flat):
            raise ValueError(f'is neither {{"b64": TEXT}} nor whole numbers of shape [{size}, {size}, 3]')
        try:
            return pixels.astype(np.uint8)
        except OverflowError:
            raise ValueError("has numbers outside of 0 to 255") from None


def _parts(body: bytes, values: int) -> Iterator[bytes]:
    """Yield the body, or a long one as bodies of one image each, because the JSON parser lets no other thread run.

    An image has `values` values. Raise Bad for more values, lists or texts than the images of a request can have: once
    parsed, each takes up to fifty times its bytes.
    """
    most, commas = limits.SERVED_IMAGES, body.count(b",")
    bounds = {b",": most * (values + 1), b"[": commas // 2 + 1000, b"{": 2 * most, b'"': 8 * most}
    for mark, bound in bounds.items():
        if (number := body.count(mark)) > bound:
            raise Bad(f"the body is not JSON of up to {most} images: it has {number:,} of {mark.decode()}")
    begin = _BEGIN.match(body)
    if commas <= _VALUES_AT_ONCE or begin is None:
        if commas > max(_VALUES_AT_ONCE, 2 * values):
            raise Bad('a body of so many values has to begin with {"instances": [[[[')
        yield body
        return
    at = begin.end()
    for match in _IMAGE_END.finditer(body, at):
        end = match.end()
        if body.count(b",", at, end) > values + 4 * most:
            break
        yield begin[0] + body[at:end] + b"]}"
        if (comma := _COMMA.match(body, end)) is None:
            raise Bad(f"the body is not JSON: no comma at byte {end}")
        at = comma.end()
    if body.count(b",", at) > values + 4 * most:
        raise Bad(f"an instance has more than {values:,} values")
    yield begin[0] + body[at:]


def _instances(body: bytes, *, is_all: bool) -> list[Any]:
    try:
        content = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise Bad(f"the body is not JSON: {_line(error)}") from None
    instances = content.get("instances") if isinstance(content, dict) else None
    if not isinstance(instances, list) or (is_all and not instances):
        raise Bad('the body has to be {"instances": [{"b64": TEXT}, ...]}')
    if content.get("signature_name", "") not in SIGNATURES:
        raise Bad("'signature_name' has to be serving_default or encoded")
    return instances


def _line(error: Exception) -> str:
    return shortened(printable(" ".join(str(error).split())), 300)
