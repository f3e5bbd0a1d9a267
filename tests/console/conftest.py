"""The whole program in this process with a key for each role, and a client that behaves as a browser without scripts does."""

from __future__ import annotations

import asyncio
import re
import shutil
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from html.parser import HTMLParser
from pathlib import Path

import pytest
from aiohttp import ClientSession, DummyCookieJar
from attrs import define, field, frozen

from app.application import Application
from app.bootstrap import build_parts
from app.web.console.session import COOKIE
from config.api_keys import ROLES
from config.settings import Settings
from modules.registry import MODULES

KEYS = (
    *(f"{role}:{role}:{role}-key-0123456789" for role in ROLES),
    "web-1:shop:web-1-key-0123456789:c-1",
)


class Elements(HTMLParser):
    """The elements of a page with their attributes, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str]]] = []
        self.text = ""
        self.inline_scripts = 0
        self._open = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, {name: value or "" for name, value in attrs}))
        self._open = tag
        if tag in ("dd", "dt", "li", "td", "th"):
            self.text += " "

    def handle_data(self, data: str) -> None:
        if self._open == "script" and data.strip():
            self.inline_scripts += 1
        if self._open != "title":
            self.text += data

    def handle_endtag(self, tag: str) -> None:
        self._open = ""

    def all(self, tag: str, **attributes: str) -> list[dict[str, str]]:
        """Return the attributes of each element *tag* that has *attributes*."""
        return [own for name, own in self.found if name == tag and attributes.items() <= own.items()]


@frozen
class Seen:
    """An answer of the console."""

    status: int
    headers: dict[str, str]
    text: str
    cookie: str

    @property
    def elements(self) -> Elements:
        """The elements of the page."""
        return Elements(self.text)

    @property
    def words(self) -> str:
        """The text of the page, each run of white space as one space."""
        return re.sub(r"\s+", " ", self.elements.text)


@define
class Browser:
    """Keeps the cookie of one person, follows no redirect, and runs no script."""

    address: str
    session: ClientSession
    cookie: str = ""
    headers: dict[str, str] = field(factory=dict)

    async def get(self, path: str, **headers: str) -> Seen:
        """Return the page at *path*."""
        return await self.send("GET", path, None, headers)

    async def post(self, path: str, form: dict[str, str], **headers: str) -> Seen:
        """Return the answer to *form*."""
        return await self.send("POST", path, form, headers)

    async def log_in(self, name: str) -> Seen:
        """Log in with the key of *name*, and keep the cookie."""
        seen = await self.post("/console/login", {"key": f"{name}-key-0123456789"})
        assert seen.status == 303, seen.words
        self.cookie = seen.cookie.split(";")[0].partition("=")[2]
        return seen

    async def submit(self, page: str, action: str, /, **fields: str) -> Seen:
        """Send the form of *page* that goes to *action*, with its hidden fields and with *fields*."""
        seen = await self.get(page)
        assert seen.elements.all("form", method="post", action=action), seen.words
        hidden = {own["name"]: own["value"] for own in seen.elements.all("input", type="hidden")}
        return await self.post(action, {**hidden, **fields})

    async def send(
        self, method: str, path: str, form: dict[str, str] | None = None, headers: dict[str, str] | None = None
    ) -> Seen:
        """Return the answer to a request with *method*; a POST without *form* has an empty one."""
        sent = {**self.headers, **(headers or {})}
        if method == "POST" and form is None:
            form = {}
        if self.cookie:
            sent["Cookie"] = f"{COOKIE}={self.cookie}"
        async with self.session.request(method, self.address + path, data=form, headers=sent, allow_redirects=False) as answer:
            return Seen(answer.status, dict(answer.headers), await answer.text(), answer.headers.get("Set-Cookie", ""))


@define
class Served:
    """A running program."""

    application: Application
    address: str
    session: ClientSession
    keys: Path

    def browser(self) -> Browser:
        """Return the browser of a person who has not logged in."""
        return Browser(self.address, self.session)

    async def as_role(self, name: str) -> Browser:
        """Return the browser of a person who has logged in with the key of *name*."""
        browser = self.browser()
        await browser.log_in(name)
        return browser

    def settings(self) -> Settings:
        """Return the settings anew, as SIGHUP reads them."""
        return settings_for(self.keys)


def settings_for(keys: Path) -> Settings:
    """Return settings with the file *keys*; the database lies beside it."""
    return Settings(
        known_modules=MODULES,
        database_url=f"sqlite:///{keys.parent}/test.db",
        http_port=0,
        auth="keys",
        api_keys_file=str(keys),
        shutdown_grace_s=2,
    )


@pytest.fixture(scope="session")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with all tables and no row: a copy is there in less time than the migrations take."""
    keys = keys_in(tmp_path_factory.mktemp("migrated"))
    with ThreadPoolExecutor(1) as thread:  # this one may run an event loop
        thread.submit(lambda: asyncio.run(_migrate(keys))).result()
    return keys.parent / "test.db"


async def _migrate(keys: Path) -> None:
    storage = build_parts(settings_for(keys)).storage
    await asyncio.to_thread(storage.require_tables)
    await storage.close()


def keys_in(folder: Path) -> Path:
    """Return a file with `KEYS` in *folder*."""
    keys = folder / "keys"
    keys.write_text("\n".join(KEYS))
    keys.chmod(0o600)
    return keys


@pytest.fixture
async def served(tmp_path: Path, migrated: Path) -> AsyncIterator[Served]:
    shutil.copy(migrated, tmp_path / "test.db")
    keys = keys_in(tmp_path)
    application = Application(settings_for(keys))
    address = await application.start()
    async with ClientSession(cookie_jar=DummyCookieJar()) as session:
        yield Served(application, address, session, keys)
    await application.stop()
