"""A server answers what is right, names what is wrong in one line, takes no more than it has room for, and goes on."""

import asyncio
import base64
import hashlib
import io
import json
import struct
import threading
import tomllib
import zlib
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from packaging.requirements import Requirement
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient

from tl_dist.config.data import STRETCHED
from tl_dist.files import limits
from tl_dist.tools.serve import app, requests
from tl_dist.tools.serve.app import PAGE, application
from tl_dist.tools.serve.requests import BATCH, Answers, Batches, Full, Metrics
from tl_dist.tools.serve.served import Served, decoder

SIZE = 4
NAMES = ("<b>dark</b>", "bright")
AT = "/v1/models/lamp"


def brightness(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """The model of these tests: how bright an image is on the whole."""
    bright = images.mean(axis=(1, 2, 3)) / 255
    return np.stack([1 - bright, bright], axis=1).astype(np.float32)


def client(predict: Any = brightness, hosts: tuple[str, ...] = ("127.0.0.1", "localhost")) -> TestClient:
    served = Served("lamp", 7, NAMES, SIZE, predict, decoder(SIZE, STRETCHED))
    asked = application(Answers(served, cores=2), hosts=hosts)
    return TestClient(asked, base_url="http://127.0.0.1:8501", raise_server_exceptions=False)


@pytest.fixture(scope="module")
def asked() -> Iterator[TestClient]:
    with client() as made:
        yield made


def encoded(level: int, kind: str = "PNG") -> bytes:
    made = io.BytesIO()
    Image.new("RGB", (9, 5), (level,) * 3).save(made, kind)
    return made.getvalue()


def b64(content: bytes) -> Mapping[str, str]:
    return {"b64": base64.b64encode(content).decode()}


def png_of(width: int, height: int) -> bytes:
    """A whole PNG file as far as its chunks go; of its pixels there are none."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def test_the_shape_is_that_of_tensorflow_serving(asked: TestClient) -> None:
    (state,) = asked.get(AT).json()["model_version_status"]
    assert (state["version"], state["state"], state["status"]["error_code"]) == ("7", "AVAILABLE", "OK")
    pixels = np.full((SIZE, SIZE, 3), 51).tolist()
    given = {"instances": [b64(encoded(255)), b64(encoded(0, "JPEG")), pixels], "signature_name": "encoded"}
    found = asked.post(f"{AT}:predict", json=given).json()["predictions"]
    assert [one["class"] for one in found] == [NAMES[1], NAMES[0], NAMES[0]]
    np.testing.assert_allclose([one["probabilities"] for one in found], [[0, 1], [1, 0], [0.8, 0.2]], atol=1e-7)
    assert asked.get("/healthz").json() == {"status": "ok", "model": "lamp", "version": "7"}
    # By a version, too, as its documentation has the addresses (tensorflow.org/tfx/serving/api_rest).
    for rest in ("", "/metadata"):
        assert asked.get(f"{AT}/versions/7{rest}").json() == asked.get(f"{AT}{rest}").json()
    assert asked.post(f"{AT}/versions/7:predict", json=given).json() == {"predictions": found}
    unknown = ("/v1/models/other", f"{AT}/versions/8", f"{AT}/versions/8/metadata", "/docs")
    addresses = [("POST", "/v1/models/other:predict"), ("POST", f"{AT}/versions/8:predict")]
    for method, path in addresses + [("GET", path) for path in unknown]:
        refused = asked.request(method, path)
        assert refused.status_code == 404 and refused.json().keys() == {"error"}


def test_a_file_that_is_no_image_has_its_reason_in_its_place(asked: TestClient) -> None:
    files = {"a<i>.png": encoded(255), "b.txt": b"no image", "c.jpg": encoded(0, "JPEG"), "d.png": b""}
    reply = asked.post("/predict", files=[("file", (name, data)) for name, data in files.items()])
    found = reply.json()["predictions"]
    assert reply.status_code == 200 and reply.json()["class_names"] == list(NAMES)
    assert [one["file"] for one in found] == list(files)
    assert [one.get("class") for one in found] == [NAMES[1], None, NAMES[0], None]
    assert "is no image" in found[1]["error"] and found[3]["error"] == "is empty"


HALF = encoded(9, "JPEG")[:300]
BAD: Mapping[str, tuple[bytes, str]] = {
    "garbage": (b"\xff\xfe\x00garbage", "not JSON"),
    "nothing": (b"", "not JSON"),
    "too deep": (b"[" * 100_000, "not JSON"),
    "a number of a million digits": (b'{"instances": [' + b"9" * 1_000_000 + b"]}", "not JSON"),
    "no instances": (b'{"inputs": {}}', '"instances"'),
    "another signature": (b'{"instances": [1], "signature_name": ["x"]}', "signature_name"),
    "too many": (json.dumps({"instances": [0] * 257}).encode(), "more than 256"),
    "no base64": (b'{"instances": [{"b64": "????"}]}', "instance 0: is not base64"),
    "text": (b'{"instances": ["' + b"x" * 10_000 + b'"]}', "instance 0: is neither"),
    "ragged": (b'{"instances": [[[1], [2, 3]]]}', "instance 0: is neither"),
    "parts of levels": (json.dumps({"instances": [np.full((4, 4, 3), 0.5).tolist()]}).encode(), "is neither"),
    "levels past 255": (json.dumps({"instances": [np.full((4, 4, 3), 256).tolist()]}).encode(), "outside of 0 to 255"),
    "half an image": (json.dumps({"instances": [b64(encoded(1)), b64(HALF)]}).encode(), "instance 1: JPEG is cut off"),
    "no pixels": (json.dumps({"instances": [b64(png_of(5, 5))]}).encode(), "instance 0: cannot be decoded"),
    "200 megapixels": (json.dumps({"instances": [b64(png_of(20_000, 10_000))]}).encode(), "20000 x 10000 pixels"),
    "100 megapixels": (json.dumps({"instances": [b64(png_of(10_000, 10_000))]}).encode(), "more than 64,000,000"),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD)
def test_a_bad_request_is_named_in_one_line(asked: TestClient, what: str) -> None:
    body, expected = BAD[what]
    reply = asked.post(f"{AT}:predict", content=body)
    assert reply.status_code == 400
    assert reply.json().keys() == {"error"}
    said = reply.json()["error"]
    assert expected in said and "\n" not in said and "Traceback" not in said and len(said) < 400
    assert asked.post(f"{AT}:predict", json={"instances": [b64(encoded(3))]}).status_code == 200


def test_a_body_that_is_read_in_parts_gives_what_it_gives_as_a_whole(
    asked: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    pixels = [rng.integers(0, 256, (SIZE, SIZE, 3)).tolist() for _ in range(20)]
    image = b64(encoded(77))
    for instances in (pixels, [image, *pixels], [*pixels[:3], image, *pixels[3:], image, image]):
        for separators in ((",", ":"), (" ,\n", " :\t")):
            for given in (
                {"instances": instances},
                {"signature_name": "", "instances": instances, "more": [1]},
            ):
                body = json.dumps(given, separators=separators)
                whole = asked.post(f"{AT}:predict", content=body)
                with monkeypatch.context() as patch:
                    patch.setattr(requests, "_VALUES_AT_ONCE", 10)
                    assert len(list(requests._parts(body.encode(), 3 * SIZE**2))) > 20
                    parts = asked.post(f"{AT}:predict", content=body)
                assert whole.status_code == parts.status_code == 200, parts.json()
                rows = [[row["probabilities"] for row in one.json()["predictions"]] for one in (whole, parts)]
                np.testing.assert_allclose(*rows, atol=1e-6)  # whatever batches they were computed in
    monkeypatch.setattr(requests, "_VALUES_AT_ONCE", 10)
    for bad in (
        [*pixels[:9], [[[1, 2, 3]]], *pixels],
        [*pixels, "text"],
        [*pixels, pixels, *pixels],
        pixels * 13,
    ):
        assert asked.post(f"{AT}:predict", content=json.dumps({"instances": bad})).status_code == 400
    text = json.dumps({"instances": pixels})
    for bad_text in (
        text.replace("]]], [[[", "]]] [[[", 1),
        text.replace("]]], [[[", "]]],, [[[", 1),
        text[:-3],
        text + "]",
    ):
        assert asked.post(f"{AT}:predict", content=bad_text).status_code == 400


def test_a_body_may_be_slow_but_not_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """A byte now and then does not buy more time, as much as a slow line carries does."""
    monkeypatch.setattr(app, "BODY_S", 0.3)
    for size, status in ((1, 408), (limits.SERVED_SMALL, 400)):
        sent: list[Any] = []

        async def drip(size: int = size) -> Any:
            await asyncio.sleep(0.05)
            drip.count += 1  # type: ignore[attr-defined]
            return {"type": "http.request", "body": b"x" * size, "more_body": size == 1 or drip.count < 15}

        async def keep(message: Any, sent: list[Any] = sent) -> None:
            sent.append(message)

        drip.count = 0  # type: ignore[attr-defined]
        with client() as asked:
            scope = {"type": "http", "method": "POST", "path": f"{AT}:predict", "query_string": b""}
            scope["headers"] = [(b"host", b"localhost")]
            asyncio.run(asyncio.wait_for(asked.app(scope, drip, keep), 60))
        assert sent[0]["status"] == status


def test_large_bodies_wait_for_room_and_small_ones_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "SERVED_IN_FLIGHT", 3 << 20)
    large = {"content": b" " * (5 << 20)}
    with client() as asked:
        for _ in range(2):
            full = asked.post(f"{AT}:predict", **large)
            assert full.status_code == 503 and full.headers["Retry-After"] == "1" and full.json().keys() == {"error"}
            assert asked.post(f"{AT}:predict", content=b" " * (3 << 20)).status_code == 400
            assert asked.post(f"{AT}:predict", json={"instances": [b64(encoded(3))]}).status_code == 200


FAULTY = {"starlette": "0.49.0", "python-multipart": "0.0.21", "h11": "0.15.0"}


def test_no_version_with_a_known_fault_may_be_installed() -> None:
    """The last ones with CVE-2025-62727 (and -54121, 2024-47874), CVE-2026-24486 (and 2024-53981), CVE-2025-43859."""
    project = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text())["project"]
    wanted = {each.name: each.specifier for each in map(Requirement, project["optional-dependencies"]["serve"])}
    for name, version in FAULTY.items():
        assert not wanted[name].contains(version) and wanted[name].contains(metadata.version(name))


def test_a_form_without_files_says_how_to_send_one(asked: TestClient) -> None:
    for options in ({"content": b"garbage"}, {"data": {"file": "text"}}):
        reply = asked.post("/predict", **options)
        assert reply.status_code == 400 and "curl -F" in reply.json()["error"]
    broken = {"content": b"--x\r\nnonsense", "headers": {"Content-Type": "multipart/form-data; boundary=x"}}
    assert asked.post("/predict", **broken).status_code == 400


def test_no_more_is_taken_of_a_request_than_the_limit(asked: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "SERVED_BODY", 5000)
    form = {"Content-Type": "multipart/form-data; boundary=x"}
    part = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.png"\r\n\r\n'

    def pieces() -> Iterator[bytes]:  # without a Content-Length
        yield part
        for _ in range(6):
            yield b"x" * 1000

    for path in (f"{AT}:predict", "/predict"):
        for content in (part + b"x" * 5000, pieces()):
            reply = asked.post(path, content=content, headers=form)
            assert reply.status_code == 413 and reply.json()["error"] == "the request is larger than 33,554,432 bytes"


def test_a_request_whose_rest_does_not_come_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app, "BODY_S", 0.01)
    sent: list[Any] = []

    async def never() -> Any:
        await asyncio.Event().wait()

    async def keep(message: Any) -> None:
        sent.append(message)

    with client() as asked:
        headers = [(b"host", b"localhost"), (b"content-length", b"5")]
        scope = {"type": "http", "method": "POST", "path": f"{AT}:predict", "headers": headers}
        scope["query_string"] = b""
        asyncio.run(asyncio.wait_for(asked.app(scope, never, keep), 30))
    assert sent[0]["status"] == 408 and b"did not come" in sent[1]["body"]


def test_names_and_pages_of_others_are_refused(asked: TestClient) -> None:
    assert asked.get("/healthz", headers={"Host": "evil.example:8501"}).status_code == 400
    assert asked.get("/healthz", headers={"Host": "localhost:8501"}).status_code == 200
    image = {"files": [("file", ("a.png", encoded(3)))]}
    assert asked.post("/predict", headers={"Sec-Fetch-Site": "cross-site"}, **image).status_code == 403
    assert asked.post("/predict", headers={"Sec-Fetch-Site": "same-origin"}, **image).status_code == 200
    assert asked.post("/predict", headers={"Origin": "http://evil.example"}, **image).status_code == 403
    assert asked.post("/predict", headers={"Origin": "http://127.0.0.1:8501"}, **image).status_code == 200
    with client(hosts=("::1", "[::1]", "localhost")) as six:
        assert six.get("/healthz", headers={"Host": "[::1]:8501"}).status_code == 200
        assert six.get("/healthz", headers={"Host": "[::2]:8501"}).status_code == 400
    with client(hosts=("*",)) as public:
        assert public.get("/healthz", headers={"Host": "lamp.example"}).status_code == 200


def test_the_page_asks_nobody_else_and_shows_names_as_text(asked: TestClient) -> None:
    reply = asked.get("/")
    assert reply.text == PAGE and reply.headers["X-Content-Type-Options"] == "nosniff"
    policy = reply.headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; ") and "unsafe" not in policy and "//" not in policy
    for tag in ("script", "style"):
        text = PAGE.partition(f"<{tag}>")[2].partition(f"</{tag}>")[0]
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy
    assert "://" not in PAGE and "innerHTML" not in PAGE and " style=" not in PAGE and " onclick=" not in PAGE


def test_requests_that_wait_are_computed_together() -> None:
    sizes: list[int] = []
    begun, go_on = threading.Event(), threading.Event()

    def slow(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        sizes.append(len(images))
        begun.set()
        assert go_on.wait(30)
        return brightness(images)

    batches = Batches(slow, Metrics())
    images = [np.full((SIZE, SIZE, 3), k, np.uint8) for k in range(100)]
    answers = batches.put(images[:1])
    assert begun.wait(30)
    for k in range(1, 100, 3):
        answers += batches.put(images[k : k + 3])
    waiting = limits.SERVED_WAITING - 99
    with pytest.raises(Full):
        batches.put(images[:1] * (waiting + 1))
    batches.put(images[:1] * waiting)
    go_on.set()
    found = np.stack([answer.result(30) for answer in answers])
    np.testing.assert_allclose(found[:, 1], np.arange(100) / 255, atol=1e-7)
    assert sizes[:4] == [1, BATCH, BATCH, BATCH]


def test_a_full_queue_is_503_and_a_failing_model_500_and_both_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = True

    def predict(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        if broken:
            raise RuntimeError("out of memory")
        return brightness(images)

    given = {"instances": [b64(encoded(k)) for k in range(3)]}
    with client(predict) as asked:
        failed = asked.post(f"{AT}:predict", json=given)
        assert failed.status_code == 500 and failed.json() == {"error": "internal error; see the terminal"}
        broken = False
        monkeypatch.setattr(limits, "SERVED_WAITING", 2)
        full = asked.post(f"{AT}:predict", json=given)
        assert full.status_code == 503 and full.headers["Retry-After"] == "1"
        monkeypatch.undo()
        assert asked.post(f"{AT}:predict", json=given).status_code == 200


def test_each_of_many_clients_gets_its_own_answer(asked: TestClient) -> None:
    def ask(level: int) -> float:
        found = asked.post(f"{AT}:predict", json={"instances": [b64(encoded(level))]}).json()
        return found["predictions"][0]["probabilities"][1]

    with ThreadPoolExecutor(8) as clients:
        found = list(clients.map(ask, range(0, 256, 4)))
    np.testing.assert_allclose(found, np.arange(0, 256, 4) / 255, atol=1e-6)


def test_what_was_done_is_counted_as_prometheus_reads_it() -> None:
    with client() as asked:
        asked.post(f"{AT}:predict", json={"instances": [b64(encoded(k)) for k in range(3)]})
        asked.post("/predict", files=[("file", ("a", encoded(1))), ("file", ("b", b"bad"))])
        asked.post(f"{AT}:predict", content=b"garbage")
        asked.get("/healthz")
        reply = asked.get("/metrics")
    assert reply.headers["content-type"].startswith("text/plain; version=0.0.4")
    found = {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(reply.text)
        for sample in family.samples
    }
    assert found["tl_dist_requests_total", "200"] == 2 and found["tl_dist_requests_total", "400"] == 1
    assert (found["tl_dist_images_total",], found["tl_dist_image_errors_total",]) == (4, 1)
    assert 1 <= found["tl_dist_batches_total",] <= 4
    total = found["tl_dist_request_seconds_count",]
    assert total == found["tl_dist_request_seconds_bucket", "+Inf"] == 3
    with client() as other:  # each server counts for itself
        assert 'code="200"' not in other.get("/metrics").text
