"""The image: small, with nothing in it that does not run, and able to carry an order."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest

from tests.gateways.local import API_KEY, LocalStripe
from tests.image.workshop import Container, Image

MEGABYTE = 1_000_000
SIZE_MAX = 100 * MEGABYTE

Start = Callable[..., Container]


def call(method: str, url: str, body: Any = None) -> Any:
    content = None if body is None else json.dumps(body).encode()
    with urlopen(Request(url, content, {"Content-Type": "application/json"}, method=method), timeout=10) as answer:
        return json.load(answer)


def test_the_image_is_smaller_than_100_megabytes(
    image: Image, record_testsuite_property: Callable[[str, object], None]
) -> None:
    """Unpacked, PostgreSQL's client included."""
    record_testsuite_property("image_megabytes", f"{image.bytes / MEGABYTE:.1f}")
    assert 20 * MEGABYTE < image.bytes < SIZE_MAX


def test_there_is_no_shell_no_compiler_and_no_installer_in_it(image: Image) -> None:
    """The interpreter is the only program in the image."""
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


def test_the_user_of_the_image_owns_and_writes_nothing_in_it(image: Image) -> None:
    """But the volume and the places for temporary files, on which an engine may put a tmpfs."""
    uid = int(image.config["User"].partition(":")[0])
    assert uid > 0
    paths = [path for path in image.rootfs.rglob("*") if not path.is_symlink()]
    allowed = {"/data", "/tmp", "/var/tmp"}
    its_own = {f"/{path.relative_to(image.rootfs)}" for path in paths if path.lstat().st_uid == uid}
    writable = {f"/{path.relative_to(image.rootfs)}" for path in paths if path.lstat().st_mode & 0o022}
    assert its_own == {"/data"}
    assert its_own | writable <= allowed


def test_the_image_declares_entrypoint_health_check_and_stop_signal(image: Image) -> None:
    """Exec form everywhere: there is no shell that could run the other one, and signals reach the program."""
    config = image.config
    assert config["Entrypoint"] == ["python", "-m", "app"]
    assert config["Cmd"] == ["serve"]
    assert config["Healthcheck"]["Test"] == ["CMD", "python", "-m", "app", "check", "--live"]
    assert (config["StopSignal"], config["User"]) == ("SIGTERM", "10001:10001")
    assert (list(config["Volumes"]), list(config["ExposedPorts"])) == (["/data"], ["8080/tcp"])
    assert config["Labels"]["org.opencontainers.image.revision"] == "under-test"


def test_it_does_not_serve_without_authentication_by_default(start: Start) -> None:
    """The operator configures who may call; the image does not."""
    container = start(AUTH_OFF_I_KNOW="0")
    assert container.wait() == 2
    assert container.said.startswith("fulfilment: AUTH: ")


def test_an_order_goes_through_and_the_signal_reaches_the_program(start: Start, tmp_path: Path) -> None:
    """From POST to confirmed on a read-only root; SIGTERM to the first process ends it with 0."""
    container = start()
    url = container.wait_until_ready()
    status = Path(f"/proc/{container.first_pid}/status").read_text(encoding="utf-8")
    assert "Uid:\t10001\t10001" in status
    assert Path(f"/proc/{container.first_pid}/cmdline").read_bytes().endswith(b"\0-m\0app\0serve\0")

    call("PUT", f"{url}/v1/inventory/teapot", {"on_hand": 3, "unit_price": {"amount": 1250, "currency": "EUR"}})
    order = {"customer_id": "c-1", "items": [{"product_id": "teapot", "quantity": 2}]}
    placed = call("POST", f"{url}/v1/orders", order)
    until(f"{url}/v1/orders/{placed['order_id']}", "confirmed")
    deadline = time.monotonic() + 20
    while (seen := call("GET", f"{url}/v1/inventory/teapot"))["on_hand"] != 1:
        assert time.monotonic() < deadline, seen
        time.sleep(0.02)
    assert [path.name for path in (tmp_path / "volume").glob("*.db")] == ["fulfilment.db"]

    os.kill(container.first_pid, signal.SIGTERM)
    assert container.wait() == 0
    assert '"stopped"' in container.said


def test_stripe_charges_and_refunds(start: Start, tmp_path: Path) -> None:
    """The image contains the SDK without its unused half; a missing part that is needed fails here."""
    provider = LocalStripe(str(tmp_path / "localstripe.pickle")).start()
    try:
        settings = {"PAYMENT_GATEWAY": "stripe", "STRIPE_API_KEY": API_KEY, "STRIPE_API_BASE": provider.url}
        url = start(**settings).wait_until_ready()
        call("PUT", f"{url}/v1/inventory/teapot", {"on_hand": 3, "unit_price": {"amount": 1250, "currency": "EUR"}})
        order = {"customer_id": "c-1", "items": [{"product_id": "teapot", "quantity": 2}]}
        placed = call("POST", f"{url}/v1/orders", order)
        payment = f"{url}/v1/payments/{placed['order_id']}"
        until(payment, "captured")
        until(f"{url}/v1/orders/{placed['order_id']}", "confirmed")
        call("POST", f"{url}/v1/orders/{placed['order_id']}/cancel", {})
        until(payment, "refunded")
    finally:
        provider.kill()


def until(url: str, wanted: str) -> None:
    """Wait until what is at *url* has the status *wanted*."""
    deadline = time.monotonic() + 30
    while True:
        try:
            seen = call("GET", url)["status"]
        except HTTPError as error:
            seen = error.code
        if seen == wanted:
            return
        assert time.monotonic() < deadline, seen
        time.sleep(0.02)


def test_the_health_check_fails_without_a_server(start: Start, image: Image) -> None:
    """The engine learns it from the program itself, which is all there is."""
    container = start()
    port = container.wait_until_ready().rpartition(":")[2]
    assert start("check", "--live", HTTP_PORT=port).wait() == 0
    container.end()
    assert start("check", "--live", HTTP_PORT=port).wait() == 3


@pytest.mark.parametrize(
    "command", [["version"], ["openapi"], ["topology"], ["migrate"], ["dead-letters", "list"], ["serve", "--help"]], ids=" ".join
)
def test_every_command_runs_in_it(start: Start, command: list[str]) -> None:
    """Nothing that a command imports was left behind."""
    container = start(*command)
    assert container.wait() == 0, container.said
    assert container.said


def test_the_clients_of_postgresql_and_nats_are_in_the_image(start: Start) -> None:
    """A server that is not there is out of reach (3): the clients are there, and find it so."""
    container = start("topology", "--check", BUS="nats", NATS_URL="nats://127.0.0.1:9")
    assert container.wait(60) == 3, container.said
    container = start("migrate", DATABASE_URL="postgresql://user@127.0.0.1:9/none")
    assert container.wait() == 3, container.said
