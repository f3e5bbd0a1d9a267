"""Probes, metrics, API keys and the documentation page."""

from __future__ import annotations

import asyncio
import gzip
import re
from hashlib import sha256
from importlib import resources
from typing import Any, Literal

import pytest
from jsonschema import Draft202012Validator
from prometheus_client.parser import text_string_to_metric_families

from app.telemetry.metrics import Metrics
from app.web.endpoints import docs
from app.web.endpoints import health as probes
from app.web.endpoints.health import ReadinessMetrics
from app.web.responses.packaged import accepts_gzip
from tests.web.conftest import KEY, FakeHealth, Start, Web

NEW = {"owner": "o", "items": [{"n": 1}]}
OK = {"database": "ok", "bus": "ok"}
NO_BUS = {"database": "ok", "bus": "unavailable"}
NO_DATABASE = {"database": "unavailable", "bus": "ok"}
ONE_DATABASE = {"database:shipments": "ok", "database:other": "unavailable", "bus": "ok"}
NO_GATEWAY = {"database": "ok", "bus": "ok", "gateway": "open"}
DRIFTED = {"database": "ok", "bus": "ok", "topology": "consumer shipments on SHIPMENTS: max_deliver is 3, not 5"}


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
async def test_the_probes_report_the_phase_and_the_checks(
    web: Web,
    phase: Literal["starting", "ready", "draining"],
    checks: dict[str, str],
    readyz: tuple[int, str],
    health: tuple[int, str],
) -> None:
    """Ready: the process accepts requests. Healthy: bus and databases answer. Alive: always. All as described."""
    web.health.phase, web.health.results = phase, checks
    document = (await web.request("GET", "/openapi.json")).json
    for path, (status, word) in ("/readyz", readyz), ("/health", health):
        response = await web.request("GET", path)
        assert (response.status, response.json["checks"]) == (status, checks)
        assert response.json["status" if status == 200 else "code"] == word
        if status == 200:
            described = document["paths"][path]["get"]["responses"]["200"]["content"]["application/json"]["schema"]
            assert described == {"$ref": "#/components/schemas/Health"}
            schema = document["components"]["schemas"]["Health"]
            Draft202012Validator(schema).validate(response.json)
            assert schema["properties"]["status"]["enum"] == ["ready", "degraded"]
    assert (await web.request("GET", "/livez")).json == {"status": "ok"}


async def test_a_check_that_fails_or_hangs_is_unavailable(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    """The probe itself always answers in time."""

    async def hang() -> Any:
        await asyncio.get_running_loop().create_future()

    web.health.failure = RuntimeError("SELECT 1 on db-seven")
    for path in ("/readyz", "/health"):
        response = await web.request("GET", path)
        assert (response.status, response.json["code"]) == (503, "unavailable")
    monkeypatch.setattr(type(web.health), "checks", lambda self: hang())
    monkeypatch.setattr(probes, "CHECK_SECONDS_MAX", 0.01)
    assert (await web.request("GET", "/readyz")).status == 503
    assert (await web.request("GET", "/livez")).status == 200


async def test_metrics_are_in_prometheus_text_format(web: Web) -> None:
    """The content type declares it, and Prometheus' own parser reads them."""
    response = await web.request("GET", "/metrics")
    assert response.headers["Content-Type"].startswith("text/plain")
    assert list(text_string_to_metric_families(response.body.decode()))


@pytest.mark.parametrize(
    "authorization", [None, "", "Bearer", "Bearer ", f"Basic {KEY}", f"Bearer {KEY}x", f"Bearer {KEY} x", "Bearer ä"]
)
async def test_without_a_valid_key_every_request_is_401(start: Start, authorization: str | None) -> None:
    """With a challenge, and before anything else is checked, even whether the path exists."""
    web = await start(requires_key=True)
    headers = {} if authorization is None else {"Authorization": authorization}
    for method, path in (
        ("POST", "/v1/shipments"),
        ("GET", "/v1/shipments/p"),
        ("GET", "/nowhere"),
        ("DELETE", "/v1/shipments"),
    ):
        response = await web.request(method, path, headers=headers)
        assert (response.status, response.json["code"]) == (401, "unauthorized")
        assert response.headers["WWW-Authenticate"].startswith("Bearer ")
    assert web.service.reads == 0


async def test_a_valid_key_is_accepted(start: Start) -> None:
    """The name of the scheme is case-insensitive."""
    web = await start(requires_key=True)
    for scheme in ("Bearer", "bearer"):
        headers = {"Authorization": f"{scheme} {KEY}"}
        assert (await web.request("POST", "/v1/shipments", json=NEW, headers=headers)).status == 202


async def test_probes_metrics_and_documentation_need_no_key(start: Start) -> None:
    """Monitoring has no key, and a browser that opens the page cannot send one."""
    web = await start(requires_key=True)
    for path in ("/livez", "/readyz", "/health", "/metrics", "/docs", "/docs/docs.js", "/openapi.json"):
        assert (await web.request("GET", path)).status == 200


async def test_the_documentation_page_loads_nothing_from_elsewhere(web: Web) -> None:
    """Every file that it names is served here, and its Content-Security-Policy allows no other source."""
    page = (await web.request("GET", "/docs")).body.decode()
    for path in ("/docs/swagger-ui.css", "/docs/docs.css", "/docs/swagger-ui-bundle.js", "/docs/docs.js"):
        (version,) = re.findall(rf'"{re.escape(path)}\?v=([0-9a-f]{{32}})"', page)
        response = await web.request("GET", f"{path}?v={version}")
        assert response.headers["Cache-Control"] == "public, max-age=31536000, immutable"
        for other in (path, f"{path}?v=0"):
            assert (await web.request("HEAD", other)).headers["Cache-Control"] == "no-cache"
        assert response.status == 200
        policy = response.headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy
        assert "script-src 'self';" in policy
        assert "http" not in policy
    assert "//" not in page
    assert "<script>" not in page


async def test_a_file_with_a_known_entity_tag_is_not_sent_again(web: Web) -> None:
    """304 without a body."""
    etag = (await web.request("GET", "/docs/docs.js")).headers["ETag"]
    response = await web.request("GET", "/docs/docs.js", headers={"If-None-Match": etag})
    assert (response.status, response.body) == (304, b"")


async def test_a_file_is_compressed_for_a_client_that_takes_it(web: Web) -> None:
    """The page with its files is 1.7 MB otherwise; each form has an entity tag of its own."""
    path, sizes = "/docs/swagger-ui-bundle.js", {}
    for accepted in ("gzip", "identity"):
        async with web.session.get(web.client.make_url(path), headers={"Accept-Encoding": accepted}, auto_decompress=False) as got:
            sizes[accepted] = len(body := await got.read())
            assert (got.headers.get("Content-Encoding"), got.headers["Vary"]) == ("gzip" if accepted == "gzip" else None, "Accept-Encoding")
            assert (gzip.decompress(body) if accepted == "gzip" else body).startswith(b"/*!")
            tag = got.headers["ETag"]
        known = {"Accept-Encoding": accepted, "If-None-Match": tag}
        assert (await web.request("GET", path, headers=known)).status == 304
    assert sizes["gzip"] * 3 < sizes["identity"]


@pytest.mark.parametrize(
    ("header", "accepts"),
    [
        *((header, True) for header in ("gzip", "br, gzip", "GZIP;q=0.5", "*", "gzip;q=0.001")),
        *((header, False) for header in ("", "br", "identity", "gzip;q=0", "gzip; q=0.0, *", "*;q=0", "xgzip")),
    ],
)
def test_gzip_is_accepted_as_the_standard_says(header: str, accepts: bool) -> None:
    """RFC 9110, section 12.5.3: a quality of 0 refuses, and a star stands for codings that are not named."""
    assert accepts_gzip(header) is accepts


def test_the_vendored_files_match_their_manifest() -> None:
    """No byte is changed, no file is added or missing."""
    version, manifest = docs.vendored_files()
    folder = resources.files("app.web.spec").joinpath("ui/swagger-ui")
    files = {file.name: file.read_bytes() for file in folder.iterdir() if file.name != "manifest.json"}
    files = {name.removesuffix(".gz"): gzip.decompress(body) if name.endswith(".gz") else body for name, body in files.items()}
    assert {name: sha256(body).hexdigest() for name, body in files.items()} == manifest
    assert {"LICENSE", "NOTICE", "swagger-ui-bundle.js", "swagger-ui.css"} <= manifest.keys()
    assert version.encode() in files["swagger-ui-bundle.js"]


async def test_readiness_is_a_metric_and_each_check_is_one() -> None:
    """A check that fails is 1, and 0 again when it is no longer named; without results the process is not ready."""
    health, metrics = FakeHealth(), Metrics()
    readiness = ReadinessMetrics(health, metrics)

    async def shown() -> tuple[float, dict[str, float]]:
        await readiness.sample()
        return metrics.ready.value, {labels[0]: gauge.value for labels, gauge in metrics.health_check_failed.items()}

    assert await shown() == (1, {"database": 0, "bus": 0})
    health.results["topology"] = "orders: max_msgs is 5"
    assert await shown() == (0, {"database": 0, "bus": 0, "topology": 1})
    del health.results["topology"]
    health.results["bus"] = "unavailable"
    assert await shown() == (1, {"database": 0, "bus": 1, "topology": 0})
    health.phase = "draining"
    assert (await shown())[0] == 0
    health.failure = TimeoutError()
    assert (await shown())[0] == 0
