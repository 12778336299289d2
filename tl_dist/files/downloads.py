"""Archives downloaded from their publishers and checked against a known digest."""

import gzip
import tarfile
import urllib.request
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from urllib.error import HTTPError

from tl_dist.files import atomic, limits
from tl_dist.files.foreign import open_regular
from tl_dist.files.packages import made_once, user_cache
from tl_dist.refusal import ExitCode, Refusal

_SILENT_S = 30.0  # without data, after which a connection is given up
_MODE = 0o700


@dataclass(frozen=True)
class Archive:
    """A publicly available .tar.gz."""

    url: str
    sha256: str

    @property
    def name(self) -> str:
        """Return the file name."""
        return self.url.rpartition("/")[2]


def fetch_archive(archive: Archive, *, cache: Path | None = None) -> Path:
    """Return the directory of the unpacked archive, downloaded on the first call; of several processes, one does it.

    A file of its name in `CACHE/archives` is used instead of the network. Refuses an archive that cannot be obtained,
    has another digest, or would write outside its directory.
    """
    archives = (cache or user_cache()) / "archives"
    home, brought = archives / archive.name.removesuffix(".tar.gz"), archives / archive.name

    def obtained(scratch: Path) -> Path:
        copy = scratch / archive.name
        pieces = _of_file(brought) if brought.exists() else _of_network(archive, brought)
        digest = atomic.write_file(copy, pieces, sync=False).sha256
        if digest != archive.sha256:
            raise Refusal(
                f"{brought if brought.exists() else archive.url} has sha256 {digest}, not {archive.sha256}.",
                fix="obtain the publisher's file; if this is the publisher's file, do not use it, and report this.",
                code=ExitCode.UNSAFE,
            )
        _unpack(copy, scratch / "unpacked")
        return scratch / "unpacked"

    made_once(home, obtained, archive.name)
    return home


def _of_file(path: Path) -> Iterator[bytes]:
    with open(open_regular(path, links=True), "rb") as file:
        yield from iter(lambda: file.read(atomic.CHUNK_BYTES), b"")


def _of_network(archive: Archive, brought: Path) -> Iterator[bytes]:
    """Yield the bytes behind the URL, at most `limits.ARCHIVE`; refuses if the connection is cut."""
    # No handlers of files or FTP: a redirect to either is an error.
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler,
        urllib.request.HTTPHandler,
        urllib.request.HTTPSHandler,
        urllib.request.HTTPRedirectHandler,
        urllib.request.HTTPErrorProcessor,
        urllib.request.HTTPDefaultErrorHandler,
        urllib.request.UnknownHandler,
    ):
        opener.add_handler(handler())
    received = 0
    try:
        with opener.open(archive.url, timeout=_SILENT_S) as answer:
            expected = int(answer.headers.get("Content-Length") or 0)
            while piece := answer.read(atomic.CHUNK_BYTES):
                received += len(piece)
                if received > limits.ARCHIVE:
                    raise ValueError(f"it is larger than {limits.ARCHIVE:,} bytes")
                yield piece
        if received < expected:  # http.client does not raise for a short body that is read in pieces
            raise EOFError(f"the connection ended after {received:,} of {expected:,} bytes")
    except (OSError, HTTPException, ValueError, EOFError) as error:
        if isinstance(error, HTTPError):
            error.close()  # it holds the connection
        why = getattr(error, "reason", None) or error
        what = f"{archive.url} cannot be downloaded: {str(why)[:200] or type(error).__name__}."
        fix = f"run the command again, or download the file where there is internet and copy it to {brought}."
        raise Refusal(what, fix=fix, code=ExitCode.DATA) from error


def _unpack(path: Path, target: Path) -> None:
    """Unpack the regular files and directories of an archive below `target`, which must not exist."""
    left = limits.ARCHIVE_UNPACKED
    try:
        with tarfile.open(path, "r:gz") as archive:
            target.mkdir(_MODE)
            for number, member in enumerate(archive):
                left -= member.size
                if left < 0 or number >= limits.ARCHIVE_MEMBERS:
                    raise ValueError(
                        f"it holds more than {limits.ARCHIVE_UNPACKED:,} bytes or {limits.ARCHIVE_MEMBERS:,} files"
                    )
                if not (member.isreg() or member.isdir()):
                    raise ValueError(f"member {member.name!r} is a link or a special file")
                archive.extract(member, target, filter="data")
    except (tarfile.TarError, zlib.error, gzip.BadGzipFile, EOFError, ValueError) as error:
        fix = "obtain the archive again from a source that you trust."
        raise Refusal(f"{path.name} is not unpacked: {error}.", fix=fix, code=ExitCode.UNSAFE) from error
