"""Health, numbers, keys, and the page to try it all."""

from __future__ import annotations

import asyncio
from hashlib import sha256
from importlib import resources
from typing import Any, Literal

import pytest
from jsonschema import Draft202012Validator
from prometheus_client.parser import text_string_to_metric_families

from app.web.endpoints import docs
from app.web.endpoints import health as probes
from tests.web.conftest import KEY, Start, Web

NEW = {"owner": "o", "items": [{"n": 1}]}
OK = {"database": "ok", "bus": "ok"}
NO_BUS = {"database": "ok", "bus": "unavailable"}
NO_DATABASE = {"database": "unavailable", "bus": "ok"}
ONE_DATABASE = {"database:parcels": "ok", "database:other": "unavailable", "bus": "ok"}
NO_GATEWAY = {"database": "ok", "bus": "ok", "gateway": "open"}
DRIFTED = {"database": "ok", "bus": "ok", "topology": "consumer parcels on PARCELS: max_deliver is 3, not 5"}


@pytest.mark.parametrize(
    ("phase", "checks", "readyz", "health"),
    [
        ("ready", OK, (200, "ready"), (200, "ready")),
        ("ready", NO_BUS, (200, "degraded"), (503, "unavailable")),
        ("ready", NO_GATEWAY, (200, "degraded"), (200, "degraded")),
        ("ready", NO_DATABASE, (503, "unavailable"), (503, "unavailable")),
        ("ready", ONE_DATABASE, (503, "unavailable"), (503, "unavailable")),
        ("ready", DRIFTED, (503, "unavailable"), (200, "degraded")),
        ("starting", NO_DATABASE, (503, "starting"), (503, "starting")),
        ("starting", OK, (503, "starting"), (200, "degraded")),
        ("draining", OK, (503, "draining"), (200, "degraded")),
    ],
)
async def test_probes_tell_how_it_is(
    web: Web,
    phase: Literal["starting", "ready", "draining"],
    checks: dict[str, str],
    readyz: tuple[int, str],
    health: tuple[int, str],
) -> None:
    """Ready: it can take orders. Healthy: bus and database answer. Alive: always. All as it is described."""
    web.health.phase, web.health.says = phase, checks
    described = (await web.ask("GET", "/openapi.json")).json["paths"]
    for path, (status, word) in ("/readyz", readyz), ("/health", health):
        answer = await web.ask("GET", path)
        assert (answer.status, answer.json["checks"]) == (status, checks)
        assert answer.json["status" if status == 200 else "code"] == word
        if status == 200:
            schema = described[path]["get"]["responses"]["200"]["content"]["application/json"]["schema"]
            Draft202012Validator(schema).validate(answer.json)
            assert schema["properties"]["status"]["enum"] == ["ready", "degraded"]
    assert (await web.ask("GET", "/livez")).json == {"status": "ok"}


async def test_a_check_that_fails_or_hangs_is_not_well(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    """No answer is an answer, and it comes in time."""

    async def hang() -> Any:
        await asyncio.get_running_loop().create_future()

    web.health.trouble = RuntimeError("SELECT 1 on db-seven")
    for path in ("/readyz", "/health"):
        answer = await web.ask("GET", path)
        assert (answer.status, answer.json["code"]) == (503, "unavailable")
    monkeypatch.setattr(type(web.health), "checks", lambda self: hang())
    monkeypatch.setattr(probes, "CHECK_SECONDS_MAX", 0.01)
    assert (await web.ask("GET", "/readyz")).status == 503
    assert (await web.ask("GET", "/livez")).status == 200


async def test_metrics_are_readable(web: Web) -> None:
    """In the format that its type says."""
    answer = await web.ask("GET", "/metrics")
    assert answer.headers["Content-Type"].startswith("text/plain")
    assert list(text_string_to_metric_families(answer.body.decode()))


@pytest.mark.parametrize(
    "authorization", [None, "", "Bearer", "Bearer ", f"Basic {KEY}", f"Bearer {KEY}x", f"Bearer {KEY} x", "Bearer ä"]
)
async def test_without_a_good_key_everything_is_401(start: Start, authorization: str | None) -> None:
    """With a challenge, and before anything else is looked at: not even whether the path is there."""
    web = await start(is_locked=True)
    headers = {} if authorization is None else {"Authorization": authorization}
    for method, path in (
        ("POST", "/v1/parcels"),
        ("GET", "/v1/parcels/p"),
        ("GET", "/nowhere"),
        ("DELETE", "/v1/parcels"),
    ):
        answer = await web.ask(method, path, headers=headers)
        assert (answer.status, answer.json["code"]) == (401, "unauthorized")
        assert answer.headers["WWW-Authenticate"].startswith("Bearer ")
    assert web.service.reads == 0


async def test_with_a_good_key_it_is_as_usual(start: Start) -> None:
    """The scheme's name is written as one likes."""
    web = await start(is_locked=True)
    for scheme in ("Bearer", "bearer"):
        answer = await web.ask("POST", "/v1/parcels", json=NEW, headers={"Authorization": f"{scheme} {KEY}"})
        assert answer.status == 202


async def test_probes_metrics_and_the_page_need_no_key(start: Start) -> None:
    """Whoever watches over the process has none, and a browser that opens the page sends none."""
    web = await start(is_locked=True)
    for path in ("/livez", "/readyz", "/health", "/metrics", "/docs", "/docs/docs.js", "/openapi.json"):
        assert (await web.ask("GET", path)).status == 200


async def test_the_page_comes_whole_and_asks_nobody_else(web: Web) -> None:
    """Every file that it names is here, and its policy lets nothing else in."""
    page = (await web.ask("GET", "/docs")).body.decode()
    for path in ("/docs/swagger-ui.css", "/docs/docs.css", "/docs/swagger-ui-bundle.js", "/docs/docs.js"):
        assert f'"{path}"' in page
        answer = await web.ask("GET", path)
        assert answer.status == 200
        policy = answer.headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy
        assert "script-src 'self';" in policy
        assert "http" not in policy
    assert "//" not in page
    assert "<script>" not in page


async def test_a_file_that_is_known_is_not_sent_again(web: Web) -> None:
    """Its entity tag is enough."""
    etag = (await web.ask("GET", "/docs/docs.js")).headers["ETag"]
    answer = await web.ask("GET", "/docs/docs.js", headers={"If-None-Match": etag})
    assert (answer.status, answer.body) == (304, b"")


def test_what_is_vendored_is_what_the_manifest_says() -> None:
    """Nobody changed a byte of it, added a file or took one away."""
    version, manifest = docs.vendored()
    folder = resources.files("app.web").joinpath("static/swagger-ui")
    found = {f.name: sha256(f.read_bytes()).hexdigest() for f in folder.iterdir() if f.name != "manifest.json"}
    assert found == manifest
    assert {"LICENSE", "NOTICE", "swagger-ui-bundle.js", "swagger-ui.css"} <= manifest.keys()
    assert version.encode() in folder.joinpath("swagger-ui-bundle.js").read_bytes()
