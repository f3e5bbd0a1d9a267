"""The deployed configuration of the NATS nodes: three nodes, a sync before every acknowledgement, and TLS."""

from __future__ import annotations

import asyncio
import json
import os
import random
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from urllib.request import urlopen

import pytest
import trustme
from attrs import frozen

from app.bootstrap import build_modules
from app.messaging.consumers import planned_topology
from app.messaging.nats_session import BrokerOutOfReach, jetstream
from bus.jetstream.admin.provisioning import apply, diff
from config.settings import Settings
from modules.registry import MODULES
from tests.architecture.tree import ROOT

CONFIGURATION = ROOT / "deploy/nats"
START_SECONDS = 60.0
PASSWORDS = {f"{user.upper()}_PASSWORD": f"p-{user}" for user in (*MODULES, "provisioner")}


@frozen
class Node:
    """A running NATS node."""

    port: int
    monitor: str

    def ask(self, path: str) -> dict[str, object]:
        with urlopen(self.monitor + path, timeout=5) as response:
            found: dict[str, object] = json.load(response)
            return found


@contextmanager
def node(
    folder: Path, name: str, cluster: str | None, files: Mapping[str, str], **environment: str
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a node with the committed nats.conf; the test changes ports and folders, and the cluster unless it is None."""
    shutil.copytree(CONFIGURATION, folder)
    if cluster is not None:
        (folder / "cluster.conf").write_text(cluster, encoding="utf-8")
    nats = (folder / "nats.conf").read_text(encoding="utf-8")
    assert nats.count('"/data"') == 1
    (folder / "nats.conf").write_text(nats.replace('"/data"', f'"{folder}/data"'), encoding="utf-8")
    for file, content in files.items():
        (folder / file).write_text(content, encoding="utf-8")
    program = Path(sys.executable).with_name("nats-server")
    command: list[str | Path] = [program, "-c", folder / "nats.conf", "-a", "127.0.0.1", "-p", "-1", "-m", "-1"]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [*command, "--ports_file_dir", folder], env=PASSWORDS | {"NODE": name, **environment}, stdout=log, stderr=log
        )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def ready(folder: Path, process: subprocess.Popen[bytes]) -> Node:
    """Wait until the node is healthy; return it."""
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            ports = json.loads((folder / f"nats-server_{process.pid}.ports").read_text(encoding="utf-8"))
            found = Node(
                int(ports["nats"][0].rpartition(":")[2]), ports["monitoring"][0].replace("0.0.0.0", "127.0.0.1")
            )
            if found.ask("/healthz")["status"] == "ok":
                return found
        except (OSError, ValueError, KeyError, IndexError):
            pass
        log = (folder / "log").read_text(encoding="utf-8", errors="replace")
        assert process.poll() is None, log
        assert time.monotonic() < deadline, log
        time.sleep(0.02)


def provisioner(*urls: str, tls_ca: str | None = None) -> Settings:
    return Settings(
        known_modules=MODULES,
        bus="nats", nats_url=urls, nats_user="provisioner", nats_password="p-provisioner", nats_tls_ca=tls_ca,
        nats_replicas=len(urls),
    )  # fmt: skip


def free_ports(count: int) -> list[int]:
    """Return ports that nothing listens on, below those that the system gives away: the nodes ask it for some of theirs."""
    found: set[int] = set()
    while len(found) < count:
        port = random.randrange(10_240, 32_768)
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            found.add(port)
    return sorted(found)


@pytest.mark.slow
async def test_three_nodes_keep_three_replicas_and_sync_before_they_acknowledge(tmp_path: Path) -> None:
    """The test reads the setting back: a misspelt sync_interval would leave acknowledged messages unsynced for two minutes."""
    ports = free_ports(3)
    routes = ", ".join(f'"nats-route://127.0.0.1:{port}"' for port in ports)
    with ExitStack() as running:
        folders = [tmp_path / f"node-{number}" for number in range(3)]
        processes = [
            running.enter_context(
                node(
                    folder, folder.name, f'cluster {{ name: test, listen: "127.0.0.1:{port}", routes: [{routes}] }}', {}
                )
            )
            for folder, port in zip(folders, ports, strict=True)
        ]
        nodes = [ready(folder, process) for folder, process in zip(folders, processes, strict=True)]
        settings = provisioner(*(f"nats://127.0.0.1:{each.port}" for each in nodes))
        topology = planned_topology(build_modules(settings))
        async with jetstream(settings) as js:
            await apply(js, topology, replicas=3)
            assert await diff(js, topology, replicas=3) == []
            assert (await js.stream_info("ORDERS")).config.num_replicas == 3
        for each in nodes:
            config = each.ask("/jsz")["config"]
            assert isinstance(config, dict)
            assert config["sync_always"] is True


def test_a_node_listens_for_clients_routes_and_monitoring_and_for_nothing_else(tmp_path: Path) -> None:
    """No leaf nodes, gateways, WebSocket, MQTT or profiler. Monitoring answers to anyone who reaches it, but has no secret."""
    (route,) = free_ports(1)
    addresses = {f"ROUTE_{number}": f"nats-route://routes:s-routes@127.0.0.1:{route}" for number in range(3)}
    folder = tmp_path / "node"
    with node(folder, "n", None, {}, ROUTES_PASSWORD="s-routes", ROUTES_LISTEN=f"127.0.0.1:{route}", **addresses) as process:
        deadline = time.monotonic() + START_SECONDS
        while not (found := list(folder.glob("nats-server_*.ports"))):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
        ports = json.loads(found[0].read_text(encoding="utf-8"))
        expected = {int(each.rpartition(":")[2]) for kind in ("nats", "monitoring", "cluster") for each in ports[kind]}
        assert {kind for kind, addresses in ports.items() if addresses} == {"nats", "monitoring", "cluster"}
        assert listening(process.pid) == expected
        monitor = ports["monitoring"][0].replace("0.0.0.0", "127.0.0.1")
        with urlopen(f"{monitor}/varz", timeout=5) as response:
            varz = json.load(response)
        assert not any(varz[kind].get("port") for kind in ("leaf", "gateway", "websocket", "mqtt"))
        pages = ("varz", "connz?auth=1", "routez", "subsz?subs=1", "gatewayz", "leafz", "accountz?acc=FULFILMENT", "jsz?config=1&streams=1")
        for page in (*pages, "accstatz", "debug/vars"):
            with urlopen(f"{monitor}/{page}", timeout=5) as response:
                text = response.read().decode()
            assert not any(secret in text for secret in (*PASSWORDS.values(), "s-routes")), page


def listening(pid: int) -> set[int]:
    """Return the TCP ports on which the process listens, from ``/proc`` (state 0A in net/tcp, proc(5))."""
    sockets = {os.readlink(path) for path in Path(f"/proc/{pid}/fd").iterdir()}
    lines = [line.split() for name in ("tcp", "tcp6") for line in Path(f"/proc/{pid}/net/{name}").read_text().splitlines()[1:]]
    return {int(line[1].rpartition(":")[2], 16) for line in lines if line[3] == "0A" and f"socket:[{line[9]}]" in sockets}


@pytest.mark.slow
async def test_a_node_without_the_password_of_the_routes_does_not_join(tmp_path: Path) -> None:
    """It knows the cluster's name and a port. As a member it could publish on every subject of every account."""
    ports = free_ports(3)
    addresses = {f"ROUTE_{number}": f"nats-route://routes:s-routes@127.0.0.1:{port}" for number, port in enumerate(ports)}
    with ExitStack() as running:
        folders = [tmp_path / f"node-{number}" for number in range(3)]
        processes = [
            running.enter_context(
                node(
                    folder, folder.name, None, {}, ROUTES_PASSWORD="s-routes", ROUTES_LISTEN=f"127.0.0.1:{port}", **addresses
                )
            )
            for folder, port in zip(folders, ports, strict=True)
        ]
        nodes = [ready(folder, process) for folder, process in zip(folders, processes, strict=True)]
        rogue = tmp_path / "rogue"
        routes = ", ".join(f'"nats-route://127.0.0.1:{port}"' for port in ports)
        (listen,) = free_ports(1)
        cluster = f'cluster {{ name: fulfilment, listen: "127.0.0.1:{listen}", routes: [{routes}] }}'
        running.enter_context(node(rogue, "rogue", cluster, {}))
        deadline = time.monotonic() + START_SECONDS
        while "Authorization Violation" not in (rogue / "log").read_text(encoding="utf-8", errors="replace"):
            assert time.monotonic() < deadline, (rogue / "log").read_text(encoding="utf-8", errors="replace")
            await asyncio.sleep(0.02)
        for each in nodes:
            joined = each.ask("/routez")["routes"]
            assert isinstance(joined, list)
            assert {str(route["remote_name"]) for route in joined} <= {folder.name for folder in folders}


@pytest.mark.slow
async def test_with_tls_only_clients_that_trust_the_authority_connect(tmp_path: Path) -> None:
    """tls.conf replaces transport.conf and clients set NATS_TLS_CA; a plain text connection is rejected."""
    authority, other_authority = trustme.CA(), trustme.CA()
    certificate = authority.issue_cert("127.0.0.1")
    tls = tmp_path / "tls"
    tls.mkdir()
    authority.cert_pem.write_to_path(str(tls / "ca.pem"))
    other_authority.cert_pem.write_to_path(str(tls / "other_authority.pem"))
    certificate.private_key_pem.write_to_path(str(tls / "server-key.pem"))
    for number, pem in enumerate(certificate.cert_chain_pems):
        pem.write_to_path(str(tls / "server.pem"), append=number > 0)
    folder = tmp_path / "node"
    transport = (CONFIGURATION / "tls.conf").read_text(encoding="utf-8").replace('"tls/', f'"{tls}/')
    with node(folder, "n", "", {"transport.conf": transport}) as process:
        port = ready(folder, process).port
        settings = provisioner(f"tls://127.0.0.1:{port}", tls_ca=str(tls / "ca.pem"))
        async with jetstream(settings) as js:
            assert await js.streams_info() == []
        for url, tls_ca in (("nats", None), ("tls", str(tls / "other_authority.pem"))):
            with pytest.raises(BrokerOutOfReach):
                async with jetstream(provisioner(f"{url}://127.0.0.1:{port}", tls_ca=tls_ca)):
                    pass
