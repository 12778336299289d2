"""From a folder of 5,000 PNGs to a served prediction: three commands, in less than five minutes; 1,500 in two."""

import json
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from tests.end_to_end.harness import INSTALLED, STARTED


def shifted_digits(folder: Path, num: int) -> Path:
    """PNGs of 32 x 32: scikit-learn's digits, and then each of them again a pixel or two further to the right."""
    found = load_digits()
    for k in range(num):
        times, which = divmod(k, len(found.target))
        directory = folder / str(found.target[which])
        directory.mkdir(parents=True, exist_ok=True)
        image = Image.fromarray((found.images[which] * 15).astype(np.uint8)).resize((32, 32))
        Image.fromarray(np.roll(image, 2 * times, axis=1)).save(directory / f"{k:04d}.png")
    return folder


@pytest.mark.timing
@pytest.mark.parametrize(("num", "seconds"), [(1_500, 120), pytest.param(5_000, 300, marks=pytest.mark.full)])
def test_a_folder_is_soon_a_served_prediction(num: int, seconds: int, tmp_path: Path) -> None:
    folder = shifted_digits(tmp_path / "my_digits", num)
    start = time.monotonic()
    # At 32 px, where `init` would take 128: sixteen times the arithmetic, and the same code.
    train = (INSTALLED, "train", "my_digits", "data.image_size=32")
    subprocess.run(train, cwd=tmp_path, check=True, capture_output=True, timeout=seconds)
    serve = (INSTALLED, "serve", "runs/my_digits", "--port", "0")
    server = subprocess.Popen(serve, cwd=tmp_path, text=True, stdout=subprocess.PIPE)
    STARTED.append(server)
    assert server.stdout is not None
    address = server.stdout.readline().partition("http://")[2].split()[0]
    sent = [folder / "3" / "0003.png", folder / "7" / "0007.png"]
    form = [word for file in sent for word in ("-F", f"file=@{file}")]
    curl = subprocess.run(["curl", "-s", *form, f"{address}predict"], check=True, capture_output=True, timeout=60)
    assert time.monotonic() - start < seconds
    assert [row["class"] for row in json.loads(curl.stdout)["predictions"]] == ["3", "7"]
    done = json.loads((tmp_path / "runs" / "my_digits" / "DONE").read_text())
    assert done["figures"]["test"]["num_examples"] == num // 5
    server.terminate()
    server.communicate(timeout=30)
    assert server.returncode == 0
