"""deploy/compose.yaml: everything it refers to exists, and each process accepts its settings."""

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
from modules import registry
from tests.architecture.tree import ROOT
from tests.deploy.deployed import MODULES

DEPLOY = ROOT / "deploy"
COMPOSE: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text(encoding="utf-8"))
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
PROGRAM_SERVICES = {name: service for name, service in SERVICES.items() if service["image"].startswith("fulfilment:")}
ONE_SHOT = {"migrate", "topology"}
IMAGE_ENVIRONMENT = {"HTTP_HOST": "0.0.0.0", "HTTP_PORT": "8080", "DATABASE_URL": "sqlite:////data/fulfilment.db"}

INTERPRETER_VARIABLES = {"PATH", "LANG", "TMPDIR"}
"""Variables that the interpreter or the system reads, not the program."""


@pytest.fixture(scope="module")
def secrets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that secrets.sh creates."""
    root = tmp_path_factory.mktemp("root")
    for name in ("deploy/secrets.sh", "modules/registry.py"):
        (root / name).parent.mkdir()
        shutil.copy(DEPLOY.parent / name, root / name)
    folder = root / "deploy"
    subprocess.run([folder / "secrets.sh"], check=True)
    for file in (folder / "secrets").iterdir():
        file.chmod(0o600)  # the program reads them in /run/secrets, where modes are the engine's
    return folder / "secrets"


def settings_of(environment: Mapping[str, str], secrets: Path) -> Settings:
    """Return the settings of *environment*, with the secrets read from the folder *secrets*."""
    return load(
        {name: re.sub(r"^/run/secrets(/fulfilment)?/", f"{secrets}/", value) for name, value in environment.items()},
        MODULES,
    )


@pytest.mark.slow
def test_the_file_matches_the_schema_of_the_compose_specification() -> None:
    """As published by the Compose project."""
    check = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec"]
    done = subprocess.run([*check, DEPLOY / "compose.yaml"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("name", SERVICES)
def test_every_service_is_limited_and_locked_down(name: str) -> None:
    """Limits for memory and CPU, a read-only root, only named capabilities, and a bounded log."""
    service = SERVICES[name]
    assert service["mem_limit"]
    assert service["cpus"] > 0
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["logging"]["options"].keys() == {"max-size", "max-file"}
    assert re.search(r":v?\d+(\.\d+)*(\.dev0)?(-\w+)?$", service["image"]), "the image must have a version"


@pytest.mark.parametrize("name", SERVICES)
def test_everything_that_a_service_refers_to_exists(name: str) -> None:
    """Networks, volumes, files, secrets, and the services it depends on."""
    service = SERVICES[name]
    assert set(service["networks"]) <= COMPOSE["networks"].keys()
    assert set(service.get("secrets", ())) <= COMPOSE["secrets"].keys()
    for volume in service.get("volumes", ()):
        source, target = volume.split(":")[:2]
        assert source in COMPOSE["volumes"] or (DEPLOY / source).exists(), volume
        assert target.startswith("/")
        assert source in COMPOSE["volumes"] or volume.endswith(":ro"), "a versioned file must be mounted read-only"
    for other, wanted in service.get("depends_on", {}).items():
        waits_for_end = wanted["condition"] == "service_completed_successfully"
        assert waits_for_end == (other in ONE_SHOT)
        healthy = "healthcheck" in SERVICES[other] or other in PROGRAM_SERVICES
        assert waits_for_end or (wanted["condition"] == "service_healthy" and healthy)
    # A path to a secret that is not mounted would fail only at the start.
    paths = re.findall(r"/run/secrets/(\w+)", " ".join(service.get("environment", {}).values()))
    assert set(paths) <= set(service.get("secrets", ()))


@pytest.mark.parametrize("name", PROGRAM_SERVICES)
def test_the_program_accepts_its_environment(name: str, secrets: Path) -> None:
    """Every variable is known, and together they are valid settings."""
    environment = PROGRAM_SERVICES[name]["environment"]
    known = {variable.name for variable in describe(MODULES)} | INTERPRETER_VARIABLES
    known |= {f"{variable.name}_FILE" for variable in describe(MODULES) if variable.is_secret}
    assert environment.keys() - known == set()
    settings = settings_of(IMAGE_ENVIRONMENT | environment, secrets)
    assert [module.name for module in build_modules(settings)] == ([name] if name in MODULES else list(MODULES))
    if name in MODULES:
        assert (settings.bus, settings.nats_user, settings.nats_replicas, settings.auth) == ("nats", name, 3, "keys")
        assert str(settings.database_url(name)).partition("@")[2] == f"postgres:5432/{name}"
        assert PROGRAM_SERVICES[name]["stop_grace_period"] == f"{settings.shutdown_grace_s + 5:.0f}s"
        assert (settings.http_host, settings.http_port) == ("0.0.0.0", 8080)


def test_every_module_has_its_own_database(secrets: Path) -> None:
    """The service `migrate` has the addresses of all three databases."""
    assert PROGRAM_SERVICES.keys() == {*MODULES, *ONE_SHOT}
    settings = settings_of(PROGRAM_SERVICES["migrate"]["environment"], secrets)
    found = {module: str(settings.database_url(module)) for module in MODULES}
    assert len(set(found.values())) == 3
    for module in MODULES:
        assert found[module] == str(
            settings_of(IMAGE_ENVIRONMENT | PROGRAM_SERVICES[module]["environment"], secrets).database_url(module)
        )


def test_the_nats_nodes_have_the_same_names_everywhere(secrets: Path) -> None:
    """As an alias on their network and in NATS_URL; every variable of the configuration is set."""
    aliases = {alias for service in SERVICES.values() if isinstance(service["networks"], dict)
               for alias in service["networks"].get("bus", {}).get("aliases", ())}  # fmt: skip
    settings = settings_of(IMAGE_ENVIRONMENT | PROGRAM_SERVICES["orders"]["environment"], secrets)
    urls = {str(url) for url in settings.nats_url}
    assert aliases == {f"nats-{number}.nats" for number in range(3)}
    assert urls == {f"nats://{name}:4222" for name in aliases}
    configurations = "".join(path.read_text(encoding="utf-8") for path in (DEPLOY / "nats").glob("*.conf"))
    configurations = re.sub(r"(?m)^\s*#.*$", "", configurations)
    needed = {name for name in re.findall(r"\$(\w+)", configurations) if name != "JS"}
    set_variables = {line.partition("=")[0] for line in (secrets / "nats.env").read_text(encoding="utf-8").splitlines()}
    for number in range(3):
        assert needed == set_variables | ({"NODE", "ROUTES_LISTEN"} & SERVICES[f"nats-{number}"]["environment"].keys())


def test_the_nats_nodes_listen_for_each_other_on_a_network_of_their_own(secrets: Path) -> None:
    """No other service is in it, and the addresses of the routes have the password that the nodes ask for."""
    members = {name for name, service in SERVICES.items() if "routes" in service["networks"]}
    assert members == {f"nats-{number}" for number in range(3)}
    password = (secrets / "nats_routes").read_text(encoding="utf-8")
    variables = dict(line.split("=", 1) for line in (secrets / "nats.env").read_text(encoding="utf-8").splitlines())
    assert variables["ROUTES_PASSWORD"] == password
    for number in range(3):
        service = SERVICES[f"nats-{number}"]
        (alias,) = service["networks"]["routes"]["aliases"]
        assert service["environment"]["ROUTES_LISTEN"] == f"{alias}:6222"
        assert variables[f"ROUTE_{number}"] == f"nats-route://routes:{password}@{alias}:6222"


def test_secrets_are_generated_once_and_ignored_by_git(secrets: Path) -> None:
    """A second run changes none of them. Only their owner can enter the folder."""
    of_analytics = yaml.safe_load((DEPLOY / "analytics/compose.yaml").read_text(encoding="utf-8"))["secrets"]
    expected = {Path(secret["file"]).name for secret in (COMPOSE["secrets"] | of_analytics).values()}
    before = {path.name: path.read_bytes() for path in secrets.iterdir()}
    not_deployed = {module for module in registry.MODULES if module not in MODULES}
    assert {name for name in before if name.rpartition("_")[2] not in not_deployed} == expected | {"nats.env", "nats_routes"}
    assert all(before.values())
    subprocess.run([secrets.parent / "secrets.sh"], check=True)
    assert {path.name: path.read_bytes() for path in secrets.iterdir()} == before
    assert secrets.stat().st_mode & 0o777 == 0o700
    assert "/deploy/secrets/" in (ROOT / ".gitignore").read_text(encoding="utf-8").splitlines()
    passwords = [value for name, value in before.items() if name.startswith(("nats_", "postgres_"))]
    assert len(set(passwords)) == len(passwords)


def test_only_the_proxy_and_grafana_are_reachable_from_outside() -> None:
    """Their ports are bound to the loopback address."""
    ports = {name: service["ports"] for name, service in SERVICES.items() if "ports" in service}
    assert ports == {"proxy": ["127.0.0.1:8080:8080"], "grafana": ["127.0.0.1:3000:3000"]}
    inside = {name for name, network in COMPOSE["networks"].items() if network.get("internal")}
    assert {name for name, service in SERVICES.items() if set(service["networks"]) - inside} == ports.keys()
