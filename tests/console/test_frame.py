"""What all pages share: the policy, the log-in, the session, the CSRF token, the roles, and the files."""

from __future__ import annotations

import hashlib
import re
from http.cookies import SimpleCookie
from urllib.parse import urlencode

import pytest

from app.web.access.authentication import Authenticator
from app.web.access.limits import WRONG_KEYS_MAX
from app.web.console import session, static_files
from app.web.console.session import COOKIE, SESSION_SECONDS, Sessions
from config.api_keys import MODULE, ROLES, ApiKey
from tests.console.conftest import KEYS, Browser, Served

EVENT_HANDLER = re.compile(r"on[a-z]+|hx-on.*")


def pages(served: Served) -> list[str]:
    """Return the path of every page without parameters."""
    app = served.application._web.app
    assert app is not None
    found = {route.resource.canonical for route in app.router.routes() if route.method == "GET" and route.resource is not None}
    return sorted(path for path in found if path.startswith("/console") and "{" not in path and not path.endswith("/live") and "/static/" not in path)


@pytest.mark.slow
async def test_no_page_has_a_script_or_a_style_of_its_own(served: Served) -> None:
    """Every page as every role: the strict policy, no inline script, handler or style, nothing of another origin, one heading."""
    for role in sorted({*ROLES} - {MODULE}):
        browser = await served.as_role(role)
        for path in pages(served):
            seen = await browser.get(path)
            if not seen.headers.get("Content-Type", "").startswith("text/html"):
                continue
            assert seen.headers["Content-Security-Policy"] == static_files.POLICY
            assert "unsafe" not in static_files.POLICY
            elements = seen.elements
            assert elements.inline_scripts == 0
            assert not elements.all("style")
            assert len(elements.all("h1")) == 1, path
            assert elements.all("html", lang="en")
            for tag, own in elements.found:
                assert "style" not in own, (path, tag)
                assert not any(EVENT_HANDLER.fullmatch(name) for name in own), (path, tag)
                for name in "src", "href", "action":
                    assert own.get(name, "").startswith(("/", "#", "?", "data:,")) or name not in own, (path, own)


async def test_without_a_session_every_page_leads_to_the_log_in_and_back(served: Served) -> None:
    """The address that was asked for, with its filters, is what the log-in opens; no other site ever is."""
    browser = served.browser()
    seen = await browser.get("/console?a=b%26c")
    assert (seen.status, seen.headers["Location"]) == (303, "/console/login?next=%2Fconsole%3Fa%3Db%2526c")
    seen = await browser.get(seen.headers["Location"])
    assert seen.elements.all("input", type="hidden", name="next", value="/console?a=b%26c")
    for target, location in (
        ("/console?a=b%26c", "/console?a=b%26c"),
        ("https://a.example/console", "/console"),
        ("//a.example/console", "/console"),
        ("/console\\@a.example", "/console"),
        ("/consoles", "/console"),
        ("/console\r\nX: y", "/console"),
    ):
        seen = await browser.post("/console/login", {"key": "operator-key-0123456789", "next": target})
        assert (seen.status, seen.headers["Location"]) == (303, location)


@pytest.mark.parametrize(("headers", "is_secure"), [({}, False), ({"X-Forwarded-Proto": "https"}, True)])
async def test_the_cookie_is_kept_from_scripts_and_from_other_sites(
    served: Served, headers: dict[str, str], is_secure: bool
) -> None:
    """HttpOnly, SameSite=Strict, 12 hours, for the console alone, and Secure where the browser uses https."""
    seen = await served.browser().post("/console/login", {"key": "viewer-key-0123456789"}, **headers)
    cookie = SimpleCookie(seen.cookie)[COOKIE]
    assert cookie["httponly"] is True
    assert cookie["samesite"] == "Strict"
    assert cookie["path"] == "/console"
    assert cookie["max-age"] == str(12 * 3600)
    assert bool(cookie["secure"]) is is_secure
    assert "viewer-key" not in seen.cookie


@pytest.mark.slow
async def test_a_session_ends_with_its_key(served: Served) -> None:
    """A key that is removed or replaced ends its sessions at the reload; the sessions of other keys go on."""
    removed, replaced, other = [await served.as_role(name) for name in ("stock", "viewer", "operator")]
    lines = [line.replace("viewer-key", "viewer-new") for line in KEYS if not line.startswith("stock:")]
    served.keys.write_text("\n".join(lines))
    served.application.reload(served.settings())
    for browser in removed, replaced:
        seen = await browser.get("/console")
        assert (seen.status, seen.headers["Location"]) == (303, "/console/login?ended=1")
        assert "Your session has ended" in (await browser.get(seen.headers["Location"])).words
    assert (await other.get("/console")).status == 200


async def test_log_out_ends_the_session_of_a_copied_cookie_too(served: Served) -> None:
    """The process that logged out accepts the cookie no longer."""
    browser = await served.as_role("viewer")
    seen = await browser.submit("/console", "/console/logout")
    assert (seen.status, seen.headers["Location"]) == (303, "/console/login")
    assert SimpleCookie(seen.cookie)[COOKIE].value == ""
    assert (await browser.get("/console")).status == 303


async def test_a_form_without_the_token_of_its_session_does_nothing(served: Served) -> None:
    """Without a token, with another session's, and from a page of another site."""
    browser, other = await served.as_role("viewer"), await served.as_role("viewer")
    (foreign, *_) = {own["value"] for own in (await other.get("/console")).elements.all("input", name="csrf")}
    for form in {}, {"csrf": ""}, {"csrf": foreign}, {"csrf": "\u00e9"}:
        seen = await browser.post("/console/logout", form)
        assert (seen.status, "nothing was done" in seen.words) == (403, True)
    assert (await browser.get("/console")).status == 200
    seen = await served.browser().post("/console/login", {"key": "viewer-key-0123456789"}, **{"Sec-Fetch-Site": "cross-site"})
    assert (seen.status, seen.cookie) == (403, "")


@pytest.mark.slow
async def test_wrong_keys_are_limited_as_those_of_the_api_are(served: Served) -> None:
    """They count together; the page shows the refusal, without the key."""
    browser = served.browser()
    for _ in range(WRONG_KEYS_MAX - 1):
        assert (await browser.get("/console/login")).status == 200
        assert (await browser.post("/console/login", {"key": "a-wrong-key-0123456789"})).status == 401
    async with served.session.get(f"{served.address}/v1/orders", headers={"Authorization": "Bearer x"}) as answer:
        assert answer.status == 401
    seen = await browser.post("/console/login", {"key": "a-wrong-key-0123456789"})
    assert (seen.status, "a-wrong-key" in seen.text) == (429, False)
    assert seen.elements.all("p", role="alert")


@pytest.mark.slow
async def test_a_key_for_processes_opens_nothing(served: Served) -> None:
    """With the role module one process asks another one for a person; no person has such a key."""
    seen = await served.browser().post("/console/login", {"key": "module-key-0123456789"})
    assert (seen.status, seen.cookie) == (403, "")


@pytest.mark.slow
async def test_a_link_of_another_site_opens_the_page_of_a_person_who_has_logged_in(served: Served) -> None:
    """A browser sends no SameSite=Strict cookie with it; the page asks for itself again, and that request has the cookie."""
    browser = served.browser()
    seen = await browser.get("/console?a=b", **{"Sec-Fetch-Site": "cross-site"})
    assert seen.status == 200
    assert seen.elements.all("meta", content="0", **{"http-equiv": "refresh"})
    assert (await browser.get("/console?a=b", **{"Sec-Fetch-Site": "same-origin"})).status == 303


@pytest.mark.slow
async def test_a_script_that_asks_after_the_session_has_ended_opens_the_log_in(served: Served) -> None:
    """htmx follows HX-Redirect; an EventSource stops to reconnect at 204."""
    browser = served.browser()
    seen = await browser.get("/console", **{"HX-Request": "true"})
    assert (seen.status, seen.headers["HX-Redirect"]) == (204, "/console/login")
    assert (await browser.get("/console", Accept="text/event-stream")).status == 204


@pytest.mark.slow
async def test_problems_are_pages(served: Served) -> None:
    """An unknown address is 404 and a form in another format 415, both with the layout and a correlation id."""
    browser = await served.as_role("viewer")
    seen = await browser.get("/console/nothing")
    assert (seen.status, "The console has no such page." in seen.words) == (404, True)
    assert seen.headers["X-Correlation-ID"] in seen.words
    async with served.session.post(f"{served.address}/console/login", json={}) as answer:
        assert (answer.status, answer.content_type) == (415, "text/html")


@pytest.mark.slow
async def test_what_a_caller_sends_is_shown_as_text(served: Served) -> None:
    """Markup in an address reaches a page escaped."""
    seen = await served.browser().get("/console/login?" + urlencode({"next": '/console?"><script>alert(1)</script>'}))
    assert "<script>alert" not in seen.text


@pytest.mark.slow
async def test_the_start_page_shows_a_browser_what_there_is(served: Served) -> None:
    """Another client is redirected to the documentation, as it always was."""
    browser: Browser = served.browser()
    seen = await browser.get("/", Accept="text/html,application/xhtml+xml,*/*;q=0.8")
    assert {"/console", "/docs", "/openapi.json"} <= {own["href"] for own in seen.elements.all("a")}
    for accept in "*/*", "application/json":
        seen = await browser.get("/", Accept=accept)
        assert (seen.status, seen.headers["Location"]) == (302, "/docs")


def test_a_session_ends_after_twelve_hours() -> None:
    """The time is part of what is signed; so are the name, and the key that it belongs to."""
    moment = 1_000.0
    key, other = ApiKey("a", "viewer", "0a"), ApiKey("b", "operator", "0b")
    sessions = Sessions(Authenticator({"a": key, "b": other}), now=lambda: moment)
    value = sessions.begin(key).value
    replica = Sessions(Authenticator({"a": key}), now=lambda: moment)
    found = replica.read(value)
    assert found is not None
    assert found.key == key
    name, until, nonce, mac = value.split("~")
    for changed in (
        f"b~{until}~{nonce}~{mac}", f"a~{int(until) + 1}~{nonce}~{mac}", f"a~{until}~{'0' * 16}~{mac}", f"{name}~{until}~{nonce}~{'A' * 43}",
        "", value + "A", "a", None,
    ):  # fmt: skip
        assert sessions.read(changed) is None, changed
    assert Sessions(Authenticator({"a": key}), "another secret", lambda: moment).read(value) is None
    moment += SESSION_SECONDS - 1
    assert sessions.read(value) is not None
    moment += 1
    assert sessions.read(value) is None


def test_a_session_that_has_ended_is_remembered_until_it_would_end_anyway(monkeypatch: pytest.MonkeyPatch) -> None:
    """A copied cookie stays useless, however many sessions end; what is remembered of them is bounded by their time."""
    monkeypatch.setattr(session, "_ENDED_MAX", 2)
    moment = 1_000.0
    key = ApiKey("a", "viewer", "0a")
    sessions = Sessions(Authenticator({"a": key}), now=lambda: moment)
    ended = [sessions.begin(key) for _ in range(4)]
    for each in ended:
        sessions.end(each)
    assert [sessions.read(each.value) for each in ended] == [None] * 4
    moment += SESSION_SECONDS + 1
    sessions.end(sessions.begin(key))
    assert len(sessions._ended) == 1


def test_all_files_together_are_small_and_unchanged() -> None:
    """A browser loads at most 300 KB for all pages; what others have written has its licence, and the hashes of its release."""
    sizes = {name: len(static_files.FOLDER.joinpath(name).read_bytes()) for name in static_files.FILES}
    assert sum(sizes.values()) <= static_files.SIZE_MAX
    for package in static_files.PACKAGES:
        manifest = static_files.manifest(package)
        folder = static_files.FOLDER.joinpath(package)
        present = {file.name for file in folder.iterdir()} - {"manifest.json"}
        assert present == set(manifest["sha256"])
        assert "LICENSE" in present
        for name, expected in manifest["sha256"].items():
            assert hashlib.sha256(folder.joinpath(name).read_bytes()).hexdigest() == expected


@pytest.mark.slow
async def test_files_are_kept_under_their_hash(served: Served) -> None:
    """What a page names may be kept for a year; the plain address is checked each time."""
    browser = served.browser()
    page = await browser.get("/console/login")
    (sheet,) = page.elements.all("link", rel="stylesheet")
    assert "immutable" in (await browser.get(sheet["href"])).headers["Cache-Control"]
    assert (await browser.get("/console/static/console.css")).headers["Cache-Control"] == "no-cache"
