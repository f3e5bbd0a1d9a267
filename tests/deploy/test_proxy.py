"""deploy/proxy: nginx forwards every route of the program to the module that has it, as that kind of route needs."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.application import Application
from app.bootstrap import GATEWAY_ROUTES, build_modules
from app.web.requests import ndjson
from config.settings import Settings
from modules.routes import ImportRoute, ListStreamRoute, Route, StreamRoute
from tests.architecture.tree import ROOT
from tests.deploy.deployed import MODULES

FOLDER = ROOT / "deploy/proxy"
CONFIGURATION = re.sub(r"(?m)#.*$", "", (FOLDER / "nginx.conf").read_text(encoding="utf-8"))
LOCATIONS: list[tuple[str, str, str]] = re.findall(r"location (=|~|) ?([^@ ]\S*)\s*\{((?:[^{}]|\{[^{}]*\})*)\}", CONFIGURATION)
"""Kind of match, pattern and body of each."""
OF_THE_PROCESS = {"/livez", "/readyz", "/health", "/metrics"}
"""Probes and metrics of one process: the operator asks the process itself."""

OF_EACH = ("/v1/dead-letters", "/v1/contracts", "/v1/audit", "/v1/history", "/v1/overview", "/v1/order-records", "/v1/system")
"""Each process has these routes."""

MODULE_ROUTES: list[tuple[str, Route]] = [
    (module.name, route)
    for module in build_modules(Settings(known_modules=MODULES, modules=MODULES))
    for route in module.routes
]
OF_GATEWAYS = {path: module for module, found in GATEWAY_ROUTES.items() for each in found for path in each.paths}
UNITS = {"": 1, "k": 1024, "m": 1024**2}


def location_of(path: str) -> str:
    """Return the body of the location that nginx chooses for *path*: exact, else the first pattern, else the longest prefix."""
    exact = [body for kind, pattern, body in LOCATIONS if kind == "=" and pattern == path]
    patterns = [body for kind, pattern, body in LOCATIONS if kind == "~" and re.search(pattern, path)]
    prefixes = sorted((pattern, body) for kind, pattern, body in LOCATIONS if not kind and path.startswith(pattern))
    return (exact + patterns + [body for _, body in reversed(prefixes)])[0]


def destination(body: str) -> str | None:
    """Return the upstream to which a location with this *body* forwards, or None if it does not forward."""
    for name in re.findall(r"include ([\w.-]+);", body):
        body += (FOLDER / name).read_text(encoding="utf-8")
    found = re.search(r"proxy_pass http://(\S+);", body)
    return None if found is None else found[1]


def paths_of_the_program(tmp_path: Path) -> Iterator[str]:
    """Yield the path template of every route of the program with the deployed modules, but for the one that catches the rest."""
    settings = Settings(known_modules=MODULES, modules=MODULES, database_url=f"sqlite:///{tmp_path}/test.db")
    app = Application(settings)._web.app
    assert app is not None
    for resource in app.router.resources():
        if resource.canonical != "/{rest}":
            yield resource.canonical


async def test_every_route_is_forwarded_to_the_module_that_has_it(tmp_path: Path) -> None:
    """A route that is new in the program has no location here before it is written; probes and metrics stay inside."""
    paths = set(paths_of_the_program(tmp_path))
    found = {path: destination(location_of(path.replace("{", "").replace("}", ""))) for path in sorted(paths)}
    forwarded = {path for path, upstream in found.items() if upstream is not None}
    assert paths - forwarded == OF_THE_PROCESS
    owners = {**OF_GATEWAYS, **{route.path: name for name, route in MODULE_ROUTES}}
    assert owners.keys() <= paths
    assert {path: found[path] for path in owners} == owners
    # Each process has these. Where its answer is about itself only, the query or the search over all chooses the process.
    rest = {path: found[path] for path in forwarded - owners.keys()}
    of_each = {path for path in rest if path.startswith(OF_EACH)}
    assert {rest[path] for path in of_each} == {"$module_asked", "$module_of_the_consumer", "modules"}
    pages = {path for path in rest if path.startswith("/console")}
    assert {rest[path] for path in pages} == {"console"}
    assert {rest[path] for path in rest.keys() - of_each - pages} == {"orders"}


def test_paths_that_are_no_routes_are_not_forwarded() -> None:
    """Neither are names that only begin like one of another module."""
    for path in "/v1/nonsense", "/v1/dead-letters-of-all", "/v2/orders", "/admin":
        assert destination(location_of(path)) is None, path


STREAMS = [route.path for _, route in MODULE_ROUTES if isinstance(route, StreamRoute | ListStreamRoute)]


@pytest.mark.parametrize("name", ["upstreams.conf", "compose/upstreams.conf"])
def test_the_console_is_there_while_a_process_is_not(name: str) -> None:
    """That of orders, which has the most to show; without it that of another process, which shows what is out of reach."""
    (upstream,) = re.findall(r"upstream console \{([^}]*)\}", (FOLDER / name).read_text(encoding="utf-8"))
    servers = re.findall(r"server (\w+):8080 ([^;]*);", upstream)
    assert {server: "backup" in options for server, options in servers} == {name: name != "orders" for name in MODULES}


@pytest.mark.parametrize("path", [*STREAMS, "/v1/overview/stream", "/console/live"])
def test_a_stream_is_not_buffered(path: str) -> None:
    """Each event is forwarded at once."""
    assert "proxy_buffering off;" in location_of(path.replace("{", "").replace("}", ""))


@pytest.mark.parametrize("path", [route.path for _, route in MODULE_ROUTES if isinstance(route, ImportRoute)])
def test_an_import_passes_with_its_whole_body(path: str) -> None:
    """The program's own limit, with its problem document, comes first."""
    number, unit = re.findall(r"client_max_body_size (\d+)([km]?);", location_of(path))[0]
    assert int(number) * UNITS[unit] > ndjson.BODY_BYTES_MAX


def test_every_file_of_the_configuration_is_deployed() -> None:
    """Compose mounts what nginx.conf includes; Kubernetes is compared with its kustomization."""
    included = set(re.findall(r"include ([\w.-]+);", CONFIGURATION))
    compose = (ROOT / "deploy/compose.yaml").read_text(encoding="utf-8")
    mounted = set(re.findall(r"\./proxy/(?:compose/)?[\w.-]+:/etc/nginx/([\w.-]+):ro", compose))
    kustomization = (FOLDER / "kustomization.yaml").read_text(encoding="utf-8")
    assert mounted == {"nginx.conf", *included}
    assert all(name in kustomization for name in mounted)
    assert {path.name for path in FOLDER.rglob("*.conf")} == mounted


def test_no_location_is_declared_twice() -> None:
    """nginx does not start with two of them; a merge of two changes once made two."""
    named = [(kind, pattern) for kind, pattern, _ in LOCATIONS]
    assert sorted(set(named)) == sorted(named)
