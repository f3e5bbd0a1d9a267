"""Generated requests: the server answers every request of its OpenAPI document as described, never with a 5xx."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings

from app.bootstrap import build_modules, described_routes
from app.web.spec import openapi
from config.environment import load
from modules.registry import MODULES
from tests.examples import examples
from tests.process.server import Server

if TYPE_CHECKING:  # it takes half a second to import, and every worker of pytest imports this file
    import schemathesis

pytestmark = pytest.mark.slow

_MODULES = build_modules(load({}, MODULES))
PATHS = openapi.document(_MODULES, "0", described_routes(_MODULES))["paths"]
# A stream of events does not end by itself; tests/web covers it.
OPERATIONS = [(method.upper(), path) for path, item in PATHS.items() for method in item if not path.endswith("/stream")]
GENERATION = settings(
    max_examples=examples(20),
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture(scope="module", params=["0", "1"], ids=["one process", "HTTP worker"])
def server(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Server]:
    """A server with all settings that its routes need, including the secret of the Stripe webhook."""
    settings = {"STRIPE_WEBHOOK_SECRET": "whsec_" + 32 * "0", "HTTP_WORKERS": request.param}
    server = Server(tmp_path_factory.mktemp("server"), **settings).start()
    yield server
    server.end()


@pytest.fixture(scope="module")
def checks() -> list[Callable[..., Any]]:
    """What each response is checked for."""
    from schemathesis.checks import not_a_server_error
    from schemathesis.specs.openapi.checks import (
        content_type_conformance,
        response_headers_conformance,
        response_schema_conformance,
        status_code_conformance,
    )

    return [
        not_a_server_error,
        status_code_conformance,
        content_type_conformance,
        response_headers_conformance,
        response_schema_conformance,
    ]


@pytest.fixture(scope="module")
def schema(server: Server) -> schemathesis.BaseSchema:
    """The OpenAPI document of the server."""
    import schemathesis

    schemathesis.serializer.alias("application/x-ndjson", "text/plain")
    return schemathesis.openapi.from_url(f"{server.url}/openapi.json")


@pytest.mark.parametrize(("method", "path"), OPERATIONS, ids=[" ".join(each) for each in OPERATIONS])
@pytest.mark.parametrize("mode", ["positive", "negative"])
def test_every_response_matches_the_openapi_document(
    schema: schemathesis.BaseSchema, checks: list[Callable[..., Any]], method: str, path: str, mode: str
) -> None:
    """Status, content type, headers and body, for valid and for invalid requests."""
    from schemathesis import GenerationMode

    operation = schema[path][method]

    @GENERATION
    @given(operation.as_strategy(generation_mode=GenerationMode(mode)))
    def send(case: schemathesis.Case[Any]) -> None:
        case.call_and_validate(checks=checks)

    send()


def test_every_path_of_the_server_is_covered(schema: schemathesis.BaseSchema) -> None:
    """`OPERATIONS` is the list of the operations in the OpenAPI document of the server."""
    from schemathesis.core.result import Ok

    found = set()
    for each in schema.get_all_operations():
        assert isinstance(each, Ok)
        found.add((each.ok().method.upper(), each.ok().path))
    excluded = ("GET", "/openapi.json")  # the library has read the document there and omits the operation
    assert {each for each in found if not each[1].endswith("/stream")} | {excluded} == set(OPERATIONS)
