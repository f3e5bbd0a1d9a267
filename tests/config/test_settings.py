"""The environment is checked once, at start; an invalid variable is reported in one line that shows no secret."""

from __future__ import annotations

import io
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from config import environment, files
from config.api_keys import ApiKey
from config.environment import describe, example_env, read_again
from config.files import BadSetting
from config.settings import Settings
from modules import registry

MODULES = ("orders", "inventory", "payments")
SECRET = "sk_live_not-a-real-key"

# fmt: off
NAMES_IN_THE_MANUAL = [
    "BUS", "MODULES", "NATS_URL", "NATS_CREDS", "NATS_TLS_CA", "NATS_USER", "NATS_PASSWORD", "NATS_REPLICAS", "NATS_ACK_WAIT_S",
    "DATABASE_URL", "ORDERS_DATABASE_URL", "INVENTORY_DATABASE_URL", "PAYMENTS_DATABASE_URL", "HTTP_HOST",
    "HTTP_PORT", "HTTP_WORKERS", "LOG_LEVEL", "LOG_FORMAT", "LOG_FILE", "PAYMENT_GATEWAY", "STRIPE_API_KEY",
    "STRIPE_API_BASE",
    "STRIPE_WEBHOOK_SECRET", "STRIPE_INSTALLATION", "SIMULATED_DECLINE_OVER", "SIMULATED_LATENCY_MS", "SIMULATED_FAILURE_RATE",
    "INVENTORY_REQUIRES_IF_MATCH", "ORDER_TIMEOUT_S", "ORDERS_KEPT", "HISTORY_KEPT", "HISTORY_ARCHIVE", "ANALYTICS_FILE", "ANALYTICS_MEMORY",
    "DEAD_LETTER_ORDER", "RETIRED_VERSIONS", "WORK_STALLED_S", "CLOCK_JUMP_S",
    "SHUTDOWN_GRACE_S", "SHUTDOWN_DELAY_S",
    "AUTH", "AUTH_OFF_I_KNOW", "API_KEYS_FILE", "ALLOWED_HOSTS", "CORS_ORIGINS", "CONSOLE_SECRET", "REQUESTS_PER_S", "CONNECTIONS_MAX",
    "MODULE_URLS", "MODULE_KEY",
    "OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT",
    "OTEL_SDK_DISABLED", "OTEL_TRACES_SAMPLER", "OTEL_TRACES_SAMPLER_ARG",
    "OUTBOX_CAP", "BATCH_MAX",
]
# fmt: on


def load(environ: Mapping[str, str]) -> Settings:
    """Return the settings of a program that has the modules of this test."""
    return environment.load(environ, MODULES)


def rejection(environ: Mapping[str, str]) -> str:
    with pytest.raises(BadSetting) as caught:
        load(environ)
    assert (caught.value.__cause__ is None and caught.value.__suppress_context__) or caught.value.__context__ is None
    return str(caught.value)


def test_an_empty_environment_gives_the_defaults() -> None:
    """An unset variable means the default that the manual lists."""
    settings = load({})
    assert settings == Settings(known_modules=MODULES)
    assert (settings.bus, settings.modules) == ("memory", ("orders", "inventory", "payments"))
    assert settings.nats_url == ("nats://127.0.0.1:4222",)
    assert (settings.http_host, settings.http_port) == ("127.0.0.1", 8080)
    assert (settings.log_level, settings.log_file) == ("INFO", None)
    assert settings.database_url("orders") == "sqlite:///data/fulfilment.db"
    assert (settings.payment_gateway, settings.simulated_decline_over) == ("simulated", None)
    assert (settings.simulated_latency_ms, settings.simulated_failure_rate) == (0, 0)
    assert (settings.order_timeout_s, settings.shutdown_grace_s) == (900, 20)
    assert (settings.auth, settings.api_keys) == ("off", {})
    assert (settings.nats_replicas, settings.nats_ack_wait_s) == (1, 30)
    assert (settings.outbox_cap, settings.batch_max) == (400_000, 256)


def test_empty_variables_mean_the_default() -> None:
    """An empty variable counts as unset, so that a compose file can pass all variables on."""
    assert load(dict.fromkeys(NAMES_IN_THE_MANUAL, "")) == Settings(known_modules=MODULES)


def test_every_variable_of_the_manual_is_described() -> None:
    """One declaration gives name, default and help text; none of the three is missing."""
    variables = list(describe(MODULES))
    assert [variable.name for variable in variables] == NAMES_IN_THE_MANUAL
    assert all(variable.help.endswith(".") and variable.help.isprintable() for variable in variables)
    assert {variable.name: variable.default for variable in variables}["LOG_FORMAT"] == "json (text on a terminal)"


def test_described_defaults_are_the_defaults() -> None:
    """Setting every variable to the default that the manual gives changes nothing."""
    defaults = {variable.name: variable.default for variable in describe(MODULES) if variable.name != "LOG_FORMAT"}
    assert load(defaults) == Settings(known_modules=MODULES)


def test_the_example_file_is_the_one_that_the_declarations_give() -> None:
    """``python -m app new documents`` writes ``config/example.env`` again."""
    assert (Path(__file__).parents[2] / "config" / "example.env").read_text(encoding="utf-8") == example_env(registry.MODULES)


GOOD = [
    ({"BUS": "NATS", "MODULES": "payments, orders"}, "modules", ("orders", "payments")),
    ({"BUS": "nats", "NATS_URL": "nats://a:4222, tls://b"}, "nats_url", ("nats://a:4222", "tls://b")),
    ({"MODULES": "payments,orders,inventory"}, "modules", ("orders", "inventory", "payments")),
    ({"HTTP_PORT": "0"}, "http_port", 0),
    ({"HTTP_PORT": "65535"}, "http_port", 65535),
    ({"HTTP_PORT": " 80 "}, "http_port", 80),
    ({"LOG_LEVEL": "warning"}, "log_level", "WARNING"),
    ({"LOG_LEVEL": "Trace"}, "log_level", "TRACE"),
    ({"LOG_FORMAT": "TEXT"}, "log_format", "text"),
    ({"SIMULATED_DECLINE_OVER": "0"}, "simulated_decline_over", 0),
    ({"SIMULATED_DECLINE_OVER": "none"}, "simulated_decline_over", None),
    ({"SIMULATED_LATENCY_MS": "2.5"}, "simulated_latency_ms", 2.5),
    ({"SIMULATED_FAILURE_RATE": "1"}, "simulated_failure_rate", 1.0),
    ({"ORDER_TIMEOUT_S": "0.25"}, "order_timeout_s", 0.25),
    ({"SHUTDOWN_GRACE_S": "1e1"}, "shutdown_grace_s", 10.0),
    ({"SHUTDOWN_DELAY_S": "5"}, "shutdown_delay_s", 5.0),
    ({"ALLOWED_HOSTS": "orders, [fe80::1],Shop.example"}, "allowed_hosts", ("orders", "[fe80::1]", "Shop.example")),
    ({"ALLOWED_HOSTS": "*"}, "allowed_hosts", ("*",)),
    ({"RETIRED_VERSIONS": "payments.sent.v12, orders.created.v1"}, "retired_versions", ("orders.created.v1", "payments.sent.v12")),
    ({"CORS_ORIGINS": "https://shop.example,http://127.0.0.1:3000"}, "cors_origins", ("https://shop.example", "http://127.0.0.1:3000")),
    ({"CORS_ORIGINS": "https://Shop.example:443, HTTP://[::1]:80"}, "cors_origins", ("https://shop.example", "http://[::1]")),
    ({"OTEL_SDK_DISABLED": "TRUE"}, "otel_sdk_disabled", True),
    ({"OTEL_TRACES_SAMPLER": "Always_On"}, "otel_traces_sampler", "always_on"),
    ({"MODULE_URLS": "orders=http://o:8080/, payments=https://p"}, "module_urls", MappingProxyType({"orders": "http://o:8080", "payments": "https://p"})),
    ({"MODULE_URLS": "orders=http://127.0.0.1:1/base"}, "module_urls", MappingProxyType({"orders": "http://127.0.0.1:1/base"})),
    ({"CORS_ORIGINS": "https://shop.example:80"}, "cors_origins", ("https://shop.example:80",)),
    ({"REQUESTS_PER_S": "100"}, "requests_per_s", 100),
    ({"CONNECTIONS_MAX": "none"}, "connections_max", None),
    ({"HTTP_WORKERS": "2"}, "http_workers", 2),
    ({"NATS_REPLICAS": "5"}, "nats_replicas", 5),
    ({"NATS_ACK_WAIT_S": "3.5"}, "nats_ack_wait_s", 3.5),
    ({"STRIPE_API_BASE": "http://127.0.0.1:8420/"}, "stripe_api_base", "http://127.0.0.1:8420"),
    ({"HTTP_HOST": "0.0.0.0", "AUTH_OFF_I_KNOW": "1"}, "http_host", "0.0.0.0"),
    ({"HTTP_HOST": "127.8.9.10"}, "http_host", "127.8.9.10"),
    ({"HTTP_HOST": "::1"}, "http_host", "::1"),
    ({"HTTP_HOST": "::ffff:127.0.0.1"}, "http_host", "::ffff:127.0.0.1"),
    ({"ORDERS_KEPT": "90d"}, "orders_kept", 90 * 86_400.0),
    ({"ORDERS_KEPT": " 72H "}, "orders_kept", 72 * 3600.0),
    ({"ORDERS_KEPT": "172800"}, "orders_kept", 172_800.0),
    ({"HISTORY_KEPT": "2d"}, "history_kept", 172_800.0),
    ({"HTTP_PORT": "  "}, "http_port", 8080),
    ({"HTTP_PORT_FILE": "/nowhere", "HTTP_PORT": "81"}, "http_port", 81),
    ({"ORDERS_KEPT": "2.5d"}, "orders_kept", 216_000.0),
    ({"ORDERS_KEPT": "none"}, "orders_kept", None),
    ({"ORDERS_KEPT": ""}, "orders_kept", None),
    ({"HTTP_HOST": "LocalHost"}, "http_host", "LocalHost"),
    ({"PAYMENT_GATEWAY": "stripe", "STRIPE_API_KEY": SECRET}, "stripe_api_key", SECRET),
    ({"STRIPE_INSTALLATION": " shop-eu.1 "}, "stripe_installation", "shop-eu.1"),
]


@pytest.mark.parametrize(("environ", "field", "value"), GOOD, ids=lambda value: str(value)[:40])
def test_a_valid_value_is_accepted(environ: Mapping[str, str], field: str, value: object) -> None:
    """Case of words and spaces around a value do not matter; numbers are numbers."""
    found = getattr(load(environ), field)
    assert found == value
    assert type(found) is type(value) or isinstance(found, str)


BAD = [
    ("BUS", {"BUS": "kafka"}),
    ("MODULES", {"MODULES": "orders,inventory"}),
    ("MODULES", {"BUS": "nats", "MODULES": "orders,shipping"}),
    ("MODULES", {"BUS": "nats", "MODULES": "orders,orders"}),
    ("MODULES", {"BUS": "nats", "MODULES": "orders,"}),
    ("MODULES", {"BUS": "nats", "MODULES": ","}),
    ("NATS_URL", {"NATS_URL": "http://127.0.0.1"}),
    ("NATS_URL", {"NATS_URL": "nats://a,,nats://b"}),
    ("NATS_URL", {"NATS_URL": "nats://a:port"}),
    ("NATS_CREDS", {"BUS": "nats", "NATS_CREDS": "/nowhere/nats.creds"}),
    ("NATS_TLS_CA", {"BUS": "nats", "NATS_TLS_CA": "/nowhere/ca.pem"}),
    ("NATS_REPLICAS", {"NATS_REPLICAS": "0"}),
    ("NATS_REPLICAS", {"NATS_REPLICAS": "6"}),
    ("NATS_ACK_WAIT_S", {"NATS_ACK_WAIT_S": "2.9"}),
    ("NATS_ACK_WAIT_S", {"NATS_ACK_WAIT_S": "3601"}),
    ("DATABASE_URL", {"DATABASE_URL": "mysql://u:p@h/db"}),
    ("DATABASE_URL", {"DATABASE_URL": "sqlite://"}),
    ("DATABASE_URL", {"DATABASE_URL": "sqlite:///"}),
    ("DATABASE_URL", {"DATABASE_URL": "sqlite:///:memory:"}),
    ("DATABASE_URL", {"DATABASE_URL": "sqlite:///file::memory:?uri=true"}),
    ("DATABASE_URL", {"DATABASE_URL": "sqlite://data/x.db"}),
    ("DATABASE_URL", {"DATABASE_URL": "postgresql://"}),
    ("DATABASE_URL", {"DATABASE_URL": "postgresql://h:port/db"}),
    ("DATABASE_URL", {"DATABASE_URL": "data/x.db"}),
    ("ORDERS_DATABASE_URL", {"ORDERS_DATABASE_URL": "sqlite://"}),
    ("INVENTORY_DATABASE_URL", {"INVENTORY_DATABASE_URL": "oracle://h/db"}),
    ("PAYMENTS_DATABASE_URL", {"PAYMENTS_DATABASE_URL": "postgresql://[::1/db"}),
    ("HTTP_PORT", {"HTTP_PORT": "abc"}),
    ("HTTP_PORT", {"HTTP_PORT": "-1"}),
    ("HTTP_PORT", {"HTTP_PORT": "65536"}),
    ("HTTP_PORT", {"HTTP_PORT": "8_080"}),
    ("HTTP_PORT", {"HTTP_PORT": "80.0"}),
    ("HTTP_PORT", {"HTTP_PORT": "٨٠"}),
    ("HTTP_PORT", {"HTTP_PORT": "9" * 5000}),
    ("HTTP_PORT", {"HTTP_PORT": "1\n2"}),
    ("HTTP_HOST", {"HTTP_HOST": "127.0.0.1\nX: y"}),
    ("LOG_LEVEL", {"LOG_LEVEL": "LOUD"}),
    ("LOG_FORMAT", {"LOG_FORMAT": "xml"}),
    ("LOG_FILE", {"LOG_FILE": "/nowhere/at/all.log"}),
    ("LOG_FILE", {"LOG_FILE": "/"}),
    ("PAYMENT_GATEWAY", {"PAYMENT_GATEWAY": "paypal"}),
    ("STRIPE_API_KEY", {"PAYMENT_GATEWAY": "stripe"}),
    ("STRIPE_API_BASE", {"STRIPE_API_BASE": "ftp://api.stripe.com"}),
    ("STRIPE_INSTALLATION", {"STRIPE_INSTALLATION": "my shop"}),
    ("STRIPE_INSTALLATION", {"STRIPE_INSTALLATION": "x" * 65}),
    ("STRIPE_API_BASE", {"STRIPE_API_BASE": "http://api.stripe.com", "STRIPE_API_KEY": "sk_live_1"}),
    ("STRIPE_API_BASE", {"STRIPE_API_BASE": "http://api.stripe.com", "STRIPE_API_KEY": "rk_live_1"}),
    ("SIMULATED_DECLINE_OVER", {"SIMULATED_DECLINE_OVER": "-1"}),
    ("SIMULATED_DECLINE_OVER", {"SIMULATED_DECLINE_OVER": "1.5"}),
    ("SIMULATED_LATENCY_MS", {"SIMULATED_LATENCY_MS": "-0.1"}),
    ("SIMULATED_LATENCY_MS", {"SIMULATED_LATENCY_MS": "nan"}),
    ("SIMULATED_LATENCY_MS", {"SIMULATED_LATENCY_MS": "inf"}),
    ("SIMULATED_FAILURE_RATE", {"SIMULATED_FAILURE_RATE": "1.01"}),
    ("ORDER_TIMEOUT_S", {"ORDER_TIMEOUT_S": "0"}),
    *(("ORDERS_KEPT", {"ORDERS_KEPT": text}) for text in ("90", "47h", "1d", "-90d", "d", "90 days", "ninety", "99999d", "1e400d")),
    *(("HISTORY_KEPT", {"HISTORY_KEPT": text}) for text in ("47h", "1d", "20000d")),
    ("ORDERS_KEPT", {"ORDERS_KEPT": "20000d"}),
    ("ORDER_TIMEOUT_S", {"ORDER_TIMEOUT_S": "1e400"}),
    ("SHUTDOWN_GRACE_S", {"SHUTDOWN_GRACE_S": "-20"}),
    ("AUTH", {"AUTH": "basic"}),
    ("AUTH", {"HTTP_HOST": "0.0.0.0"}),
    ("AUTH", {"HTTP_HOST": "::"}),
    ("AUTH", {"HTTP_HOST": "127.example.com"}),
    ("AUTH", {"HTTP_HOST": "0.0.0.0", "AUTH_OFF_I_KNOW": "0"}),
    ("AUTH_OFF_I_KNOW", {"AUTH_OFF_I_KNOW": "maybe"}),
    ("API_KEYS_FILE", {"AUTH": "keys"}),
    ("API_KEYS_FILE", {"AUTH": "keys", "API_KEYS_FILE": "/nowhere/keys"}),
    ("API_KEYS_FILE", {"AUTH": "keys", "API_KEYS_FILE": "/"}),
    ("SHUTDOWN_DELAY_S", {"SHUTDOWN_DELAY_S": "-1"}),
    ("ALLOWED_HOSTS", {"ALLOWED_HOSTS": "orders:8080"}),
    ("ALLOWED_HOSTS", {"ALLOWED_HOSTS": "a,,b"}),
    ("RETIRED_VERSIONS", {"RETIRED_VERSIONS": "orders.created"}),
    ("RETIRED_VERSIONS", {"RETIRED_VERSIONS": "orders.created.v1.express"}),
    ("RETIRED_VERSIONS", {"RETIRED_VERSIONS": "orders.created.v1,"}),
    ("RETIRED_VERSIONS", {"RETIRED_VERSIONS": "orders.created.v1,orders.created.v1"}),
    ("OTEL_EXPORTER_OTLP_ENDPOINT", {"OTEL_EXPORTER_OTLP_ENDPOINT": "collector:4318"}),
    ("OTEL_SDK_DISABLED", {"OTEL_SDK_DISABLED": "yes"}),
    ("OTEL_TRACES_SAMPLER", {"OTEL_TRACES_SAMPLER": "jaeger_remote"}),
    ("OTEL_TRACES_SAMPLER_ARG", {"OTEL_TRACES_SAMPLER_ARG": "1.5"}),
    ("MODULE_URLS", {"MODULE_URLS": "http://orders:8080"}),
    ("MODULE_URLS", {"MODULE_URLS": "shipping=http://shipping:8080"}),
    ("MODULE_URLS", {"MODULE_URLS": "orders=orders:8080"}),
    ("MODULE_URLS", {"MODULE_URLS": "orders="}),
    ("MODULE_URLS", {"MODULE_URLS": "orders=http://a,orders=http://b"}),
    ("MODULE_URLS", {"MODULE_URLS": "orders=http://user:password@a"}),
    ("MODULE_URLS", {"MODULE_URLS": "orders=http://a?module=orders"}),
    ("MODULE_KEY", {"MODULE_KEY": "too-short"}),
    ("MODULE_KEY", {"MODULE_KEY": "a key with spaces in it"}),
    ("CORS_ORIGINS", {"CORS_ORIGINS": "shop.example"}),
    ("CORS_ORIGINS", {"CORS_ORIGINS": "https://shop.example/"}),
    ("CORS_ORIGINS", {"CORS_ORIGINS": "*"}),
    ("CORS_ORIGINS", {"CORS_ORIGINS": "https://user@shop.example"}),
    ("REQUESTS_PER_S", {"REQUESTS_PER_S": "0"}),
    ("CONNECTIONS_MAX", {"CONNECTIONS_MAX": "0"}),
    ("HTTP_WORKERS", {"HTTP_WORKERS": "-1"}),
    ("OUTBOX_CAP", {"OUTBOX_CAP": "0"}),
    ("BATCH_MAX", {"BATCH_MAX": "0"}),
]


@pytest.mark.parametrize(("name", "environ"), BAD, ids=lambda value: str(value)[:60])
def test_an_invalid_value_is_rejected_in_one_line_that_names_its_variable(name: str, environ: Mapping[str, str]) -> None:
    """The line names the variable and what it must hold."""
    line = rejection(environ)
    assert line.startswith(f"{name}: ")
    assert line.isprintable()
    assert len(line) < 250


@pytest.mark.parametrize("name", [variable.name for variable in describe(MODULES) if not variable.is_secret])
@given(value=st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])))
def test_any_text_in_a_variable_gives_settings_or_one_line(name: str, value: str) -> None:
    """No text ends the program with a traceback."""
    try:
        load({name: value})
        line = name
    except BadSetting as error:
        line = str(error)
    assert name in line
    assert line.isprintable()


SECRETS = [
    ("NATS_PASSWORD", SECRET),
    ("CONSOLE_SECRET", SECRET),
    ("MODULE_KEY", SECRET),
    ("CONSOLE_SECRET", SECRET),
    ("STRIPE_API_KEY", SECRET),
    ("STRIPE_WEBHOOK_SECRET", SECRET),
    ("STRIPE_WEBHOOK_SECRET", f"whsec_another, {SECRET}"),
    ("DATABASE_URL", f"postgresql://db/fulfilment?password={SECRET}"),
    ("DATABASE_URL", f"postgresql://user:{SECRET}@db/fulfilment"),
    ("ORDERS_DATABASE_URL", f"postgresql://user:{SECRET}@db/fulfilment"),
    ("INVENTORY_DATABASE_URL", f"postgresql://user:{SECRET}@db/fulfilment"),
    ("PAYMENTS_DATABASE_URL", f"postgresql://user:{SECRET}@db/fulfilment"),
    ("NATS_URL", f"nats://user:{SECRET}@broker:4222"),
]


@pytest.mark.parametrize(("name", "value"), SECRETS)
def test_a_secret_may_come_from_a_file(name: str, value: str, tmp_path: Path) -> None:
    """``<NAME>_FILE`` is the path of a file that holds the value; a newline at its end is not part of the value."""
    file = tmp_path / "secret"
    file.write_text(value + "\n")
    assert load({f"{name}_FILE": str(file)}) == load({name: value})


@pytest.mark.parametrize(("name", "value"), SECRETS)
def test_a_secret_appears_in_no_repr(name: str, value: str) -> None:
    """Settings can be printed without showing a secret, and `secrets` yields every text that a log has to redact."""
    settings = load({name: value})
    assert SECRET not in repr(settings)
    assert SECRET not in str(settings)
    assert SECRET not in repr([settings.database_url(module) for module in settings.modules])
    assert SECRET not in repr((settings.nats_url, settings.nats_password, settings.stripe_api_key))
    assert SECRET not in repr(settings.stripe_webhook_secret)
    assert SECRET in list(settings.secrets())


def test_a_password_is_redacted_as_it_is_written_and_as_it_is_sent() -> None:
    """In an address some characters are written as escapes; a driver's error shows what they stand for."""
    settings = load({"DATABASE_URL": "postgresql://user:one%2Ftwo@db/fulfilment"})
    assert {"one%2Ftwo", "one/two"} <= set(settings.secrets())


def test_a_secret_keeps_the_spaces_around_it(tmp_path: Path) -> None:
    """Only line ends at the end of its file are not part of it."""
    file = tmp_path / "secret"
    file.write_text(f"  {SECRET} \r\n\n")
    assert load({"NATS_PASSWORD_FILE": str(file)}) == load({"NATS_PASSWORD": f"  {SECRET} "})


def test_a_secret_that_is_replaced_can_be_read_again(tmp_path: Path) -> None:
    """From the file that it came from; there is nothing to read where it came without one."""
    file = tmp_path / "secret"
    file.write_text("first\n")
    settings = load({"NATS_PASSWORD_FILE": str(file)})
    file.write_text("second\n")
    assert (settings.nats_password, read_again(settings, "NATS_PASSWORD")) == ("first", "second")
    assert read_again(load({"NATS_PASSWORD": "first"}), "NATS_PASSWORD") is None
    file.write_text("")
    with pytest.raises(BadSetting, match="NATS_PASSWORD_FILE: is empty"):
        read_again(settings, "NATS_PASSWORD")


@pytest.mark.parametrize("name", [variable.name for variable in describe(MODULES) if variable.is_secret])
def test_secrets_are_exactly_those_with_a_file(name: str) -> None:
    """Every variable that is described as a secret accepts a file, and reports a file that cannot be read."""
    assert name in dict(SECRETS)
    line = rejection({f"{name}_FILE": "/nowhere/secret"})
    assert line.startswith(f"{name}_FILE: ")
    assert "/nowhere" not in line


@pytest.mark.parametrize(("name", "value"), SECRETS)
def test_a_secret_that_is_given_twice_is_rejected(name: str, value: str, tmp_path: Path) -> None:
    """Setting both is an error, because it would be unclear which one counts."""
    file = tmp_path / "secret"
    file.write_text(value)
    line = rejection({name: value, f"{name}_FILE": str(file)})
    assert line.startswith(f"{name}: ")
    assert f"{name}_FILE" in line
    assert SECRET not in line


@pytest.mark.parametrize("content", [b"", b"\n", b"\xff\xfe", b"x" * 70_000])
def test_a_file_that_holds_no_secret_is_rejected(content: bytes, tmp_path: Path) -> None:
    """An empty file, one that is not UTF-8 and one that is far too large are named by mistake."""
    file = tmp_path / "secret"
    file.write_bytes(content)
    assert rejection({"NATS_PASSWORD_FILE": str(file)}).startswith("NATS_PASSWORD_FILE: ")


BAD_ADDRESSES = [
    f"mysql://u:{SECRET}@h/db",
    f"postgresql://u:{SECRET}@[h/db",
    f"postgresql://u:{SECRET}@h:port/db",
    f"sqlite://u:{SECRET}@h/x.db",
    SECRET,
]


@pytest.mark.parametrize("value", BAD_ADDRESSES)
def test_an_invalid_address_is_not_shown_in_the_error(value: str) -> None:
    """An address may hold a password; the error describes the fault without showing the address."""
    assert SECRET not in rejection({"DATABASE_URL": value})
    assert SECRET not in rejection({"NATS_URL": value})


def test_a_module_may_have_its_own_database() -> None:
    """A module's own address applies to that module alone; the others keep the common one."""
    settings = load({"DATABASE_URL": "postgresql://h/all", "PAYMENTS_DATABASE_URL": "sqlite:////var/payments.db"})
    assert settings.database_url("orders") == settings.database_url("inventory") == "postgresql://h/all"
    assert settings.database_url("payments") == "sqlite:////var/payments.db"
    assert [settings.database_variable(module) for module in ("orders", "payments")] == ["DATABASE_URL", "PAYMENTS_DATABASE_URL"]


def test_settings_that_are_constructed_directly_are_checked_as_well() -> None:
    """Tests and embedding programs pass values instead of texts; contradicting values are rejected nevertheless."""
    assert Settings(known_modules=MODULES, http_port=0, database_url="sqlite:////tmp/x.db").database_url("orders") == "sqlite:////tmp/x.db"
    assert Settings(known_modules=MODULES, bus="nats", modules=("payments",), order_timeout_s=3).modules == ("payments",)
    wrong: list[dict[str, Any]] = [{"http_port": True}, {"modules": ("orders",)}, {"modules": 3}, {"log_level": 10}]
    for values in [*wrong, {"order_timeout_s": float("nan")}, {"http_host": None}]:
        with pytest.raises(BadSetting):
            Settings(known_modules=MODULES, **values)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_the_log_is_text_on_a_terminal_and_json_elsewhere() -> None:
    """LOG_FORMAT overrides both."""
    assert (Settings(known_modules=MODULES).log_format_on(Terminal()), Settings(known_modules=MODULES).log_format_on(io.StringIO())) == ("text", "json")
    assert Settings(known_modules=MODULES, log_format="json").log_format_on(Terminal()) == "json"
    assert Settings(known_modules=MODULES, log_format="text").log_format_on(io.StringIO()) == "text"


KEY = "0123456789abcdef"


def digest(key: str) -> str:
    return sha256(key.encode()).hexdigest()


def test_api_keys_are_stored_as_hashes(tmp_path: Path) -> None:
    """Comments and blank lines are skipped, and no key stays in memory."""
    file = tmp_path / "keys"
    file.write_bytes(
        b"# callers\n\nshop:shop:0123456789abcdef\r\n  app_2.x:shop:0123456789abcdef-2:c-1 \nops:operator:0123456789abcdef-3\n"
    )
    settings = load({"AUTH": "keys", "API_KEYS_FILE": str(file), "HTTP_HOST": "0.0.0.0"})
    assert settings.api_keys == {
        "shop": ApiKey("shop", "shop", digest(KEY)),
        "app_2.x": ApiKey("app_2.x", "shop", digest(f"{KEY}-2"), "c-1"),
        "ops": ApiKey("ops", "operator", digest(f"{KEY}-3")),
    }
    assert KEY not in repr(settings)


def test_a_key_without_a_role_is_an_operators(tmp_path: Path) -> None:
    """As before there were roles; a colon can be part of such a key."""
    file = tmp_path / "keys"
    file.write_text(f"shop:{KEY}\nback.office-2_x:{KEY}:more\n")
    keys = load({"AUTH": "keys", "API_KEYS_FILE": str(file)}).api_keys
    assert [(key.role, key.customer, key.is_role_given) for key in keys.values()] == [("operator", None, False)] * 2
    assert keys["back.office-2_x"].digest == digest(f"{KEY}:more")


BAD_LINES = [
    "shop",
    KEY,
    f"sh op:{KEY}",
    f":{KEY}",
    f"{'n' * 65}:{KEY}",
    "shop:0123456789abcde",
    f"shop:{KEY} {KEY}",
    f"shop:{KEY}\u00e9",
    f"first:{KEY}x",
    f"second:{KEY}0",
    f"second:shop:{KEY}0",
    f"web:shopp:{KEY}",
    f"web:Shop:{KEY}",
    "web:shop:0123456789abcde",
    f"web::{KEY}",
    f"web:viewer:{KEY}:c-1",
    f"web:shop:{KEY}:",
    f"web:shop:{KEY}:{'c' * 65}",
]


@pytest.mark.parametrize("line", BAD_LINES)
def test_the_error_of_a_wrong_line_of_api_keys_gives_its_number(line: str, tmp_path: Path) -> None:
    """The error gives the number of the line and no part of its text."""
    file = tmp_path / "keys"
    file.write_text(f"# callers\nfirst:{KEY}0\n\n{line}\n")
    message = rejection({"AUTH": "keys", "API_KEYS_FILE": str(file)})
    assert message.startswith("API_KEYS_FILE: line 4: ")
    assert "012345" not in message


@pytest.mark.parametrize("content", ["", "# empty\n\n"])
def test_a_file_without_a_key_is_rejected(content: str, tmp_path: Path) -> None:
    """AUTH=keys without any key is a configuration error."""
    file = tmp_path / "keys"
    file.write_text(content)
    assert rejection({"AUTH": "keys", "API_KEYS_FILE": str(file)}) == "API_KEYS_FILE: holds no key"


def test_the_file_of_api_keys_is_not_read_while_auth_is_off() -> None:
    """A file that is not used cannot stop the program."""
    assert load({"API_KEYS_FILE": "/nowhere/keys"}).api_keys == {}


def test_config_imports_nothing_of_the_project() -> None:
    """Reading the environment imports no other package of the project, and no heavy dependency."""
    code = "import sys, config.settings; print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    imported = set(
        subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    )
    assert imported.isdisjoint({"app", "modules", "bus", "sqlalchemy", "aiohttp", "cattrs", "loguru", "asyncio"})


def test_loading_logs_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """Logging is set up from these settings; a log line before that would be lost."""
    with caplog.at_level(logging.DEBUG):
        load({"NATS_PASSWORD": SECRET})
    assert caplog.records == []


@pytest.mark.parametrize("mode", [0o604, 0o644, 0o666])
def test_a_secret_file_that_every_user_can_read_is_refused(mode: int, tmp_path: Path) -> None:
    """One line that names what to do, and neither the path nor the secret."""
    file = tmp_path / "keys"
    file.write_text(f"shop:shop:{KEY}\n")
    file.chmod(mode)
    for name, environ in {
        "API_KEYS_FILE": {"AUTH": "keys", "API_KEYS_FILE": str(file)},
        "STRIPE_API_KEY_FILE": {"STRIPE_API_KEY_FILE": str(file)},
        "NATS_CREDS": {"BUS": "nats", "NATS_CREDS": str(file)},
    }.items():
        line = rejection(environ)
        assert line == f"{name}: every user of this machine can read the file; take that right away (chmod 600)"


def test_a_secret_that_a_container_engine_mounts_may_have_any_mode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Engines mount secrets with modes of their own, in a folder that only the container has."""
    monkeypatch.setattr(files, "MOUNTED_SECRETS", f"{tmp_path}/secrets/")
    for folder, is_accepted in ("secrets", True), ("secrets-2", False):
        file = tmp_path / folder / "keys"
        file.parent.mkdir()
        file.write_text(f"shop:shop:{KEY}\n")
        file.chmod(0o444)
        environ = {"AUTH": "keys", "API_KEYS_FILE": str(file)}
        if is_accepted:
            assert load(environ).api_keys
        else:
            assert "every user of this machine can read the file" in rejection(environ)


def test_secrets_are_mounted_where_container_engines_mount_them() -> None:
    """In no other folder may they have any mode."""
    assert files.MOUNTED_SECRETS == "/run/secrets/"


def test_a_pipe_has_no_mode(tmp_path: Path) -> None:
    """What it holds is read once: a password manager passes a secret so."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    pipe.chmod(0o644)
    writing = threading.Thread(target=pipe.write_text, args=(SECRET,))
    writing.start()
    assert load({"NATS_PASSWORD_FILE": str(pipe)}).nats_password == SECRET
    writing.join()


def test_a_secret_has_at_most_64_kib(tmp_path: Path) -> None:
    """A file that is larger is named by mistake."""
    file = tmp_path / "secret"
    file.write_bytes(b"x" * (64 * 1024))
    assert len(load({"NATS_PASSWORD_FILE": str(file)}).nats_password or "") == 64 * 1024
    file.write_bytes(b"x" * (64 * 1024 + 1))
    assert "larger than" in rejection({"NATS_PASSWORD_FILE": str(file)})


@pytest.mark.parametrize("mode", [0o400, 0o600, 0o640, 0o440])
def test_a_secret_file_may_be_read_by_its_owner_and_group(mode: int, tmp_path: Path) -> None:
    """A certificate is no secret, and a pipe has no other reader."""
    file = tmp_path / "keys"
    file.write_text(f"shop:shop:{KEY}\n")
    file.chmod(mode)
    assert load({"AUTH": "keys", "API_KEYS_FILE": str(file)}).api_keys
    file.chmod(0o644)
    assert load({"BUS": "nats", "NATS_TLS_CA": str(file)}).nats_tls_ca
