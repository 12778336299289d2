"""Archives from the internet: whole and by their digest, or not at all; a loopback server stands for the publisher."""

import hashlib
import io
import tarfile
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.official_layouts import (
    digits_32px,
    numbers_32px,
    published,
    write_cifar10_python,
    write_cifar100_python,
)
from tests.unit.cli.conftest import said
from tl_dist.config import DataConfig
from tl_dist.datasets import manifest
from tl_dist.datasets.formats import cifar
from tl_dist.files import limits
from tl_dist.files.downloads import Archive, fetch_archive
from tl_dist.refusal import ExitCode, Refusal

Answer = Callable[[BaseHTTPRequestHandler], None]


class Publisher:
    """A server that gives each path its answer, and counts the requests."""

    def __init__(self) -> None:
        self.answers: dict[str, Answer] = {}
        self.asked: list[str] = []
        publisher = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                publisher.asked.append(self.path)
                publisher.answers[self.path](self)

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, args=[0.01], daemon=True).start()

    def archive(self, data: bytes, answer: Answer | None = None, name: str = "/a.tar.gz") -> Archive:
        """Of `data`, for which there is this answer."""
        self.answers[name] = answer or giving(data)
        url = f"http://127.0.0.1:{self.server.server_port}{name}"
        return Archive(url, hashlib.sha256(data).hexdigest())


def giving(data: bytes, length: int | None = None) -> Answer:
    def answer(request: BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.send_header("Content-Length", str(len(data) if length is None else length))
        request.end_headers()
        request.wfile.write(data)

    return answer


def sending_to(url: str) -> Answer:
    def answer(request: BaseHTTPRequestHandler) -> None:
        request.send_response(302)
        request.send_header("Location", url)
        request.end_headers()

    return answer


def packed(directory: Path) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as archive:
        archive.add(directory, directory.name)
    return stream.getvalue()


def of_member(name: str, **facts: Any) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as archive:
        member = tarfile.TarInfo(name)
        for key, value in facts.items():
            setattr(member, key, value)
        archive.addfile(member, io.BytesIO(bytes(member.size)))
    return stream.getvalue()


@pytest.fixture
def publisher() -> Iterator[Publisher]:
    publisher = Publisher()
    yield publisher
    publisher.server.shutdown()
    publisher.server.server_close()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "cache" / "tl_dist"


@pytest.fixture
def files(tmp_path: Path) -> Path:
    write_cifar10_python(tmp_path / "files", digits_32px(50), digits_32px(20, start=50))
    return tmp_path / "files"


def refused(archive: Archive, cache: Path, message: str, code: ExitCode = ExitCode.DATA) -> Refusal:
    with pytest.raises(Refusal, match=message) as refusal:
        fetch_archive(archive, cache=cache)
    assert refusal.value.code == code
    assert {path.name for path in (cache / "archives").iterdir()} <= {".a.lock", "a.tar.gz"}, "half of it is there"
    return refusal.value


# ------------------------------------------------------------------------------------------------ prepare


def test_cifar_is_downloaded_once_and_is_the_data_set_of_its_files(
    publisher: Publisher, cache: Path, files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    data = packed(files / "cifar-10-batches-py")
    name = "/cifar-10-python.tar.gz"
    monkeypatch.setattr(cifar, "CIFAR10_ARCHIVE", publisher.archive(data, name=name))
    monkeypatch.setattr(cifar, "PUBLISHED", published(files))
    monkeypatch.chdir(tmp_path)
    model = "{backbone: tiny, weights: random, train_from: all}"
    Path("x.yaml").write_text(f"steps: 1\ndata: {{name: cifar10}}\nmodel: {model}\noptimizer: {{learning_rate: 1}}\n")
    code, out, err = said(capsys, "prepare", "x.yaml", "seed=3")
    assert (code, err) == (ExitCode.DONE, "")
    assert f"data: cifar-10-python.tar.gz in {cache}/archives/cifar-10-python" in out.replace("\n", "")
    assert out.endswith("ready: tl-dist train x.yaml seed=3\n")
    assert said(capsys, "prepare", "x.yaml", "seed=3") == (code, out, err)
    assert publisher.asked == [name]
    downloaded = cifar.open_cifar10(DataConfig(name="cifar10", validation_fraction=0.2))
    by_hand = cifar.open_cifar10(DataConfig(name="cifar10", path=str(files), validation_fraction=0.2))
    assert manifest(downloaded) == manifest(by_hand)
    assert downloaded["train"].fingerprint == by_hand["train"].fingerprint


def test_cifar100_as_well(publisher: Publisher, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write_cifar100_python(tmp_path, numbers_32px(200), numbers_32px(100, start=200))
    monkeypatch.setattr(cifar, "CIFAR100_ARCHIVE", publisher.archive(packed(root)))
    monkeypatch.setattr(cifar, "PUBLISHED", published(root))
    splits = cifar.open_cifar100(DataConfig(name="cifar100", labels="coarse"))
    np.testing.assert_array_equal(splits["test"].labels, numbers_32px(100, start=200).labels // 5)


def test_the_digests_and_addresses_are_those_of_keras() -> None:
    import keras

    folder = Path(keras.__file__).parent / "src" / "datasets"
    for archive, module in ((cifar.CIFAR10_ARCHIVE, "cifar10"), (cifar.CIFAR100_ARCHIVE, "cifar100")):
        text = (folder / f"{module}.py").read_text()
        assert f'"{archive.url}"' in text
        assert f'"{archive.sha256}"' in text


# ----------------------------------------------------------------------------------------------- what fails


def test_a_cut_connection_leaves_nothing_and_the_next_call_succeeds(
    publisher: Publisher, cache: Path, files: Path
) -> None:
    data = packed(files)
    archive = publisher.archive(data, giving(data[: len(data) // 2], len(data)))
    refusal = refused(archive, cache, f"cannot be downloaded: .*{len(data) // 2:,} of {len(data):,}|IncompleteRead")
    assert "run the command again" in refusal.fix
    publisher.answers["/a.tar.gz"] = giving(data)
    assert (fetch_archive(archive, cache=cache) / "files" / "cifar-10-batches-py" / "test_batch").is_file()


def test_another_digest_is_refused(publisher: Publisher, cache: Path, files: Path) -> None:
    archive = publisher.archive(packed(files), giving(b"other"))
    refused(archive, cache, "has sha256 .*, not ", ExitCode.UNSAFE)


@pytest.mark.parametrize("scheme", ["file", "ftp"])
def test_a_redirect_leads_to_no_file(scheme: str, publisher: Publisher, cache: Path, files: Path) -> None:
    data = packed(files)
    (files / "a.tar.gz").write_bytes(data)
    archive = publisher.archive(data, sending_to(f"{scheme}://127.0.0.1{files}/a.tar.gz"))
    refused(archive, cache, "cannot be downloaded: .*(not allowed|unknown url type)")


def test_a_redirect_to_another_address_is_followed(publisher: Publisher, cache: Path, files: Path) -> None:
    data = packed(files)
    there = publisher.archive(data, name="/there")
    assert fetch_archive(publisher.archive(data, sending_to(there.url)), cache=cache).is_dir()


def test_more_than_an_archive_has_is_not_downloaded(
    publisher: Publisher, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "ARCHIVE", 1000)
    refused(publisher.archive(bytes(2000)), cache, "larger than 1,000 bytes")


def test_without_a_network_the_file_may_be_brought(publisher: Publisher, cache: Path, files: Path) -> None:
    data = packed(files)
    archive = publisher.archive(data)
    publisher.server.shutdown()
    publisher.server.server_close()
    refusal = refused(archive, cache, "cannot be downloaded: .*Connection refused")
    assert str(cache / "archives" / "a.tar.gz") in refusal.fix
    brought = cache / "archives" / "a.tar.gz"
    brought.write_bytes(b"something else")
    refused(archive, cache, f"{brought} has sha256", ExitCode.UNSAFE)
    brought.write_bytes(data)
    assert fetch_archive(archive, cache=cache).is_dir()


HOSTILE = {
    "leaves its directory": (of_member("../escaped", size=1), "outside the destination"),
    "absolute link": (of_member("a", type=tarfile.SYMTYPE, linkname="/etc/passwd"), "is a link"),
    "hard link": (of_member("a", type=tarfile.LNKTYPE, linkname="../../x"), "is a link"),
    "device": (of_member("a", type=tarfile.CHRTYPE), "is a link or a special file"),
    "bomb": (of_member("a", size=2 << 20), "more than 1,048,576 bytes"),
    "no archive": (b"\x1f\x8bno", "is not unpacked"),
    "cut off": (of_member("a", size=1 << 19)[:200], "is not unpacked"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_archive_is_not_unpacked(
    name: str, publisher: Publisher, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, message = HOSTILE[name]
    monkeypatch.setattr(limits, "ARCHIVE_UNPACKED", 1 << 20)
    refused(publisher.archive(data), cache, message, ExitCode.UNSAFE)
    assert not list(cache.parent.rglob("escaped"))


def test_of_several_at_once_one_downloads(publisher: Publisher, cache: Path, files: Path) -> None:
    archive = publisher.archive(packed(files))
    threads = [threading.Thread(target=fetch_archive, args=[archive], kwargs={"cache": cache}) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert publisher.asked == ["/a.tar.gz"]
    assert (cache / "archives" / "a").is_dir()
