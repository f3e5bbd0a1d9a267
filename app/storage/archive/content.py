"""
How a document of the archive is stored: as JSON, compressed (RFC 1950) with a dictionary of what most documents contain.

The dictionary saves two thirds: by itself a document is too short to repeat much. The first byte of a content is the
number of its dictionary. A dictionary never changes, or what was written with it could not be read any more; a better one
gets a new number.
"""

from __future__ import annotations

__all__ = ["DICTIONARIES", "Document", "compressed", "decompressed"]

import zlib
from typing import Any

import orjson

Document = dict[str, Any]
"""What JSON can hold, by name."""

DICTIONARIES: dict[int, bytes] = {
    1: (
        b'"shipping_address":{"name":"","line1":"","line2":"","city":"","postal_code":"","state":"","country":"'
        b'"payment_method":"pm_","payment_customer":"cus_","waiting_for":"is_given_up":true,"soft_declines":1,"settled":{"outcome":"'
        b'"ledger":{"refunds":[{"amount":00,"status":"succeeded","at":"2026-01-01T00:00:00.000000Z","id":"cancel","key_number":1,'
        b'"reference":"re_","reason":null,"tries":1}],"disputes":[],"refunded_total":0,"soft_declines":0,"is_given_up":false,'
        b'"settled":null}"status":"refunded","refund_id":"failed","failure":"declined","reason":"payment_declined","requested",'
        b'"insufficient_stock","unknown_product","timed_out","consumer":"subject":"error":"detail":"attempts":5,"first_seen":"'
        b'"last_seen":"replays":0,"message_id":"message_key":"message_headers":"ce-id":"ce-source":"ce-type":"message_body":"'
        b'{"event":"orders.cancelled","at":"{"event":"payments.refunded","at":"detail":{"amount":{"amount":0,"currency":"USD"}},'
        b'"kept":{"amount":"rejected","released","lines":[{"product_id":"{"order_id":"019","status":"shipped","lines":[]}'
        b'{"order_id":"019","status":"captured","amount":1000,"currency":"EUR","attempts":1,"calls":1,"reference":"pi_3'
        b'"is_cancelled":0,"is_cancelled":false,"is_waiting":0,"is_waiting":false,"updated_at":"2026-01-01T00:00:00.000000+00:00"}'
        b'{"order_id":"019","customer_id":"c-","status":"confirmed","items":[{"product_id":"SKU-1","quantity":1},'
        b'{"product_id":"SKU-2","quantity":2}],"total_amount":1000,"currency":"EUR","is_express":0,"is_express":false,'
        b'"correlation_id":"019","unit_prices":[1000],"is_paid":1,"is_paid":true,"created_at":"2026-01-01T00:00:00.000000+00:00",'
        b'"updated_at":"2026-01-01T00:00:00.000000+00:00","timeline":[{"event":"orders.created","at":"2026-01-01T00:00:00.000000Z"},'
        b'{"event":"inventory.reserved","at":"2026-01-01T00:00:00.000000Z"},{"event":"payments.captured","at":"2026-01-01T'
        b'"},{"event":"orders.confirmed","at":"2026-01-01T00:00:00.000000Z"}]}'
    )
}
"""By number. New content is compressed with the last one; its first byte is the number of the one that decompresses it."""

_LEVEL = 6
_NEWEST = max(DICTIONARIES)


def compressed(document: Document) -> bytes:
    """Return the content for *document*."""
    text = orjson.dumps({str(name): value for name, value in document.items()})  # SQLAlchemy's names are a subclass of str
    compressor = zlib.compressobj(_LEVEL, zdict=DICTIONARIES[_NEWEST])
    return bytes([_NEWEST]) + compressor.compress(text) + compressor.flush()


def decompressed(content: bytes) -> Document:
    """
    Return the document in *content*.

    Raises:
        ValueError: The content is damaged, or was written by a newer release.
    """
    try:
        decompressor = zlib.decompressobj(zdict=DICTIONARIES[content[0]])
        text = decompressor.decompress(content[1:])
        if not decompressor.eof:
            raise EOFError
        document: Document = orjson.loads(text)
    except (KeyError, IndexError, EOFError, zlib.error, orjson.JSONDecodeError) as error:
        raise ValueError(f"an archived document cannot be read: {error!r}") from error
    return document
