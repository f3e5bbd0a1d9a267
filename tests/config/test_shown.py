"""The configuration as the console shows it."""

from __future__ import annotations

import pytest

from config.environment import describe
from config.shown import shown
from tests.config.test_settings import MODULES, SECRET, SECRETS, load


def test_every_variable_of_the_manual_is_shown_and_none_is_set_by_default() -> None:
    """The names and their order are those of the manual."""
    found = list(shown(load({})))
    assert [variable.name for variable in found] == [variable.name for variable in describe(MODULES)]
    assert [variable.name for variable in found if variable.is_set] == []


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("BATCH_MAX", "7", "7"),
        ("AUTH_OFF_I_KNOW", "1", "1"),
        ("SIMULATED_FAILURE_RATE", "0.5", "0.5"),
        ("MODULES", "payments,orders", "orders,payments"),
        ("ALLOWED_HOSTS", "a.example,b.example", "a.example,b.example"),
        ("DATABASE_URL", "sqlite:///other.db", "sqlite:///other.db"),
        ("NATS_URL", "nats://u:hunter2@one:4222,nats://u:hunter2@two:4222", "nats://one:4222,nats://two:4222"),
        ("ORDERS_DATABASE_URL", "postgresql://db/orders?password=hunter2&host=/run", "postgresql://db/orders"),
        ("NATS_PASSWORD", "http://hunter2", None),
        ("ORDERS_DATABASE_URL", "postgresql://db/orders?application_name=a#hunter2", "postgresql://db/orders"),
        ("DATABASE_URL", "postgresql://db/a@hunter2", None),
    ],
)
def test_a_value_is_shown_as_it_was_set(name: str, value: str, text: str | None) -> None:
    """Except that an address has no user, no password and no query."""
    environ = {name: value} | ({"BUS": "nats"} if name in ("MODULES", "NATS_PASSWORD", "NATS_URL") else {})
    if name == "NATS_PASSWORD":
        environ["NATS_USER"] = "u"
    (found,) = [variable for variable in shown(load(environ)) if variable.name == name]
    assert (found.value, found.is_set) == (text, True)


def test_a_default_that_is_written_out_is_no_other_value() -> None:
    """The manual shows one default with an explanation."""
    (found,) = [variable for variable in shown(load({"LOG_FORMAT": "json"})) if variable.name == "LOG_FORMAT"]
    assert (found.value, found.is_set) == ("json", False)


@pytest.mark.parametrize(("name", "value"), [*SECRETS, ("DATABASE_URL", f"postgresql://db/a?password={SECRET}")])
def test_no_secret_is_shown(name: str, value: str) -> None:
    """Neither a key nor the password in an address."""
    found = {variable.name: variable for variable in shown(load({name: value}))}
    assert SECRET not in repr(found)
    assert found[name].is_set
    assert found[name].is_secret
