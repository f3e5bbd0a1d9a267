"""Whatever is asked of the server by the letter of its own description, it answers as described, and never with a 5xx."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.core.result import Ok
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from app.bootstrap import build_modules
from app.web.endpoints.contracts import DESCRIPTION as CONTRACTS
from app.web.endpoints.dead_letters import DESCRIPTION as DEAD_LETTERS
from app.web.endpoints.stripe_webhook import DESCRIPTION as WEBHOOKS
from app.web.spec import openapi
from config.environment import load
from modules.registry import MODULES
from tests.process.server import Server

pytestmark = pytest.mark.slow

CHECKS = [
    schemathesis.checks.not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
PATHS = openapi.document(build_modules(load({}, MODULES)), "0", [DEAD_LETTERS, CONTRACTS, WEBHOOKS])["paths"]
# A stream of events does not end by itself; tests/web has the look at it.
OPERATIONS = [(method.upper(), path) for path, item in PATHS.items() for method in item if not path.endswith("/stream")]
AS_OFTEN = settings(
    max_examples=20,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that has all it needs to answer, the secret for Stripe's signatures included."""
    server = Server(tmp_path_factory.mktemp("house"), STRIPE_WEBHOOK_SECRET="whsec_" + 32 * "0").start()
    yield server
    server.end()


@pytest.fixture(scope="module")
def described(system: Server) -> schemathesis.BaseSchema:
    """The server's own description."""
    return schemathesis.openapi.from_url(f"{system.url}/openapi.json")


@pytest.mark.parametrize(("method", "path"), OPERATIONS, ids=[" ".join(each) for each in OPERATIONS])
@pytest.mark.parametrize("mode", ["positive", "negative"])
def test_every_answer_is_as_described(
    described: schemathesis.BaseSchema, method: str, path: str, mode: str
) -> None:
    """Status, content type, headers and body; requests that fit the description, and requests that do not."""
    operation = described[path][method]

    @AS_OFTEN
    @given(operation.as_strategy(generation_mode=schemathesis.GenerationMode(mode)))
    def ask(case: schemathesis.Case[Any]) -> None:
        case.call_and_validate(checks=CHECKS)

    ask()


def test_every_path_of_the_server_is_asked(described: schemathesis.BaseSchema) -> None:
    """What is listed above is what the server describes."""
    found = set()
    for each in described.get_all_operations():
        assert isinstance(each, Ok)
        found.add((each.ok().method.upper(), each.ok().path))
    here = ("GET", "/openapi.json")  # where the description was read, and so not asked for again by the library
    assert {each for each in found if not each[1].endswith("/stream")} | {here} == set(OPERATIONS)
