"""Build and run the image without a container engine: with debootstrap, buildah and the namespaces of the kernel."""

from __future__ import annotations

__all__ = ["SOURCE_DATE_EPOCH", "Container", "Image", "ImageBuild", "unpack_package"]

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from attrs import define, frozen

from tests.architecture.tree import ROOT
from tests.debian import run_command

CODENAME = "bookworm"
BASE = "localhost/debian:debootstrap"
SOURCE_DATE_EPOCH = 1_700_000_000


def unpack_package(package: str, folder: Path) -> Path:
    """Unpack a Debian package into *folder* without installing it; return *folder*. Fail where that is impossible."""
    if shutil.which("apt-get") is None:
        pytest.fail(f"{package} cannot be downloaded: there is no apt-get here")
    done = subprocess.run(
        ["apt-get", "download", "-qq", package], cwd=folder, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        run_command(["apt-get", "update", "-qq"])
        run_command(["apt-get", "download", "-qq", package], cwd=folder)
    (archive,) = folder.glob(f"{package}_*.deb")
    run_command(["dpkg-deb", "--extract", archive, folder])
    return folder


@frozen
class Image:
    """A built image: its root file system and its configuration."""

    rootfs: Path
    config: Mapping[str, Any]

    @property
    def environment(self) -> dict[str, str]:
        """The variables that the image sets."""
        return dict(variable.split("=", 1) for variable in self.config["Env"])

    @property
    def bytes(self) -> int:
        """The total size of all files."""
        return sum(path.lstat().st_size for path in self.rootfs.rglob("*") if path.is_file() and not path.is_symlink())

    def start(self, folder: Path, *arguments: str, **settings: str) -> Container:
        """
        Start the image as a container engine does: with its entrypoint, user and variables, on a read-only root.

        *folder* is the volume. The container has its own mount and process namespaces and uses the network of this machine.
        """
        uid = int(self.config["User"].partition(":")[0])
        os.chown(folder, uid, uid)
        root = shlex.quote(str(self.rootfs))
        (volume,) = self.config["Volumes"]
        script = f"""
            mount --make-rprivate /
            mount --bind {root} {root}
            mount --bind {shlex.quote(str(folder))} {root}{volume}
            mount -t proc proc {root}/proc
            for device in null urandom; do
                mount --bind /dev/$device {root}/dev/$device
            done
            mount -o remount,bind,ro {root}
            exec chroot --userspec={self.config["User"]} {root} "$@"
        """
        for device in ("null", "urandom"):
            # An engine mounts its own /dev; here each device needs a file to be mounted on.
            (self.rootfs / "dev" / device).touch()
        variables = [f"{name}={value}" for name, value in (self.environment | settings).items()]
        # The image has no env program, so the variables are set outside, before chroot.
        with (folder.parent / "stdout.txt").open("w") as stdout:
            process = subprocess.Popen(
            ["/usr/bin/unshare", "--mount", "--pid", "--fork",
             "/usr/bin/env", "-i", *variables, "/bin/sh", "-euc", f"PATH={_SYSTEM_PATH}:$PATH\n{script}", "sh",
             self._program(), *self.config["Entrypoint"][1:], *(arguments or self.config["Cmd"])],
            stdin=subprocess.DEVNULL, stdout=stdout, stderr=subprocess.STDOUT,
            )  # fmt: skip
        return Container(process, folder.parent / "stdout.txt")

    def _program(self) -> str:
        """Return the full path of the entrypoint program; an engine searches the PATH of the image for it."""
        name = self.config["Entrypoint"][0]
        for folder in self.environment["PATH"].split(":"):
            if (self.rootfs / folder.lstrip("/") / name).is_symlink():
                return f"{folder}/{name}"
        pytest.fail(f"{name} is not on the image's PATH")


_SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@define
class Container:
    """A started image."""

    process: subprocess.Popen[bytes]
    stdout: Path

    @property
    def output(self) -> str:
        """What the container has written so far."""
        return self.stdout.read_text(encoding="utf-8", errors="replace")

    @property
    def first_pid(self) -> int:
        """The id of its first process, as seen from outside."""
        return int(Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()[0])

    def wait_until_ready(self, seconds: float = 30.0) -> str:
        """Wait until the server prints its address; return the address."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and self.process.poll() is None:
            if found := re.search(r"ready at http://[^:]+:([0-9]+)", self.output):
                return f"http://127.0.0.1:{found[1]}"
            time.sleep(0.02)
        pytest.fail(f"it was not ready within {seconds:g} s: {self.output}")

    def wait(self, seconds: float = 30.0) -> int:
        """Wait until the container has ended; return its exit code."""
        return self.process.wait(seconds)

    def end(self) -> None:
        """Kill the container if it is running. Idempotent."""
        if self.process.poll() is None:
            # Not unshare itself: its child would keep running.
            os.kill(self.first_pid, signal.SIGKILL)
        self.process.wait()


@frozen
class ImageBuild:
    """Builds the image in a folder of its own."""

    folder: Path

    def build(self) -> Image:
        """Build the Dockerfile on a base image made by debootstrap, of the release that the Dockerfile names."""
        (base,) = re.findall(r"^ARG BASE=(\S+)$", (ROOT / "Dockerfile").read_text(encoding="utf-8"), re.MULTILINE)
        assert CODENAME in base
        self._make_base(BASE)
        certificates, pip = self._network()
        self._buildah(
            "build", "--isolation", "chroot", "--pull=never", "--layers=false", "--format", "docker",
            "--volume", f"{certificates}:/run/certificates.pem:ro", "--volume", f"{pip}:/etc/pip.conf:ro",
            "--build-arg", f"BASE={BASE}", "--build-arg", f"SOURCE_DATE_EPOCH={SOURCE_DATE_EPOCH}",
            "--build-arg", "REVISION=under-test", "--tag", "fulfilment:test", ROOT,
        )  # fmt: skip
        container = self._buildah("from", "--pull=never", "localhost/fulfilment:test").split()[-1]
        mounted = Path(self._buildah("mount", container).split()[-1])
        rootfs = self.folder / "rootfs"
        shutil.copytree(mounted, rootfs, symlinks=True)
        for path in [mounted, *mounted.rglob("*")]:
            os.chown(
                rootfs / path.relative_to(mounted), path.lstat().st_uid, path.lstat().st_gid, follow_symlinks=False
            )
        inspected = json.loads(self._buildah("inspect", "--type", "image", "localhost/fulfilment:test"))
        self._buildah("rm", "--all")
        shutil.rmtree(self.folder / "store")  # with the base image more than a gigabyte
        return Image(rootfs, inspected["Docker"]["config"])

    def _make_base(self, name: str) -> None:
        base = self.folder / "base"
        lines = _debian_sources()
        mirror = [lines[0].split()[1]] if lines else []
        run_command(["debootstrap", "--variant=minbase", CODENAME, base, *mirror])
        if lines:
            (base / "etc/apt/sources.list").write_text("\n".join(lines) + "\n", encoding="utf-8")
        for configuration in Path("/etc/apt/apt.conf.d").glob("*"):
            if configuration.is_file():
                shutil.copy(configuration, base / "etc/apt/apt.conf.d")
        container = self._buildah("from", "scratch").split()[-1]
        self._buildah("add", "--quiet", container, base, "/")
        self._buildah("commit", "--quiet", "--rm", container, name)
        shutil.rmtree(base)

    def _network(self) -> tuple[Path, Path]:
        """Return the files that the build needs to reach the package index: the certificates and the pip settings of this machine."""
        certificates, pip = self.folder / "certificates.pem", self.folder / "pip.conf"
        found = next(
            (path for path in (os.environ.get("SSL_CERT_FILE", ""), _CERTIFICATES) if Path(path).is_file()), None
        )
        certificates.write_bytes(Path(found).read_bytes() if found else b"")
        lines = ["[global]", *(["cert = /run/certificates.pem"] if found else [])]
        index = (
            os.environ.get("PIP_INDEX_URL")
            or subprocess.run(
                ["python3", "-m", "pip", "config", "get", "global.index-url"],
                capture_output=True,
                text=True,
                check=False,
            ).stdout.strip()
        )
        if index:
            lines.append(f"index-url = {index}")
        pip.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return certificates, pip

    def _buildah(self, *arguments: str | Path) -> str:
        store = self.folder / "store"
        return run_command(
            ["buildah", "--storage-driver", "vfs", "--root", store, "--runroot", self.folder / "run", *arguments],
            env=os.environ | {"TMPDIR": str(self.folder)},
        )


_CERTIFICATES = "/etc/ssl/certs/ca-certificates.crt"


def _debian_sources() -> list[str]:
    """Return the Debian sources of that release on this machine; empty on another system."""
    listed = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(ORIGIN) $(REPO_URI) $(RELEASE) $(COMPONENT)", "Created-By: Packages"],
        capture_output=True, text=True, check=False,
    ).stdout  # fmt: skip
    found = [line.split() for line in listed.splitlines()]
    lines = [f"deb {uri} {release} {component}" for origin, uri, release, component in
             (parts for parts in found if len(parts) == 4) if origin == "Debian" and release.startswith(CODENAME)]  # fmt: skip
    return sorted(lines, key=lambda line: (line.split()[2] != CODENAME, line))
