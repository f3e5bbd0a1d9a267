"""deploy/compose.yaml: what it names is there, and each process would take the settings that it is given."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from app.bootstrap import build_modules
from config.environment import describe, load
from config.settings import Settings
from tests.architecture.tree import ROOT
from tests.deploy.deployed import MODULES

DEPLOY = ROOT / "deploy"
COMPOSE: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text(encoding="utf-8"))
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = {name: service for name, service in SERVICES.items() if service["image"].startswith("fulfilment:")}
ONCE = {"migrate", "topology"}
IMAGE_SAYS = {"HTTP_HOST": "0.0.0.0", "HTTP_PORT": "8080", "DATABASE_URL": "sqlite:////data/fulfilment.db"}

UNDER_NO_RESTRAINT = {"PATH", "LANG", "TMPDIR"}
"""Variables that are not the program's but the interpreter's."""


@pytest.fixture(scope="module")
def secrets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that secrets.sh makes."""
    root = tmp_path_factory.mktemp("root")
    for name in ("deploy/secrets.sh", "modules/registry.py"):
        (root / name).parent.mkdir()
        shutil.copy(DEPLOY.parent / name, root / name)
    folder = root / "deploy"
    subprocess.run([folder / "secrets.sh"], check=True)
    return folder / "secrets"


def settings_of(environment: Mapping[str, str], secrets: Path) -> Settings:
    """Return what the program would read, with the secrets where this test has them."""
    return load({name: re.sub(r"^/run/secrets(/fulfilment)?/", f"{secrets}/", value) for name, value in environment.items()}, MODULES)


def test_the_compose_specification_allows_it() -> None:
    """By its published schema."""
    check = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec"]
    done = subprocess.run([*check, DEPLOY / "compose.yaml"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("name", SERVICES)
def test_everything_has_its_limits_and_nothing_may_write_where_it_likes(name: str) -> None:
    """Memory, processor, a read-only root, no capabilities but those that are named, and a bounded log."""
    service = SERVICES[name]
    assert service["mem_limit"]
    assert service["cpus"] > 0
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["logging"]["options"].keys() == {"max-size", "max-file"}
    assert re.search(r":v?\d+(\.\d+)*(-\w+)?$", service["image"]), "an image without a version is another one tomorrow"


@pytest.mark.parametrize("name", SERVICES)
def test_whatever_a_service_names_is_there(name: str) -> None:
    """Networks, volumes, files, secrets, and whom it waits for."""
    service = SERVICES[name]
    assert set(service["networks"]) <= COMPOSE["networks"].keys()
    assert set(service.get("secrets", ())) <= COMPOSE["secrets"].keys()
    for volume in service.get("volumes", ()):
        source, target = volume.split(":")[:2]
        assert source in COMPOSE["volumes"] or (DEPLOY / source).exists(), volume
        assert target.startswith("/")
        assert source in COMPOSE["volumes"] or volume.endswith(":ro"), "what git keeps is not written to"
    for other, wanted in service.get("depends_on", {}).items():
        waits_for_end = wanted["condition"] == "service_completed_successfully"
        assert waits_for_end == (other in ONCE)
        healthy = "healthcheck" in SERVICES[other] or other in OURS
        assert waits_for_end or (wanted["condition"] == "service_healthy" and healthy)
    # A secret that nobody mounts, or a path to one that is not mounted, would be found out only at start.
    paths = re.findall(r"/run/secrets/(\w+)", " ".join(service.get("environment", {}).values()))
    assert set(paths) <= set(service.get("secrets", ()))


@pytest.mark.parametrize("name", OURS)
def test_the_program_takes_its_environment(name: str, secrets: Path) -> None:
    """Every variable is one of ours, and together they are settings that it starts with."""
    environment = OURS[name]["environment"]
    known = {variable.name for variable in describe(MODULES)} | UNDER_NO_RESTRAINT
    known |= {f"{variable.name}_FILE" for variable in describe(MODULES) if variable.is_secret}
    assert environment.keys() - known == set()
    settings = settings_of(IMAGE_SAYS | environment, secrets)
    assert [module.name for module in build_modules(settings)] == ([name] if name in MODULES else list(MODULES))
    if name in MODULES:
        assert (settings.bus, settings.nats_user, settings.nats_replicas, settings.auth) == ("nats", name, 3, "keys")
        assert str(settings.database_url(name)).partition("@")[2] == f"postgres:5432/{name}"
        assert OURS[name]["stop_grace_period"] == f"{settings.shutdown_grace_s + 5:.0f}s"
        assert (settings.http_host, settings.http_port) == ("0.0.0.0", 8080)


def test_every_module_runs_and_migrates_its_own_database(secrets: Path) -> None:
    """Three modules, three databases; the one-shot service knows them all."""
    assert OURS.keys() == {*MODULES, *ONCE}
    settings = settings_of(OURS["migrate"]["environment"], secrets)
    found = {module: str(settings.database_url(module)) for module in MODULES}
    assert len(set(found.values())) == 3
    for module in MODULES:
        assert found[module] == str(settings_of(IMAGE_SAYS | OURS[module]["environment"], secrets).database_url(module))


def test_the_nodes_find_each_other_and_the_modules_find_them(secrets: Path) -> None:
    """One name each, in cluster.conf, as an alias on their network, and in NATS_URL."""
    routes = set(re.findall(r"nats-route://([\w.-]+):6222", (DEPLOY / "nats/cluster.conf").read_text(encoding="utf-8")))
    aliases = {alias for service in SERVICES.values() if isinstance(service["networks"], dict)
               for alias in service["networks"].get("bus", {}).get("aliases", ())}  # fmt: skip
    settings = settings_of(IMAGE_SAYS | OURS["orders"]["environment"], secrets)
    urls = {str(url) for url in settings.nats_url}
    assert routes == aliases == {f"nats-{number}.nats" for number in range(3)}
    assert urls == {f"nats://{name}:4222" for name in routes}
    configurations = "".join(path.read_text(encoding="utf-8") for path in (DEPLOY / "nats").glob("*.conf"))
    needed = set(re.findall(r":\s*\$(\w+)", configurations))
    given = {line.partition("=")[0] for line in (secrets / "nats.env").read_text(encoding="utf-8").splitlines()}
    for number in range(3):
        assert needed == given | ({"NODE"} & SERVICES[f"nats-{number}"]["environment"].keys())


def test_secrets_are_made_on_the_spot_and_never_kept_by_git(secrets: Path) -> None:
    """Each once: a second run changes none. Only their owner gets into the folder."""
    wanted = {Path(secret["file"]).name for secret in COMPOSE["secrets"].values()}
    before = {path.name: path.read_bytes() for path in secrets.iterdir()}
    assert before.keys() == wanted | {"nats.env"}
    assert all(before.values())
    subprocess.run([secrets.parent / "secrets.sh"], check=True)
    assert {path.name: path.read_bytes() for path in secrets.iterdir()} == before
    assert secrets.stat().st_mode & 0o777 == 0o700
    assert "/deploy/secrets/" in (ROOT / ".gitignore").read_text(encoding="utf-8").splitlines()
    again = [value for name, value in before.items() if name.startswith(("nats_", "postgres_"))]
    assert len(set(again)) == len(again)


def test_only_the_proxy_and_grafana_are_reached_from_outside() -> None:
    """And from this machine alone, until somebody puts TLS before them."""
    ports = {name: service["ports"] for name, service in SERVICES.items() if "ports" in service}
    assert ports == {"proxy": ["127.0.0.1:8080:8080"], "grafana": ["127.0.0.1:3000:3000"]}
    inside = {name for name, network in COMPOSE["networks"].items() if network.get("internal")}
    assert {name for name, service in SERVICES.items() if set(service["networks"]) - inside} == ports.keys()
