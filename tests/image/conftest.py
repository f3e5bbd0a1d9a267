"""
Checks of the built image, the proxy and the alerts. `tox -e image` runs them; they need root and Debian packages.

The files are called ``check_*`` so that an ordinary test run does not collect them. Without root or the packages they
fail instead of being skipped.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.debian import require_programs
from tests.image.image_build import Container, Image, ImageBuild

Start = Callable[..., Container]


@pytest.hookimpl(tryfirst=True)
def pytest_configure() -> None:
    """Build the image on the disk: it is large, and its layers need a file system with all features."""
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", tempfile.gettempdir())


@pytest.fixture(scope="session")
def image(tmp_path_factory: pytest.TempPathFactory) -> Image:
    if os.geteuid() != 0:
        pytest.fail("only root can build and start the image")
    require_programs({"buildah": "buildah", "debootstrap": "debootstrap", "unshare": "util-linux"})
    return ImageBuild(tmp_path_factory.mktemp("image")).build()


@pytest.fixture
def start(image: Image, tmp_path: Path) -> Iterator[Start]:
    """Return a function that starts the image; the containers are killed at the end of the test."""
    started: list[Container] = []
    volume = tmp_path / "volume"
    volume.mkdir()

    def start_one(*arguments: str, **settings: str) -> Container:
        started.append(image.start(volume, *arguments, **{"AUTH_OFF_I_KNOW": "1", "HTTP_PORT": "0"} | settings))
        return started[-1]

    yield start_one
    for container in started:
        container.end()
