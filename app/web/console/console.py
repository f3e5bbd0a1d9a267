"""The console of one process: its screens, its pages and its files, as endpoints of the application."""

from __future__ import annotations

__all__ = ["Console"]

from collections.abc import Sequence

from aiohttp import hdrs, web

from app.telemetry.metrics import Metrics
from app.web.access.gate import Gate
from app.web.console import login, static_files
from app.web.console.frame import Frame, Page, Screen, Visit
from app.web.console.live import Live
from app.web.console.rendering import Rendering
from app.web.console.samples import Samples
from app.web.console.screens import Sources, build_screens
from app.web.console.session import Sessions
from app.web.handler import Endpoint
from app.web.operations.module_api import ModuleApi
from app.web.responses.problems import ProblemError
from app.web.streams.state_stream import Streams
from config.settings import Settings

_ANY = Screen("", "", "/console", ("viewer", "shop", "stock", "metrics"))


class Console:
    """
    The pages below ``/console``, of all modules that *api* reaches.

    CONSOLE_SECRET is a part of the signature of sessions and must be the same in all processes behind one address.
    """

    def __init__(self, gate: Gate, api: ModuleApi, streams: Streams, metrics: Metrics, settings: Settings) -> None:
        self.rendering = Rendering()
        self._samples = Samples(metrics)
        self._screens = build_screens(Sources(api, Live(streams), self.rendering, self._samples, settings.analytics_file))
        secret = str(settings.console_secret) if settings.console_secret else None
        self.frame = Frame(gate, Sessions(gate.authenticator, secret), api, self.rendering, [each.screen for each in self._screens])

    def endpoints(self) -> Sequence[Endpoint]:
        """Return every endpoint; the ones for addresses that do not exist come last."""
        pages = [page for each in self._screens for page in each.pages]
        unknown = [Page(hdrs.METH_GET, path, _unknown, _ANY, is_scoped=True) for path in ("/console/{a}", "/console/{a}/{b}")]
        return (
            *static_files.endpoints(),
            *login.endpoints(self.frame),
            *(self.frame.endpoint(page) for page in (*pages, *unknown)),
        )

    def setup(self, app: web.Application) -> None:
        """Prepare the templates for *app*, and take samples while it runs."""
        self.rendering.setup(app)
        self._samples.attach(app)


async def _unknown(visit: Visit) -> web.StreamResponse:
    raise ProblemError(404, "not_found", "The console has no such page.")
