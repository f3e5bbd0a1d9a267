"""The screen Trouble: dead letters in groups, their replay, edit and discard, and payments that wait for a person."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from tests.console.conftest import Seen, Served
from tests.console.letters import BODY, dead_letter, order_id

pytestmark = pytest.mark.slow

GROUP = "/console/trouble/group?consumer=inventory&subject=orders.created.v1&error=failed"


async def add(served: Served, *letters: Any) -> list[str]:
    """Store *letters*; return the ids of all, in their order in the lists."""
    store = served.application.parts.dead_letters
    for letter in letters:
        await store.add(letter)
    return [stored.dead_letter.id for stored in await store.list(None, None, None, 100)]


async def left(served: Served) -> int:
    return len(await served.application.parts.dead_letters.list(None, None, None, 100))


def address_of(seen: Seen, prefix: str) -> list[str]:
    """Return the addresses of the links of a page that begin with *prefix*."""
    return [own["href"] for own in seen.elements.all("a") if own.get("href", "").startswith(prefix)]


async def test_dead_letters_are_shown_in_groups_of_one_cause(served: Served) -> None:
    """The largest first, each with a link to its dead letters; ids and numbers in details make no group of their own."""
    await add(served, *(dead_letter(n) for n in range(3)), dead_letter(9, consumer="payments", error="invalid", detail="/amount: is missing"))
    browser = await served.as_role("viewer")
    seen = await browser.get("/console/trouble")
    assert seen.status == 200
    assert re.search(r"3 inventory orders\.created\.v1 failed .* 1 payments orders\.created\.v1 invalid", seen.words)
    first, second = address_of(seen, "/console/trouble/group")
    assert "of inventory" in (await browser.get(first)).words
    found = await browser.get(second)
    assert "/amount: is missing" in found.words
    assert len(address_of(found, "/console/trouble/payments/")) == 1


async def test_an_empty_screen_has_no_form(served: Served) -> None:
    """Two empty lists, and no form."""
    seen = await (await served.as_role("operator")).get("/console/trouble")
    assert "No dead letters." in seen.words
    assert "None." in seen.words


async def test_a_viewer_sees_everything_and_may_change_nothing(served: Served) -> None:
    """No form but the one to log out; what is sent nevertheless is 403. A role for stock does not see the screen."""
    (id,) = await add(served, dead_letter(1))
    viewer = await served.as_role("viewer")
    for path in ("/console/trouble", GROUP, f"/console/trouble/inventory/{id}"):
        seen = await viewer.get(path)
        assert seen.status == 200
        assert {own["action"] for own in seen.elements.all("form", method="post")} <= {"/console/logout", "/console/trouble/selected"}
        assert seen.elements.all("button", name="action") == []
    csrf = seen.elements.all("input", name="csrf")[0]["value"]
    form = {"csrf": csrf, "action": "replay", "consumer": "inventory", "subject": "orders.created.v1", "error": "failed", f"letter.{id}": "on"}
    for path in ("many", "selected", f"inventory/{id}/replay", f"inventory/{id}/edit", f"inventory/{id}/discard", "settle"):
        assert (await viewer.post(f"/console/trouble/{path}", form)).status == 403, path
    assert (await viewer.get("/console/trouble/many?action=replay")).status == 403
    assert (await (await served.as_role("stock")).get("/console/trouble")).status == 403
    assert await left(served) == 1


async def test_a_replay_of_a_group_is_counted_before_it_is_done(served: Served) -> None:
    """The first page is the dry run; the second step replays, and its page names how many."""
    await add(served, *(dead_letter(n) for n in range(3)))
    operator = await served.as_role("operator")
    confirm = f"/console/trouble/many?{GROUP.partition('?')[2]}&action=replay"
    assert "Replay 3 dead letters?" in (await operator.get(confirm)).words
    assert await left(served) == 3
    fields = hidden(await operator.get(confirm), "/console/trouble/many")
    done = await operator.post("/console/trouble/many", fields)
    assert done.status == 303
    assert "3 dead letters replayed" in (await operator.get(done.headers["Location"])).words


async def test_a_discard_is_confirmed_with_its_count(served: Served) -> None:
    """Of a whole group, of those selected, and of one."""
    ids = await add(served, *(dead_letter(n) for n in range(4)))
    operator = await served.as_role("operator")
    asked = await operator.submit(GROUP, "/console/trouble/selected", **group(), action="discard", **{f"letter.{ids[0]}": "on", f"letter.{ids[1]}": "on"})
    assert "Discard 2 dead letters?" in asked.words
    assert "cannot be undone" in asked.words
    assert await left(served) == 4
    done = await operator.post("/console/trouble/selected", hidden(asked, "/console/trouble/selected"))
    assert "2 dead letters discarded" in (await operator.get(done.headers["Location"])).words
    assert await left(served) == 2

    page = f"/console/trouble/inventory/{ids[2]}"
    asked = await operator.submit(page, f"{page}/discard")
    assert "Discard 1 dead letter?" in asked.words
    await operator.post(f"{page}/discard", hidden(asked, f"{page}/discard"))
    assert await left(served) == 1

    confirm = f"/console/trouble/many?{GROUP.partition('?')[2]}&action=discard"
    await operator.post("/console/trouble/many", hidden(await operator.get(confirm), "/console/trouble/many"))
    assert await left(served) == 0


async def test_one_dead_letter_and_a_selection_are_replayed(served: Served) -> None:
    """As they are: the requests of these buttons have no body."""
    ids = await add(served, *(dead_letter(n) for n in range(3)))
    operator = await served.as_role("operator")
    page = f"/console/trouble/inventory/{ids[0]}"
    done = await operator.submit(page, f"{page}/replay")
    assert (done.status, done.headers.get("Location")) == (303, "/console/trouble?done=replay&count=1"), done.words
    done = await operator.submit(GROUP, "/console/trouble/selected", **group(), action="replay", **{f"letter.{id}": "on" for id in ids[1:]})
    assert "2 dead letters replayed" in (await operator.get(done.headers["Location"])).words


async def test_what_is_refused_of_a_selection_is_named(served: Served) -> None:
    """The others are replayed. A webhook's dead letters cannot be replayed: their consumer subscribes to nothing."""
    (id,) = await add(served, dead_letter(1, consumer="payments-webhooks", subject="stripe.webhook.v1", error="unknown_order"))
    operator = await served.as_role("operator")
    page = "/console/trouble/group?consumer=payments-webhooks&subject=stripe.webhook.v1&error=unknown_order"
    fields = group("payments-webhooks", "stripe.webhook.v1", "unknown_order")
    seen = await operator.submit(page, "/console/trouble/selected", **fields, action="replay", **{f"letter.{id}": "on"})
    assert seen.status == 409
    assert "1 of 1 were not replayed" in seen.words
    assert "manual decision" in seen.words
    nothing = await operator.submit(page, "/console/trouble/selected", **fields, action="replay")
    assert (nothing.status, "No dead letter is selected" in nothing.words) == (400, True)


async def test_a_dead_letter_is_shown_with_what_its_schema_requires(served: Served) -> None:
    """Every member, nested ones included: its type, whether it is required, and what is allowed."""
    (id,) = await add(served, dead_letter(1, {**BODY, "items": [{"product_id": "SKU-1"}]}))
    seen = await (await served.as_role("operator")).get(f"/console/trouble/inventory/{id}")
    assert "items array yes 1 to 100 items" in seen.words
    assert "items[].quantity integer yes 1 to 1000000" in seen.words
    assert re.search(r"payment_method string no 1 to 255 characters; no control characters", seen.words)
    assert 'version one value yes "v1"' in seen.words


@pytest.mark.parametrize(
    ("body", "complaint", "member"),
    [
        ({**BODY, "items": [{"product_id": "SKU-1", "quantity": 0}]}, "/items/0/quantity must be", "items[].quantity"),
        ({"order_id": order_id(1)}, '"customer_id" is missing', None),
        ({**BODY, "order_id": "none"}, "/order_id must be a UUID", "order_id"),
        ('{"order_id": }', "not JSON in UTF-8", None),
        ('{"items": [{"quantity": 1.5}]}', "/items/0/quantity", "items[].quantity"),
    ],
)
async def test_an_edited_body_that_is_wrong_is_refused_at_its_field(
    body: Any, complaint: str, member: str | None, served: Served
) -> None:
    """The text of the person stays in the field, and the dead letter as it is."""
    (id,) = await add(served, dead_letter(1, {**BODY, "items": []}))
    operator = await served.as_role("operator")
    page = f"/console/trouble/inventory/{id}"
    text = body if isinstance(body, str) else json.dumps(body)
    seen = await operator.submit(page, f"{page}/edit", body=text)
    assert seen.status == 400
    assert complaint in seen.words
    assert text in seen.elements.text
    if member is not None:
        assert f"#member-{member}" in [own.get("href") for own in seen.elements.all("a")]
    (field,) = seen.elements.all("textarea")
    assert field["aria-invalid"] == "true"
    assert await left(served) == 1


async def test_an_edited_body_is_replayed_and_both_bodies_are_kept(served: Served) -> None:
    """Then the event is handled: inventory rejects the order, whose product does not exist."""
    (id,) = await add(served, dead_letter(1, {**BODY, "items": []}))
    operator = await served.as_role("operator")
    page = f"/console/trouble/inventory/{id}"
    done = await operator.submit(page, f"{page}/edit", body=json.dumps(BODY))
    assert done.status == 303, done.words
    assert "1 dead letter replayed with the edited body" in (await operator.get(done.headers["Location"])).words


async def test_a_dead_letter_that_is_gone_is_404(served: Served) -> None:
    """As a page with the way back."""
    operator = await served.as_role("operator")
    assert (await operator.get(f"/console/trouble/inventory/{order_id(1)}")).status == 404
    assert (await operator.get("/console/trouble/group?consumer=inventory")).status == 400


async def test_texts_of_a_message_are_never_markup(served: Served) -> None:
    """What another system sent is shown as it is."""
    hostile = "<script>alert(a)</script>\"'&"
    (id,) = await add(served, dead_letter(1, {"a": hostile}, detail=hostile, error="invalid"))
    operator = await served.as_role("operator")
    for path in ("/console/trouble", GROUP.replace("failed", "invalid"), f"/console/trouble/inventory/{id}"):
        seen = await operator.get(path)
        assert hostile in seen.elements.text or "alert(a)" in seen.elements.text
        assert seen.elements.inline_scripts == 0


def group(consumer: str = "inventory", subject: str = "orders.created.v1", error: str = "failed") -> dict[str, str]:
    return {"consumer": consumer, "subject": subject, "error": error}


def hidden(seen: Seen, action: str) -> dict[str, str]:
    """Return the hidden fields of a page whose form goes to *action*."""
    assert seen.elements.all("form", method="post", action=action), seen.words
    return {own["name"]: own["value"] for own in seen.elements.all("input", type="hidden")}


