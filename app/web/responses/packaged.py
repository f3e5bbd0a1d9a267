"""Files of the package, as responses: compressed once, and cached by browsers under their hash."""

from __future__ import annotations

__all__ = ["PackagedFile", "accepts_gzip", "file_response"]

import gzip
import re
from collections.abc import Mapping
from hashlib import sha256

from aiohttp import hdrs, web
from attrs import frozen


@frozen
class PackagedFile:
    """The bytes of a file, also compressed, and a hash that identifies them."""

    body: bytes
    compressed: bytes
    hash: str

    @classmethod
    def of(cls, body: bytes) -> PackagedFile:
        """Return the file that consists of *body*; compressing takes some milliseconds."""
        return cls(body, gzip.compress(body, 9, mtime=0), sha256(body).hexdigest()[:32])

    @classmethod
    def of_compressed(cls, compressed: bytes) -> PackagedFile:
        """Return the file that is stored as *compressed* (gzip)."""
        body = gzip.decompress(compressed)
        return cls(body, compressed, sha256(body).hexdigest()[:32])


def file_response(
    request: web.Request, file: PackagedFile, content_type: str, version: str, headers: Mapping[str, str]
) -> web.Response:
    """
    Return *file* with *headers*, or 304 to a client that has it.

    *version* is the hash that the address names. If it is the file's own, the response may be cached forever.
    """
    is_compressed = accepts_gzip(request.headers.get(hdrs.ACCEPT_ENCODING, ""))
    etag = f'"{file.hash}-gzip"' if is_compressed else f'"{file.hash}"'
    all_headers = {
        hdrs.CACHE_CONTROL: "public, max-age=31536000, immutable" if version == file.hash else "no-cache",
        hdrs.ETAG: etag,
        hdrs.VARY: hdrs.ACCEPT_ENCODING,
        "Referrer-Policy": "no-referrer",
        "X-Content-Type-Options": "nosniff",
        **headers,
    }
    if etag in request.headers.get(hdrs.IF_NONE_MATCH, ""):
        return web.Response(status=304, headers=all_headers)
    if is_compressed:
        all_headers[hdrs.CONTENT_ENCODING] = "gzip"
    body = file.compressed if is_compressed else file.body
    return web.Response(body=body, headers={hdrs.CONTENT_TYPE: content_type, **all_headers})


def accepts_gzip(accept_encoding: str) -> bool:
    """Return whether the header ``Accept-Encoding`` accepts gzip (RFC 9110, section 12.5.3)."""
    qualities: dict[str, bool] = {}
    for part in accept_encoding.lower().split(","):
        coding, _, parameter = part.partition(";")
        qualities[coding.strip()] = not re.fullmatch(r"[ \t]*q[ \t]*=[ \t]*0(?:\.0*)?[ \t]*", parameter)
    return qualities.get("gzip", qualities.get("*", False))
