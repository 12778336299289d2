"""One of several commands that pack a data set together: SRC DST PART PARTS."""

import sys
from pathlib import Path

from tl_dist.datasets.curation.layout import opened_whole
from tl_dist.datasets.packing import pack

if __name__ == "__main__":
    source, target, part, parts = sys.argv[1:]
    pack(opened_whole(Path(source)), Path(target), rows=16, part=(int(part), int(parts)))
