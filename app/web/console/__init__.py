"""
The console: pages that show the state of the system, rendered on the server, without a build step or a foreign resource.

A screen is a file of `app.web.console.screens`: it declares its pages, and reads and writes through the public API only.
`Frame` adds what all pages share: the session, the role, the CSRF token, the layout, and the messages for errors.
"""

from __future__ import annotations

__all__ = ["Console"]

from app.web.console.console import Console
