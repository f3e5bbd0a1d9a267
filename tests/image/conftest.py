"""
The image and what stands around it, for real. `tox -e image` runs this; it needs root, and Debian's packages.

The files are called ``check_*`` so that an ordinary run, which has neither, does not collect them: what is not there
fails here instead of being skipped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.image.workshop import Container, Image, Workshop, need

Start = Callable[..., Container]


@pytest.fixture(scope="session")
def image(tmp_path_factory: pytest.TempPathFactory) -> Image:
    need({"buildah": "buildah", "debootstrap": "debootstrap", "unshare": "util-linux"})
    return Workshop(tmp_path_factory.mktemp("workshop")).build()


@pytest.fixture
def start(image: Image, tmp_path: Path) -> Iterator[Start]:
    """Start the image; it ends with the test."""
    started: list[Container] = []
    volume = tmp_path / "volume"
    volume.mkdir()

    def one(*arguments: str, **settings: str) -> Container:
        started.append(image.start(volume, *arguments, **{"AUTH_OFF_I_KNOW": "1", "HTTP_PORT": "0"} | settings))
        return started[-1]

    yield one
    for container in started:
        container.end()
