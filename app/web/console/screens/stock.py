"""Stock: what is low first, a search, and one page for each product on which its stock, price and name are changed."""

from __future__ import annotations

__all__ = ["SCREEN", "build"]

from collections.abc import Mapping
from typing import Any
from urllib.parse import quote, urlencode

from aiohttp import hdrs, web
from uuid_utils import uuid4

from app.web.console.frame import Page, Screen, Visit, body_of, problem_in
from app.web.console.screens.parts import ScreenParts, Sources
from app.web.responses.problems import ProblemError

SCREEN = Screen("stock", "Stock", "/console/stock", ("viewer", "stock"))

PRODUCTS_SHOWN = 50

LOW_DEFAULT = 10
"""Products of which at most this many are available are low, unless the query has another number."""

LOW_PAGES_MAX = 5
"""Pages of the list that are read for what is low; each examines a limited number of products."""

SETS_MAX = 5
"""How often a price is sent again because the stock has changed meanwhile."""

_LIST = "/v1/inventory"
_CHANGES = ("adjust", "restock", "set", "create")
_WHOLE_MAX = 10**15


def build(sources: Sources) -> ScreenParts:
    """Return the screen."""
    screen = _Stock()
    product = f"{SCREEN.path}/{{product_id}}"
    return ScreenParts(
        SCREEN,
        (
            Page(hdrs.METH_GET, SCREEN.path, screen.show, SCREEN),
            Page(hdrs.METH_POST, SCREEN.path, screen.create, SCREEN, roles=("stock",)),
            Page(hdrs.METH_GET, product, screen.show_product, SCREEN),
            Page(hdrs.METH_POST, f"{product}/adjust", screen.adjust, SCREEN, roles=("stock",)),
            Page(hdrs.METH_POST, f"{product}/restock", screen.restock, SCREEN, roles=("stock",)),
            Page(hdrs.METH_POST, f"{product}/set", screen.set, SCREEN, roles=("stock",)),
        ),
    )


class _Stock:
    async def show(self, visit: Visit) -> web.StreamResponse:
        """Show what is low, and a page of all products or of those that the search finds."""
        wanted, cursor = visit.query.get("q", ""), visit.query.get("cursor")
        low_max = _low_max(visit.query.get("low"))
        query = {"limit": PRODUCTS_SHOWN, **({"q": wanted} if wanted else {}), **({"cursor": cursor} if cursor else {})}
        page = await visit.ask("GET", _LIST, query=query)
        following = None
        if page["next_cursor"] is not None:
            following = f"{SCREEN.path}?{urlencode({'q': wanted, 'low': low_max, 'cursor': page['next_cursor']})}"
        low, is_complete = ([], True) if wanted or cursor else await self._low(visit, low_max)
        return visit.page(
            "operations/stock.html", products=page["items"], following=following, low=low, is_complete=is_complete, low_max=low_max,
            wanted=wanted, is_first=not cursor, done=_done(visit),
        )  # fmt: skip

    async def _low(self, visit: Visit, low_max: int) -> tuple[list[Any], bool]:
        """Return the products of which the fewest are available, and whether all products were looked at."""
        found: list[Any] = []
        cursor: str | None = None
        for _ in range(LOW_PAGES_MAX):
            query = {"limit": 200, "max_available": low_max, **({} if cursor is None else {"cursor": cursor})}
            page = await visit.ask("GET", _LIST, query=query)
            found += page["items"]
            cursor = page["next_cursor"]
            if cursor is None:
                break
        found.sort(key=lambda product: (product["available"], product["product_id"]))
        return found[:PRODUCTS_SHOWN], cursor is None and len(found) <= PRODUCTS_SHOWN

    async def show_product(self, visit: Visit) -> web.StreamResponse:
        """Show a product with the forms that change it."""
        return await self._product_page(visit)

    async def _product_page(
        self, visit: Visit, status: int = 200, problem: ProblemError | None = None, entered: Mapping[str, str] | None = None
    ) -> web.StreamResponse:
        """Show a product, with what a person has *entered* beside it if that was refused."""
        answer = await visit.answer("GET", _path(visit))
        product = body_of(answer)
        is_conflict = problem is not None and problem.status == 412
        return visit.page(
            "operations/product.html",
            status,
            product=product,
            etag=answer.headers.get(hdrs.ETAG, ""),
            address=_address(visit),
            attempt=str(uuid4()),
            problem=problem,
            is_conflict=is_conflict,
            entered={"form": "", **(entered or {})},
            pointers={each["pointer"]: each["detail"] for each in problem.members.get("errors", ())} if problem else {},
            done=_done(visit),
        )

    async def adjust(self, visit: Visit) -> web.StreamResponse:
        """Add to the stock or take from it, for a reason."""
        return await self._change(visit, "adjust", {"quantity": _whole(visit, "quantity"), "reason": visit.form.get("reason", "")})

    async def restock(self, visit: Visit) -> web.StreamResponse:
        """Add to the stock."""
        return await self._change(visit, "restock", {"quantity": _whole(visit, "quantity")})

    async def _change(self, visit: Visit, action: str, body: Mapping[str, Any]) -> web.StreamResponse:
        # The page has a key of its own for each form that it shows: a form that is sent twice counts once.
        headers = {"Idempotency-Key": visit.form["attempt"]} if visit.form.get("attempt") else None
        answer = await visit.answer("POST", f"{_path(visit)}/{action}", body=body, headers=headers)
        return await self._answered(visit, answer.is_success, action, None if answer.is_success else problem_in(answer))

    async def set(self, visit: Visit) -> web.StreamResponse:
        """
        Set the price and the name, unless one of them has changed since the person loaded the form.

        The tag of a product also changes with its stock. An order that was placed meanwhile is no conflict: the change is
        sent again with the new tag.
        """
        form = visit.form
        body: dict[str, Any] = {
            "unit_price": {"amount": _whole(visit, "amount"), "currency": form.get("currency", "")},
            **({"name": form["name"]} if form.get("name") else {}),
        }
        seen = [form.get(name, "") for name in ("seen_amount", "seen_currency", "seen_name")]
        etag = form.get("etag", "")
        for _ in range(SETS_MAX):
            answer = await visit.answer("PATCH", _path(visit), body=body, headers={"If-Match": etag})
            if answer.status != 412:
                break
            current = await visit.answer("GET", _path(visit))
            product, etag = body_of(current), current.headers.get(hdrs.ETAG, "")
            price = product["unit_price"]
            if seen != [str(price["amount"]), price["currency"], product["name"] or ""]:
                break
        return await self._answered(visit, answer.is_success, "set", None if answer.is_success else problem_in(answer))

    async def _answered(self, visit: Visit, is_success: bool, action: str, problem: ProblemError | None) -> web.StreamResponse:
        if is_success:
            return visit.redirect(_address(visit), done=action)
        assert problem is not None
        if problem.status not in (400, 409, 412, 422):
            raise problem
        return await self._product_page(visit, problem.status, problem, {**visit.form, "form": action})

    async def create(self, visit: Visit) -> web.StreamResponse:
        """Create a product that does not exist yet."""
        product_id = visit.form.get("product_id", "")
        if not product_id:
            raise ProblemError(400, "invalid_form", "A product needs an id; nothing was done.")
        body = {
            "on_hand": _whole(visit, "on_hand"),
            "unit_price": {"amount": _whole(visit, "amount"), "currency": visit.form.get("currency", "")},
            **({"name": visit.form["name"]} if visit.form.get("name") else {}),
        }
        path = f"{_LIST}/{quote(product_id, safe='')}"
        answer = await visit.answer("PUT", path, body=body, headers={"If-None-Match": "*"})
        if answer.status == 412:
            raise ProblemError(409, "product_exists", f"There is a product {product_id} already; nothing was done.")
        body_of(answer)
        return visit.redirect(f"{SCREEN.path}/{quote(product_id, safe='')}", done="create")


def _path(visit: Visit) -> str:
    return f"{_LIST}/{quote(visit.path['product_id'], safe='')}"


def _address(visit: Visit) -> str:
    return f"{SCREEN.path}/{quote(visit.path['product_id'], safe='')}"


def _whole(visit: Visit, name: str) -> Any:
    """Return the whole number in a field; what is none is returned as it is, so that the API refuses it with the field's name."""
    text = visit.form.get(name, "").replace("\N{MINUS SIGN}", "-")
    return int(text) if text.removeprefix("-").isascii() and text.removeprefix("-").isdecimal() and len(text) < 17 else text


def _low_max(text: str | None) -> int:
    return min(int(text), _WHOLE_MAX) if text and text.isascii() and text.isdecimal() and len(text) < 17 else LOW_DEFAULT


def _done(visit: Visit) -> str | None:
    """Return what the request before this one has done: its redirect has that in the query."""
    action = visit.query.get("done")
    return action if action in _CHANGES else None
