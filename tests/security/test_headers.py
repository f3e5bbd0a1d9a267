"""The headers that keep answers out of caches, and browsers from taking an answer for a page."""

from __future__ import annotations

import asyncio
from email.parser import BytesHeaderParser
from email.policy import HTTP

from tests.security.conftest import Program

DOCUMENTATION = "/docs"
"""Its files are the same for every caller, and may be cached."""

KEY = b"Authorization: Bearer operator-key-0123456789\r\n"
HOST = b"Host: localhost\r\nConnection: close\r\n"
JSON = b"Content-Type: application/json\r\n"
BODY = b'{"on_hand": 1, "unit_price": {"amount": 1, "currency": "EUR"}}'
LENGTH = b"Content-Length: %d\r\n" % len(BODY)
REQUESTS = {
    "a redirect to the page": (302, b"GET / HTTP/1.1\r\n" + HOST),
    "a redirect to the usual path": (308, b"GET /v1/orders/ HTTP/1.1\r\n" + HOST + KEY),
    "two slashes": (308, b"GET //v1/orders HTTP/1.1\r\n" + HOST + KEY),
    "a change": (200, b"PUT /v1/inventory/p HTTP/1.1\r\n" + HOST + KEY + JSON + LENGTH),
    "HEAD": (200, b"HEAD /v1/orders HTTP/1.1\r\n" + HOST + KEY),
    "a preflight": (204, b"OPTIONS /v1/orders HTTP/1.1\r\n" + HOST + b"Origin: https://a.example\r\nAccess-Control-Request-Method: GET\r\n"),
    "no key": (401, b"GET /v1/orders HTTP/1.1\r\n" + HOST),
    "a wrong role": (403, b"GET /v1/orders HTTP/1.1\r\n" + HOST + KEY.replace(b"operator", b"metrics")),
    "no route": (404, b"GET /nothing HTTP/1.1\r\n" + HOST + KEY),
    "no method": (405, b"DELETE /v1/orders HTTP/1.1\r\n" + HOST + KEY),
    "no such file": (401, b"GET /docs/../server.py HTTP/1.1\r\n" + HOST),
    "CONNECT": (404, b"CONNECT a.example:443 HTTP/1.1\r\n" + HOST),
    "a path that is no text": (400, b"GET /v1/orders/%FF HTTP/1.1\r\n" + HOST + KEY),
    "not JSON": (400, b"POST /v1/orders HTTP/1.1\r\n" + HOST + KEY + JSON + LENGTH),
    "too large": (413, b"POST /v1/orders HTTP/1.1\r\n" + HOST + KEY + JSON + b"Content-Length: 9000000\r\n"),
    "no JSON type": (415, b"POST /v1/orders HTTP/1.1\r\n" + HOST + KEY + b"Content-Type: text/html\r\n" + LENGTH),
    "a webhook without a secret": (503, b"POST /v1/payments/webhooks/stripe HTTP/1.1\r\n" + HOST + LENGTH),
    "no HTTP": (400, b"GARBAGE\r\n"),
    "a header that is none": (400, b"GET / HTTP/1.1\r\n" + HOST + b"No Header: x\r\n"),
    "two lengths": (400, b"POST /v1/orders HTTP/1.1\r\n" + HOST + KEY + b"Content-Length: 1\r\nContent-Length: 2\r\n"),
    "length and chunks": (400, b"POST /v1/orders HTTP/1.1\r\n" + HOST + KEY + b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n"),
    "many headers": (431, b"GET / HTTP/1.1\r\n" + HOST + b"".join(b"X-%d: y\r\n" % number for number in range(300))),
    "a long line": (431, b"GET /" + b"a" * 20_000 + b" HTTP/1.1\r\n" + HOST),
}
"""By what it is: the status, and the request without its last line and body."""


async def send(program: Program, request: bytes) -> tuple[int, dict[str, str], bytes]:
    """Send *request* as it is; return status, headers and body."""
    host, port = program.address.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(request)
    async with asyncio.timeout(30):
        answer = await reader.read(1_000_000)
    writer.close()
    head, _, body = answer.partition(b"\r\n\r\n")
    line, _, fields = head.partition(b"\r\n")
    return int(line.split()[1]), dict(BytesHeaderParser(policy=HTTP).parsebytes(fields).items()), body


async def test_every_answer_says_that_it_is_no_page_and_not_to_be_kept(program: Program) -> None:
    """Redirects, refusals by a route, by the router and by the HTTP parser; none names a version or a library."""
    for kind, (expected, request) in REQUESTS.items():
        status, headers, body = await send(program, request + b"\r\n" + (BODY if b"Content-" in request else b""))
        assert status == expected, kind
        kept = (headers["Cache-Control"], headers["X-Content-Type-Options"], headers["Server"])
        assert kept == ("no-store", "nosniff", "fulfilment"), kind
        assert (status >= 400) == (headers.get("Content-Type") == "application/problem+json"), kind
        assert not any(word in body.lower() for word in (b"aiohttp", b"traceback", b"<html")), kind
        if status in {302, 308}:
            assert headers["Location"] in {"/docs", "/v1/orders"}, kind


async def test_no_request_is_redirected_to_another_site(program: Program) -> None:
    """A browser takes ``//host`` and ``/\\host`` for another site."""
    for path in (b"/\\a.example/", b"//a.example/docs/", b"/%2fa.example/docs/", b"/%5Ca.example//v1/orders/", b"///a.example"):
        _, headers, _ = await send(program, b"GET " + path + b" HTTP/1.1\r\n" + HOST + KEY + b"\r\n")
        assert "Location" not in headers, path


async def test_pages_can_run_and_load_their_own_files_only(program: Program) -> None:
    """Every page and script: no frame around it, no inline script, no other site, no foreign form, no base."""
    pages = {path for method, path in program.routes() if method == "GET" and path.startswith((DOCUMENTATION, "/console"))}
    seen = 0
    for template in sorted(pages):
        names = ["docs.js", "docs.css", "swagger-ui.css"] if "{name}" in template else [""]
        for name in names:
            reply = await program.send("", "GET", template.replace("{name}", name))
            if reply.status != 200:
                continue
            seen += 1
            policy = dict(part.strip().partition(" ")[::2] for part in reply.headers["Content-Security-Policy"].split(";"))
            assert (policy["default-src"], policy["script-src"]) == ("'none'", "'self'")
            assert {policy[name] for name in ("base-uri", "frame-ancestors")} == {"'none'"}
            assert policy["form-action"] in {"'none'", "'self'"}  # the console has forms
            assert "http" not in reply.headers["Content-Security-Policy"]
            assert (reply.headers["X-Content-Type-Options"], reply.headers["Referrer-Policy"]) == ("nosniff", "no-referrer")
    assert seen >= 3


async def test_no_route_sends_data_that_a_cache_may_keep(program: Program) -> None:
    """Every route of the program that reads, with the streams; a route that is added is asked, too."""
    await program.send("stock", "PUT", "/v1/inventory/p", {"on_hand": 1, "unit_price": {"amount": 1, "currency": "EUR"}})
    body = {"customer_id": "c", "items": [{"product_id": "p", "quantity": 2}]}
    order_id = (await program.send("shop", "POST", "/v1/orders", body)).body["order_id"]
    ids = {"{order_id}": order_id, "{product_id}": "p", "{id}": "1"}
    sent = {}
    for method, template in program.routes():
        path = template
        for name, id in ids.items():
            path = path.replace(name, id)
        if path == "/" or path.startswith((DOCUMENTATION, "/console")):
            continue
        reply = await program.send("operator", method, path)
        sent[f"{method} {path}"] = (reply.headers.get("Cache-Control"), reply.headers.get("X-Content-Type-Options"))
    assert {path for path in sent if path.endswith(("/stream", "/asyncapi.json"))} != set()
    assert {path: found for path, found in sent.items() if found != ("no-store", "nosniff")} == {}
