"""No client of `tl-dist serve` stops it for others, takes its memory, or puts more than a line on its terminal."""

import base64
import json
import re
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, suppress
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any

import pytest

import tl_dist as tl
from tests.damaged_images import BOMBS, photograph, scans
from tests.hostile.arena import TL_DIST
from tests.image_kinds import jpeg

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of Keras, as it saves

CONFIG = """\
data: {name: image_folder, path: set, test_fraction: 0, validation_fraction: 0, image_size: 16}
model: {backbone: tiny, weights: random, train_from: all}
optimizer: {name: adam, learning_rate: 0.01}
steps: 1
global_batch: 8
strategy: single
report: {tensorboard: false}
"""
PATIENCE_S = 60  # of an honest client, on a machine that others use too
MANY = 600  # connections; nine times what one peer may have


class Server:
    """A real one, and its terminal."""

    def __init__(self, run: Path, log: Path) -> None:
        self._log = log
        with log.open("wb") as file:
            command = [TL_DIST, "serve", str(run), "--port", "0"]
            self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=file, text=True)
        assert self.process.stdout is not None
        found = re.search(r"^(\S+), step .*:(\d+)/", self.process.stdout.readline())
        assert found is not None, log.read_text()
        self.name, self.port = found[1], int(found[2])

    def ask(self, path: str, body: Any = None, headers: Mapping[str, str] | None = None) -> tuple[int, dict[str, Any]]:
        """Status and answer; POST where there is a body."""
        connection = HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE_S)
        try:
            connection.request("GET" if body is None else "POST", path, body, dict(headers or {}))
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read())
        finally:
            connection.close()

    def predict(self, body: bytes) -> tuple[int, dict[str, Any]]:
        return self.ask(f"/v1/models/{self.name}:predict", body)

    def files(self, *images: bytes, **headers: str) -> tuple[int, dict[str, Any]]:
        return self.ask("/predict", form(*images), {"Content-Type": FORM, **headers})

    def connected(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), PATIENCE_S)

    def answers(self) -> bool:
        """Whether an honest client gets its prediction."""
        status, answer = self.files(photograph("PNG"))
        return status == 200 and "class" in answer["predictions"][0]

    def lines(self) -> list[str]:
        """What is on the terminal by now."""
        return self._log.read_text().splitlines()

    def peak(self) -> int:
        """Bytes that it has had in memory at most."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) << 10

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()


HEAD = "POST {} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: {}\r\nContent-Length: {}\r\n"
FORM = "multipart/form-data; boundary=XX"
PART = b'--XX\r\nContent-Disposition: form-data; name="file"; filename="%s"\r\n\r\n'


def form(*images: bytes, name: bytes = b"a.png") -> bytes:
    return b"".join(PART % name + image + b"\r\n" for image in images) + b"--XX--\r\n"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("served")
    for k in range(8):
        file = root / "set" / "ab"[k % 2] / f"{k}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(photograph("PNG", (20 + k, 20)))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        (root / "a.yaml").write_text(CONFIG)
        tl.train(tl.load_config("a.yaml"), here=True)
    return root / "runs" / "a"


@pytest.fixture(scope="module")
def server(run: Path) -> Iterator[Server]:
    started = Server(run, run.parent / "terminal")
    yield started
    started.close()


@pytest.mark.parametrize("what", BOMBS)
def test_an_image_that_takes_minutes_is_refused_at_once(server: Server, what: str) -> None:
    _, content, why = BOMBS[what]
    begin = time.monotonic()
    status, answer = server.files(content(), photograph("JPEG"))
    bad, good = answer["predictions"]
    assert status == 200 and why in bad["error"] and "class" in good
    assert time.monotonic() - begin < PATIENCE_S / 2 and server.answers()


def test_silent_connections_stop_nobody_and_are_closed(server: Server) -> None:
    """Whatever they began to say."""
    first = (b"", b"GET /healthz HT", b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nX: ")
    with ExitStack() as open_ones:
        silent = [open_ones.enter_context(server.connected()) for _ in range(MANY)]
        for k, one in enumerate(silent):
            with suppress(OSError):
                one.sendall(first[k % 3])
        for _ in range(5):
            assert server.answers()
        descriptors = len(list(Path(f"/proc/{server.process.pid}/fd").iterdir()))
        assert descriptors < MANY / 2
        for one in silent:
            with suppress(ConnectionError):
                assert one.recv(1) == b""  # times out while it is open


def test_a_header_that_comes_byte_by_byte_has_no_more_time(server: Server) -> None:
    with server.connected() as slow:
        slow.sendall(b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        assert slow.recv(1 << 16).startswith(b"HTTP/1.1 200")
        begin = time.monotonic()
        with suppress(ConnectionError):
            while time.monotonic() - begin < PATIENCE_S:
                slow.sendall(b"G")
                time.sleep(0.5)
        assert time.monotonic() - begin < PATIENCE_S


@pytest.mark.parametrize("path", ["/predict", ":predict", "/healthz"])
def test_bodies_that_do_not_come_stop_nobody(server: Server, path: str) -> None:
    path = f"/v1/models/{server.name}{path}" if path.startswith(":") else path
    head = HEAD.format(path, FORM, 30_000_000) + "\r\n"
    with ExitStack() as open_ones:
        for k in range(200):
            slow = open_ones.enter_context(server.connected())
            with suppress(OSError):
                slow.sendall(head.encode() + form(b"x")[:60] + bytes(2_000_000 if k % 20 == 0 else 0))
        for _ in range(3):
            assert server.answers()


def test_requests_beyond_what_is_taken_get_an_answer_of_the_usual_form(server: Server) -> None:
    """All at once; each is answered, or told to come again."""
    many = form(*[scans(1500, 90)] * 3)
    found: list[tuple[int, dict[str, Any]]] = []

    def ask() -> None:
        found.append(server.ask("/predict", many, {"Content-Type": FORM}))

    clients = [threading.Thread(target=ask) for _ in range(60)]
    for client in clients:
        client.start()
    assert server.ask("/healthz")[0] == 200
    for client in clients:
        client.join()
    assert len(found) == 60 and {status for status, _ in found} <= {200, 503}
    assert all("error" in answer for status, answer in found if status == 503)


WEBP = b"RIFF\x32\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0\x0f\0\0\x0f\0\0VP8L\x14\0\0\0\x2f" + b"\xff\xff\xff\x0f" + bytes(15)
RAW: Mapping[str, bytes] = {
    "broken off form": (HEAD.format("/predict", FORM, 5000) + "\r\n--XX\r\n").encode(),
    "broken off JSON": (HEAD.format("/v1/models/a:predict", "text/plain", 5000) + '\r\n{"inst').encode(),
    "garbage": bytes(range(256)) * 20,
    "websocket": b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n",
    "HTTP/2": b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings\r\n"
    b"HTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n",
    "wrong chunks": b"POST /predict HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    "wrong chunks behind the answer": b"POST /nothing HTTP/1.1\r\nHost: 127.0.0.1\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n",
    "an escape in the path": b"GET /\x1b]0;x\x07 HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
}  # fmt: skip


@pytest.mark.parametrize("what", RAW)
def test_a_broken_request_is_a_line_on_the_terminal_at_most(server: Server, what: str) -> None:
    before = len(server.lines())
    for _ in range(5):
        with server.connected() as one:
            one.sendall(RAW[what])
            if what == "wrong chunks behind the answer":
                assert b"404" in one.recv(1 << 16)
                one.sendall(b"zz\r\n" * 9)
            time.sleep(0.1)
    assert server.answers()
    lines = server.lines()[before:]
    assert len(lines) <= 5 and all(len(line) < 300 and "Traceback" not in line for line in lines), lines
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f]", "".join(lines))


CHARSETS = [
    ("utf-7", b"+2AA-"), ("unicode_escape", rb"\ud800"), ("raw_unicode_escape", rb"\ud800"), ("undefined", b"a"),
    ("punycode", b"\xff-"), ("punycode", b"xn--" + b"a" * 3000), ("idna", b"a..b"), ("utf-16-le", b"\0\xd8"),
    ("zlib", b"a"), ("UTF-7", b"+2AA-"), ('"utf-7"', b"+2AA-"), ("utf-8", b"\xed\xa0\x80"), ("utf-8", b"\xff\xfe"),
]  # fmt: skip


@pytest.mark.parametrize(("charset", "name"), CHARSETS)
def test_no_charset_that_a_form_names_matters(server: Server, charset: str, name: bytes) -> None:
    before = len(server.lines())
    for label in ("charset", "CharSet", "charset*"):
        status, answer = server.ask(
            "/predict", form(photograph("PNG"), name=name), {"Content-Type": f"{FORM}; {label}={charset}"}
        )
        assert status == 200 and "class" in answer["predictions"][0]
    assert server.lines()[before:] == []


@pytest.mark.parametrize("what", ["WebP", "BMP", "GIF", "TIFF", "PNG", "JPEG"])
def test_an_image_whose_decoder_fails_says_why_in_its_answer(server: Server, what: str) -> None:
    lzw = photograph("TIFF", compression="tiff_lzw")
    content = {
        "WebP": WEBP,
        "BMP": (bmp := photograph("BMP"))[:28] + b"\x10\0" + bmp[30:],
        "GIF": photograph("GIF")[:820] + b"\xff" * 200 + photograph("GIF")[1020:],
        "TIFF": lzw[:8] + b"\xff" * 400 + lzw[408:],
        "PNG": (whole := photograph("PNG"))[:200] + b"\0" * 100 + whole[300:],
        "JPEG": jpeg(9)[:2] + b"\xff\xc0\0\x0b\x0c" + jpeg(9)[7:],
    }[what]  # fmt: skip
    before = len(server.lines())
    (found,) = server.files(content)[1]["predictions"]
    said = found.get("error", "")
    assert what == "GIF" or said, found  # a GIF may be decoded as far as it goes
    assert "Detected at node" not in said and "{{" not in said and "Traceback" not in said and len(said) < 300
    assert len(server.lines()) - before <= 1


IMAGE = "[" + ",".join(["[" + ",".join(["[1,2,3]"] * 16) + "]"] * 16) + "]"
JSON: Mapping[str, tuple[Callable[[], bytes], str]] = {
    "millions of lists": (lambda: b'{"instances":[' + b"[]," * 10_000_000 + b"0]}", "not JSON"),
    "an instance of millions": (lambda: b'{"instances":[[' + b"[]," * 10_000_000 + b"0]]}", "not JSON"),
    "millions of numbers": (lambda: b'{"instances":[[' + b"1," * 16_000_000 + b"0]]}", "not JSON"),
    "millions of objects": (lambda: b'{"instances":[' + b'{"":0},' * 4_000_000 + b"0]}", "not JSON"),
    "millions of texts": (lambda: b'{"instances":[' + b'"ab",' * 6_000_000 + b"0]}", "not JSON"),
    "millions of keys": (lambda: b"{" + b",".join(b'"%d":1' % k for k in range(2_000_000)) + b"}", "not JSON"),
    "nesting": (lambda: b"[" * 32_000_000, "not JSON"),
    "nesting with commas": (lambda: b"[1,1," * 6_000_000, "not JSON"),
    "a long number": (lambda: b'{"instances":[' + b"9" * 32_000_000 + b"]}", "not JSON"),
}  # fmt: skip


@pytest.mark.parametrize("what", JSON)
def test_a_large_body_takes_neither_memory_nor_the_server(server: Server, what: str) -> None:
    content, why = JSON[what]
    body = content()
    assert server.answers()
    before = server.peak()
    found: list[tuple[int, dict[str, Any]]] = []

    def ask() -> None:
        with suppress(OSError, HTTPException):
            found.append(server.predict(body))

    clients = [threading.Thread(target=ask) for _ in range(6)]
    for client in clients:
        client.start()
    waits = []
    while any(client.is_alive() for client in clients):
        begin = time.monotonic()
        assert server.ask("/healthz")[0] == 200
        waits.append(time.monotonic() - begin)
        time.sleep(0.05)
    assert found and {status for status, _ in found} <= {400, 503}
    assert any(status == 400 and why in answer["error"] for status, answer in found), found
    assert server.peak() - before < 700 << 20
    assert max(waits) < PATIENCE_S / 6


def test_as_many_pixels_as_numbers_as_are_taken_get_their_answer(server: Server) -> None:
    b64 = json.dumps({"b64": base64.b64encode(photograph("PNG")).decode()})
    for instances in ([IMAGE] * 254 + [b64, b64], [b64] + [IMAGE] * 255, [IMAGE] * 3 + [b64] + [IMAGE] * 252):
        for text in ('{"instances": [%s]}', '{"signature_name":"encoded" ,"instances":[%s] , "x": 1}'):
            status, answer = server.predict((text % " ,\n".join(instances)).encode())
            assert status == 200 and len(answer["predictions"]) == 256, answer
        alone = [server.predict(f'{{"instances": [{one}]}}'.encode())[1]["predictions"][0] for one in (IMAGE, b64)]
        expected = [alone[0 if one is IMAGE else 1]["probabilities"] for one in instances]
        assert [row["probabilities"] for row in answer["predictions"]] == [
            pytest.approx(row, abs=1e-5) for row in expected
        ]
    for bad in ([IMAGE] * 257, [IMAGE] * 255 + [IMAGE[:-1]], [IMAGE] * 200 + ["[[[1]]]"] + [IMAGE] * 55):
        status, answer = server.predict(f'{{"instances": [{",".join(bad)}]}}'.encode())
        assert status == 400 and answer.keys() == {"error"}


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Origin": "http://evil.example"}, 403), ({"Origin": "null"}, 403), ({"Origin": "http://127.0.0.1"}, 403),
        ({"Origin": "http://127.0.0.1:{port}"}, 200), ({"Origin": "HTTP://127.0.0.1:{port}"}, 200),
        ({"Origin": "http://127.0.0.1:{port}", "Host": "localhost:{port}"}, 403),
        ({"Origin": "http://LOCALHOST:{port}", "Host": "localhost:{port}"}, 200),
        ({"Origin": "https://localhost", "Host": "localhost"}, 200),
        ({"Origin": "http://127.0.0.1:{port}.evil.example"}, 403), ({"Origin": "http://127.0.0.1:{port}@evil"}, 403),
        ({"Origin": "http://evil@127.0.0.1:{port}"}, 403), ({"Origin": "file://"}, 403), ({"Origin": ""}, 403),
        ({"Origin": "http://[::1"}, 403), ({"Origin": "http://127.0.0.1:x"}, 403),
        ({"Origin": "http://evil.example", "Sec-Fetch-Site": "same-origin"}, 403),
        ({"Sec-Fetch-Site": "CROSS-SITE"}, 403), ({"Sec-Fetch-Site": "same-site"}, 403),
        ({"Sec-Fetch-Site": "cross-site, same-origin"}, 403), ({"Sec-Fetch-Site": "same-origin"}, 200), ({}, 200),
    ],
)  # fmt: skip
def test_pages_of_other_sites_are_refused_in_any_browser(server: Server, headers: dict[str, str], status: int) -> None:
    sent = {name: value.format(port=server.port) for name, value in headers.items()}
    assert server.files(photograph("PNG"), **sent)[0] == status


def test_a_signal_ends_it_while_it_decodes(run: Path, tmp_path: Path) -> None:
    heavy = form(*[scans(7900, 90)] * 40)  # two seconds each
    with ExitStack() as clients:
        server = Server(run, tmp_path / "terminal")
        clients.callback(server.close)
        for _ in range(4):
            one = clients.enter_context(server.connected())
            one.sendall(f"{HEAD.format('/predict', FORM, len(heavy))}\r\n".encode() + heavy)
        time.sleep(2)
        server.process.send_signal(signal.SIGTERM)
        out, _ = server.process.communicate(timeout=30)
        assert server.process.returncode == 0 and re.fullmatch(r"stopped after \d requests\n", out)
        # libjpeg has its own for each image
        assert sum(line.startswith("error: ") for line in server.lines()) <= 1, server.lines()
        assert not any("Traceback" in line for line in server.lines())
