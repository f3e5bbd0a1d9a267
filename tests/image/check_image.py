"""The image: its size, its content, its configuration, and the program running in it."""

from __future__ import annotations

import configparser
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest

from tests.architecture.tree import ROOT
from tests.gateways.local import API_KEY, LocalStripe
from tests.image.image_build import SOURCE_DATE_EPOCH, Container, Image

MEGABYTE = 1_000_000
SIZE_MAX = 100 * MEGABYTE
SBOM = "usr/share/sbom/fulfilment.cdx.json"

Start = Callable[..., Container]


def call(method: str, url: str, body: Any = None) -> Any:
    content = None if body is None else json.dumps(body).encode()
    with urlopen(Request(url, content, {"Content-Type": "application/json"}, method=method), timeout=10) as response:
        return json.load(response)


def test_the_image_is_smaller_than_a_hundred_megabytes(
    image: Image, record_testsuite_property: Callable[[str, object], None]
) -> None:
    """Unpacked, including the PostgreSQL client."""
    record_testsuite_property("image_megabytes", f"{image.bytes / MEGABYTE:.1f}")
    assert 20 * MEGABYTE < image.bytes < SIZE_MAX


def test_the_image_has_no_shell_compiler_or_installer(image: Image) -> None:
    """The interpreter is its only program."""
    programs = {path.name for path in image.rootfs.rglob("*") if path.parent.name in {"bin", "sbin"}}
    assert programs <= {"python", "python3", "python3.11"}
    assert programs
    packages = {path.name for path in image.rootfs.rglob("site-packages/*")}
    assert "aiohttp" in packages
    assert packages & {"pip", "setuptools", "wheel", "pytest"} == set()
    executable = {
        path.name for path in image.rootfs.rglob("*")
        if path.is_file() and not path.is_symlink() and os.access(path, os.X_OK) and ".so" not in path.name
    }  # fmt: skip
    assert {name for name in executable if not name.endswith(".py")} == {"python3.11"}


def test_the_user_of_the_image_can_write_only_the_volume_and_temporary_folders(image: Image) -> None:
    """It owns the volume only; an engine may mount a tmpfs on the temporary folders."""
    uid = int(image.config["User"].partition(":")[0])
    assert uid > 0
    paths = [path for path in image.rootfs.rglob("*") if not path.is_symlink()]
    allowed = {"/data", "/tmp", "/var/tmp"}
    owned = {f"/{path.relative_to(image.rootfs)}" for path in paths if path.lstat().st_uid == uid}
    writable = {f"/{path.relative_to(image.rootfs)}" for path in paths if path.lstat().st_mode & 0o022}
    assert owned == {"/data"}
    assert owned | writable <= allowed


def test_the_image_declares_entrypoint_health_check_and_stop_signal(image: Image) -> None:
    """In exec form: the image has no shell, and signals must reach the program."""
    config = image.config
    assert config["Entrypoint"] == ["python", "-m", "app"]
    assert config["Cmd"] == ["serve"]
    assert config["Healthcheck"]["Test"] == ["CMD", "python", "-m", "app", "check", "--live"]
    assert (config["StopSignal"], config["User"]) == ("SIGTERM", "10001:10001")
    assert (list(config["Volumes"]), list(config["ExposedPorts"])) == (["/data"], ["8080/tcp"])
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    labels = {name.removeprefix("org.opencontainers.image."): value for name, value in config["Labels"].items()}
    assert labels | {"revision": "under-test", "version": setup["metadata"]["version"], "licenses": "MIT"} == labels
    assert labels["title"]
    assert labels["description"]


def test_every_file_has_the_modification_time_that_the_build_was_given(image: Image) -> None:
    """The same sources and packages give the same layers (https://reproducible-builds.org/docs/source-date-epoch/)."""
    made_by_an_engine = {"", "dev", "dev/null", "dev/urandom", "data"}
    others = {
        name for path in image.rootfs.rglob("*")
        if int(path.lstat().st_mtime) != SOURCE_DATE_EPOCH and (name := str(path.relative_to(image.rootfs))) not in made_by_an_engine
    }  # fmt: skip
    assert others == set()


def test_the_list_of_parts_is_what_a_scanner_finds_in_the_image(image: Image) -> None:
    """Syft reads dpkg's database and the metadata of Python's packages: each part with its version, and no other."""
    scanned = subprocess.run(
        [Path(sys.executable).with_name("syft"), "scan", f"dir:{image.rootfs}", "--output", "cyclonedx-json", "--exclude", f"./{SBOM}"],
        env=os.environ | {"SYFT_CHECK_FOR_APP_UPDATE": "false"}, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    found = {name_and_version(each) for each in json.loads(scanned)["components"] if each["type"] == "library"}
    system = [each["version"] for each in json.loads(scanned)["components"] if each["type"] == "operating-system"]
    document = json.loads((image.rootfs / SBOM).read_text(encoding="utf-8"))
    listed = {name_and_version(each) for each in document["components"] if each["type"] == "library"}
    assert listed | {name_and_version(document["metadata"]["component"])} == found
    assert [each["version"] for each in document["components"] if each["type"] == "operating-system"] == system == ["12"]
    kinds = Counter(each.get("purl", "").partition("/")[0] for each in document["components"])
    assert kinds["pkg:pypi"] > 30
    assert kinds["pkg:deb"] > 10


def name_and_version(component: dict[str, Any]) -> tuple[str, str]:
    return re.sub("[-_.]+", "-", component["name"].lower()), component["version"]


def test_the_list_of_parts_has_the_hash_of_each_download_and_their_dependencies(image: Image) -> None:
    """A Python package has one of its hashes in the lock file, a Debian package that of the archive; wheels name their own parts."""
    document = json.loads((image.rootfs / SBOM).read_text(encoding="utf-8"))
    lock = (ROOT / "requirements/image.txt").read_text(encoding="utf-8")
    parts = {each["bom-ref"]: each for each in document["components"] if each["type"] == "library"}
    for part in parts.values():
        (digest,) = part["hashes"]
        assert digest["alg"] == "SHA-256"
        assert len(digest["content"]) == 64
        assert part["purl"].startswith("pkg:deb/debian/") or f"sha256:{digest['content']}" in lock, part["name"]
    needs = {node["ref"]: set(node.get("dependsOn", ())) for node in document["dependencies"]}
    reached, waiting = set(), {document["metadata"]["component"]["bom-ref"]}
    while waiting:
        reached |= waiting
        waiting = set[str]().union(*(needs[each] for each in waiting)) - reached
    names = {parts[each]["name"] for each in reached & parts.keys()}
    assert {"aiohttp", "multidict", "sqlalchemy", "python3.11-minimal", "libc6", "libssl3"} <= {name.lower() for name in names}
    bundled = {part["name"] for part in parts.values() if part.get("components")}
    assert {"orjson", "psycopg-binary"} <= bundled


def test_the_image_has_the_license_of_each_debian_package(image: Image) -> None:
    """As Debian ships it; distributing the files requires that."""
    status = (image.rootfs / "var/lib/dpkg/status").read_text(encoding="utf-8")
    packages = re.findall(r"(?m)^Package: (.+)$", status)
    assert status.count("Status: install ok installed") == len(packages) > 10
    assert [name for name in packages if not (image.rootfs / "usr/share/doc" / name / "copyright").is_file()] == []


def test_the_image_does_not_start_without_authentication(start: Start) -> None:
    """The operator has to choose the authentication; the image has no default."""
    container = start(AUTH_OFF_I_KNOW="0")
    assert container.wait() == 2
    assert container.output.startswith("fulfilment: AUTH: ")


def test_an_order_is_confirmed_and_sigterm_ends_the_program(start: Start, tmp_path: Path) -> None:
    """On a read-only root; SIGTERM to the first process ends it with 0."""
    container = start()
    url = container.wait_until_ready()
    status = Path(f"/proc/{container.first_pid}/status").read_text(encoding="utf-8")
    assert "Uid:\t10001\t10001" in status
    assert Path(f"/proc/{container.first_pid}/cmdline").read_bytes().endswith(b"\0-m\0app\0serve\0")

    call("PUT", f"{url}/v1/inventory/teapot", {"on_hand": 3, "unit_price": {"amount": 1250, "currency": "EUR"}})
    order = {"customer_id": "c-1", "items": [{"product_id": "teapot", "quantity": 2}]}
    placed = call("POST", f"{url}/v1/orders", order)
    wait_for_status(f"{url}/v1/orders/{placed['order_id']}", "confirmed")
    deadline = time.monotonic() + 20
    while (seen := call("GET", f"{url}/v1/inventory/teapot"))["on_hand"] != 1:
        assert time.monotonic() < deadline, seen
        time.sleep(0.02)
    assert [path.name for path in (tmp_path / "volume").glob("*.db")] == ["fulfilment.db"]

    os.kill(container.first_pid, signal.SIGTERM)
    assert container.wait() == 0
    assert '"stopped"' in container.output


def test_a_stripe_payment_is_captured_and_refunded(start: Start, tmp_path: Path) -> None:
    """The image has only a part of the Stripe SDK; a needed part that is missing would fail here."""
    provider = LocalStripe(str(tmp_path / "localstripe.pickle")).start()
    try:
        settings = {"PAYMENT_GATEWAY": "stripe", "STRIPE_API_KEY": API_KEY, "STRIPE_API_BASE": provider.url}
        url = start(**settings).wait_until_ready()
        call("PUT", f"{url}/v1/inventory/teapot", {"on_hand": 3, "unit_price": {"amount": 1250, "currency": "EUR"}})
        order = {"customer_id": "c-1", "items": [{"product_id": "teapot", "quantity": 2}]}
        placed = call("POST", f"{url}/v1/orders", order)
        payment = f"{url}/v1/payments/{placed['order_id']}"
        wait_for_status(payment, "captured")
        wait_for_status(f"{url}/v1/orders/{placed['order_id']}", "confirmed")
        call("POST", f"{url}/v1/orders/{placed['order_id']}/cancel", {})
        wait_for_status(payment, "refunded")
    finally:
        provider.kill()


def wait_for_status(url: str, expected: str) -> None:
    """Wait until the JSON at *url* has the status *expected*."""
    deadline = time.monotonic() + 30
    while True:
        try:
            seen = call("GET", url)["status"]
        except HTTPError as error:
            seen = error.code
        if seen == expected:
            return
        assert time.monotonic() < deadline, seen
        time.sleep(0.02)


def test_the_health_check_distinguishes_a_running_server_from_none(start: Start, image: Image) -> None:
    """`check --live` exits with 0 or 3."""
    container = start()
    port = container.wait_until_ready().rpartition(":")[2]
    assert start("check", "--live", HTTP_PORT=port).wait() == 0
    container.end()
    assert start("check", "--live", HTTP_PORT=port).wait() == 3


@pytest.mark.parametrize(
    "command",
    [["version"], ["openapi"], ["topology"], ["migrate"], ["dead-letters", "list"], ["serve", "--help"]],
    ids=" ".join,
)
def test_every_command_runs_in_the_image(start: Start, command: list[str]) -> None:
    """Every module that a command imports is in the image."""
    migration = start("migrate")  # no other command creates a database
    assert migration.wait() == 0, migration.output
    container = start(*command)
    assert container.wait() == 0, container.output
    assert container.output


def test_the_image_has_the_clients_of_postgresql_and_nats(start: Start) -> None:
    """With an unreachable server the commands exit with 3, not with an import error."""
    container = start("topology", "--check", BUS="nats", NATS_URL="nats://127.0.0.1:9")
    assert container.wait(60) == 3, container.output
    container = start("migrate", DATABASE_URL="postgresql://user@127.0.0.1:9/none")
    assert container.wait() == 3, container.output
