"""No process outlives the test that started it; and the browser that pages are tried in."""

import os
import shutil
from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import sync_playwright

from tests import forks
from tests.end_to_end.harness import STARTED
from tl_dist.trainer import load_model


@pytest.fixture(scope="session", autouse=True)
def _tensorflow_as_a_worker_starts_it() -> None:
    """Runs in this process then take a third less time (`pipelines_as_traced`); test_library has one without."""
    with load_model.pipelines_as_traced():
        pass


@pytest.fixture(scope="module", autouse=True)
def _children_are_forks() -> Iterator[None]:
    with forks.children():
        yield


@pytest.fixture(autouse=True)
def _nothing_is_left() -> Iterator[None]:
    yield
    for process in STARTED:
        if process.poll() is None:
            process.kill()
            process.communicate()
    STARTED.clear()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    executable = shutil.which("chromium")
    if executable is None and os.environ.get("TL_DIST_SKIP_DEBIAN"):
        pytest.skip("needs chromium, a Debian package, and these were to be left out")
    assert executable is not None, "launch/test installs chromium"
    with sync_playwright() as started:
        arguments = ["--no-sandbox", "--enable-unsafe-swiftshader"]  # TensorBoard's projector draws by WebGL
        chromium = started.chromium.launch(executable_path=executable, args=arguments)
        yield chromium
        chromium.close()
