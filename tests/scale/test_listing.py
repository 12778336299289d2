"""Of 20,000 images in 1,000 folders, or in a table, a worker asks the file server for the folders alone."""

import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

OPEN = """
import sys
from pathlib import Path
from tl_dist.config import DataConfig
from tl_dist.datasets import directory_cache
from tl_dist.datasets.division import open_splits
directory_cache.SETTLED_S = 0  # they have just been made
root, rank = sys.argv[1], int(sys.argv[2])
with directory_cache.kept(Path(root).parent / "listings", root, writes=rank == 0):
    splits, _ = open_splits(DataConfig(name=sys.argv[3], path=root))
print(sum(source.num_examples for source in splits.values()), splits["train"].fingerprint)
"""
FOLDERS, IMAGES = 1000, 20
IN_TABLE = 200  # folders


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("many") / "data"
    for k in range(FOLDERS):
        folder = made / "train" / f"n{k:08d}"
        folder.mkdir(parents=True)
        for image in range(IMAGES):
            (folder / f"{image}.JPEG").write_bytes(b"x" * (image + 1))
    table = ["path,label", *(f"train/n{k:08d}/{i}.JPEG,{k}" for k in range(IN_TABLE) for i in range(IMAGES))]
    (made / "table.csv").write_text("\n".join(table))
    return made


@pytest.mark.parametrize("layout", ["image_folder", "imagenet", "csv"])
def test_rank_1_looks_at_folders_alone(layout: str, root: Path, tmp_path: Path) -> None:
    def opened(rank: int, *tracer: str) -> str:
        argv = [*tracer, sys.executable, "-P", "-c", OPEN, str(root), str(rank), layout]
        return subprocess.run(argv, capture_output=True, text=True, check=True, timeout=120).stdout

    first = opened(0)
    folders = IN_TABLE if layout == "csv" else FOLDERS
    assert first.startswith(f"{folders * IMAGES} ")
    trace = tmp_path / "trace"
    calls = "?stat,?lstat,?fstat,?newfstatat,?statx,?access,?faccessat,?faccessat2,?open,?openat,?readlink"
    assert opened(1, "strace", "-f", "-y", "-qq", "-e", f"trace={calls}", "-o", str(trace)) == first
    asked = Counter(
        re.sub("^open.*", "open", match[1])
        for line in trace.read_text(errors="replace").splitlines()
        if str(root) in line and (match := re.match(r"\d+ +(\w+)\(", line))
    )
    opens = asked.pop("open")
    assert opens <= folders + 100 and sum(asked.values()) <= folders + 100, asked
