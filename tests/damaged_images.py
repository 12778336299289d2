"""Files that are named as images and cannot be decoded, each damaged in a way that is met in practice."""

import io
import struct
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from PIL import Image
from sklearn.datasets import load_sample_image


def photograph(kind: str, size: tuple[int, int] = (60, 40), **options: Any) -> bytes:
    """A photograph as a file of the format `kind`."""
    file = io.BytesIO()
    image = Image.fromarray(load_sample_image("flower.jpg")).resize(size)
    (image.quantize(64) if kind == "GIF" else image).save(file, kind, **options)
    return file.getvalue()


def huge_png() -> bytes:
    """60,000 x 60,000 pixels by its header: 10.8 GB in memory, a hundred bytes on disk."""
    return png(60_000, zlib.compress(b""))


def wrong_checksum() -> bytes:
    """A PNG whose header and end are whole: only decoding finds the damage."""
    data = bytearray(photograph("PNG"))
    data[len(data) // 2] ^= 0xFF
    return bytes(data)


# what -> (suffix, content, the reason that a look at the header gives)
BY_HEADER: Mapping[str, tuple[str, Callable[[], bytes], str]] = {
    "empty": (".jpg", lambda: b"", "is empty"),
    "cut off": (".jpg", lambda: photograph("JPEG")[:-700], "JPEG is cut off"),
    "without its last byte": (".jpg", lambda: photograph("JPEG")[:-1], "JPEG is cut off"),
    "first bytes only": (".jpg", lambda: photograph("JPEG")[:30], "is cut off in its header"),
    "text": (".jpg", lambda: b"<html><body>404</body></html>", "is no image: it begins with b'<html><b'"),
    "huge": (".png", huge_png, "PNG of 60000 x 60000 pixels"),
    "png cut off": (".png", lambda: photograph("PNG")[:-300], "PNG is cut off"),
    "gif cut off": (".gif", lambda: photograph("GIF")[:-300], "GIF is cut off"),
    "bmp cut off": (".bmp", lambda: photograph("BMP")[:-300], "BMP is cut off"),
    "webp cut off": (".webp", lambda: photograph("WEBP")[:-300], "WebP is cut off"),
}


def damage(file: Path, kind: str) -> None:
    """Put a damaged file in the place of `file`, whatever its suffix."""
    file.write_bytes(BY_HEADER[kind][1]() if kind in BY_HEADER else wrong_checksum())


def chunk(name: bytes, data: bytes) -> bytes:
    """A chunk of a PNG."""
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(side: int, pixels: bytes, before: bytes = b"", after: bytes = b"") -> bytes:
    """An RGB PNG whose compressed pixels, and other chunks, are these."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + before + chunk(b"IDAT", pixels) + after + chunk(b"IEND", b"")


def deflated(megabytes: int) -> bytes:
    """So many megabytes of zeros; of more than one without their checksum, which comes after them."""
    if megabytes == 1:
        return zlib.compress(bytes(1 << 20), 9)
    stream = zlib.compressobj(9)
    first, more = (stream.compress(bytes(1 << 20)) + stream.flush(zlib.Z_FULL_FLUSH) for _ in range(2))
    return first + more * (megabytes - 1) + stream.flush()


def jpeg_parts(data: bytes) -> list[tuple[int, bytes]]:
    """(marker, bytes) of each segment of a JPEG, a scan with its data."""
    at, parts = 2, []
    while at < len(data):
        marker, end = data[at + 1], at + 2
        if marker != 0xD9:
            end += struct.unpack_from(">H", data, at + 2)[0]
        while marker == 0xDA and not (data[end] == 0xFF and data[end + 1] not in (0, *range(0xD0, 0xD8))):
            end += 1
        parts.append((marker, data[at:end]))
        at = end
    return parts


def scans(side: int, number: int, *, refining: bool = False, arithmetic: bool = False, between: bytes = b"") -> bytes:
    """A grey progressive JPEG with one of its scans, which holds next to nothing, so many times more."""
    file = io.BytesIO()
    Image.new("L", (side, side), 128).save(file, "JPEG", progressive=True)
    parts = jpeg_parts(file.getvalue())
    is_scan = [marker == 0xDA and data[7] > 0 and (data[9] >> 4 > 0) == refining for marker, data in parts]
    chosen = is_scan.index(True)
    tables = next(data for marker, data in reversed(parts[:chosen]) if marker == 0xC4)
    if arithmetic:
        parts = [
            (marker, b"\xff\xca" + data[2:] if marker == 0xC2 else data[:10] if marker == 0xDA else data)
            for marker, data in parts
            if marker != 0xC4
        ]
        tables, chosen = b"", next(k for k, (marker, data) in enumerate(parts) if marker == 0xDA and data[7])
    repeated = tables + between + (parts[chosen][1] + between) * number
    return b"\xff\xd8" + b"".join(data for marker, data in parts if marker != 0xD9) + repeated + b"\xff\xd9"


def sequential_scans(side: int, number: int) -> bytes:
    """A baseline JPEG of three colours, each in scans of its own, without data."""
    file = io.BytesIO()
    Image.new("RGB", (side, side)).save(file, "JPEG", subsampling=0)
    parts = jpeg_parts(file.getvalue())
    begin = b"".join(data for marker, data in parts if marker not in (0xDA, 0xD9))
    each = b"".join(b"\xff\xda\0\x08\x01" + bytes([colour, 0, 0, 63, 0]) for colour in (1, 2, 3))
    return b"\xff\xd8" + begin + each * number + b"\xff\xd9"


def exif_in_pieces() -> bytes:
    data = photograph("JPEG")
    piece = b"\xff\xe1" + struct.pack(">H", 1600) + b"Exif\0\0MM\0*" + bytes(1588)
    return data[:2] + piece * 9000 + data[2:]


def tiff(entries: list[tuple[int, int, int, int]], rest: bytes) -> bytes:
    """A TIFF with these entries (tag, type, number, value) in its directory, which 8 bytes are in front of."""
    directory = b"".join(struct.pack("<HHII", *entry) for entry in sorted(entries))
    return b"II*\0" + struct.pack("<IH", 8, len(entries)) + directory + bytes(4) + rest


def grey_tiff(width: int, height: int, strips: int, strip_bytes: int, more: Any = (), rest: bytes = b"") -> bytes:
    """A grey TIFF of strips that all are the same bytes."""
    tags = [(256, 4, 1, width), (257, 4, 1, height), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1)]
    tags += [(277, 3, 1, 1), (278, 4, 1, max(1, height // strips)), *more]
    at = 8 + 2 + 12 * (len(tags) + 2) + 4
    tags += [(273, 4, strips, at), (279, 4, strips, at + 4 * strips)]
    begin = at + 8 * strips
    lists = struct.pack(f"<{strips}I", *[begin] * strips) + struct.pack(f"<{strips}I", *[strip_bytes] * strips)
    return tiff(tags, lists + rest)


def rle_bmp() -> bytes:
    """13,000 x 13,000 pixels by runs of one and the ends of their lines, which Pillow fills in Python."""
    side = 13_000
    rows = b"\x01\x07\0\0" * side + b"\0\x01"
    info = struct.pack("<IiiHHIIiiII", 40, side, side, 1, 8, 1, len(rows), 0, 0, 256, 0)
    return b"BM" + struct.pack("<IHHI", 1078 + len(rows), 0, 0, 1078) + info + bytes(1024) + rows


FEW = zlib.compress(bytes(200))
TEXT = b"".join(chunk(b"zTXt", b"k%d\0\0" % k + deflated(1)) for k in range(300))
END = b"\xff\xfe\0\x06\xff\xd9\xff\xd9"  # in a comment

# what -> (suffix, content, the reason that is given without decoding it)
BOMBS: Mapping[str, tuple[str, Callable[[], bytes], str]] = {
    "JPEG of 20,000 scans": (".jpg", lambda: scans(4000, 20_000), "JPEG has more than 100 scans"),
    "JPEG of scans, arithmetic": (".jpg", lambda: scans(4000, 20_000, arithmetic=True), "JPEG has more than 100 scans"),
    "JPEG of scans, sequential": (".jpg", lambda: sequential_scans(6000, 20_000), "too many scans for its size"),
    "JPEG of scans behind ends": (".jpg", lambda: scans(4000, 5000, between=END), "JPEG has more than 100 scans"),
    "JPEG of scans behind restarts": (
        ".jpg", lambda: scans(4000, 5000, between=b"\xff\x02\xff\xd0"), "JPEG has more than 100 scans"
    ),
    "JPEG of refinements": (".jpg", lambda: scans(6000, 80, refining=True), "too many scans for its size"),
    "JPEG of comments behind a scan": (
        ".jpg", lambda: scans(64, 1, between=b"\xff\xfe\0\x02" * 2_000_000), "more than 10,000 segments"
    ),
    "JPEG of EXIF data in pieces": (".jpg", exif_in_pieces, "more than 131,072 bytes of EXIF data"),
    "PNG of a gigabyte of pixels": (".png", lambda: png(8, deflated(1024)), "inflate to far more"),
    "PNG of pixels beyond a million": (".png", lambda: png(1000, deflated(400)), "inflate to far more"),
    "PNG of text": (".png", lambda: png(8, FEW, TEXT), "too much compressed text"),
    "PNG of text behind pixels": (".png", lambda: png(8, FEW, b"", TEXT), "too much compressed text"),
    "PNG of empty chunks of pixels": (
        ".png", lambda: png(8, FEW, chunk(b"IDAT", b"") * 1_000_000), "chunks in its first"
    ),
    "TIFF of tags that share": (
        ".tif",
        lambda: grey_tiff(8, 8, 1, 64, [(60_000 + k, 7, 1_000_000, 500) for k in range(5000)], bytes(1_000_000)),
        "TIFF whose tags hold more than the file",
    ),
    "TIFF of strips that share": (
        ".tif", lambda: grey_tiff(1, 9999, 9999, 4_000_000, (), bytes(4_000_000)), "strips or tiles hold more"
    ),
    "TIFF of a million strips": (".tif", lambda: grey_tiff(1, 1_000_000, 1_000_000, 1, (), b"x"), "100,000 strips"),
    "BMP of runs": (".bmp", rle_bmp, "BMP is compressed"),
}  # fmt: skip
