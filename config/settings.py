"""
The settings of a process: one declaration per environment variable gives its name, default, help text and check.

A field's name in capitals is the variable's. Unset and empty both mean the default. `Settings` can also be constructed
directly, with the same checks: an instance never contradicts itself. Which modules exist is an argument, since this
package imports nothing of the project.

The declarations are typed-settings'; its loader is not used, because it prints a bad value in its error.
"""

from __future__ import annotations

__all__ = ["SAMPLERS", "Settings", "database_variable", "variable_of"]

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any, TextIO
from urllib.parse import parse_qsl, unquote

import attrs
import typed_settings as ts
from attrs import frozen

from config import values
from config.api_keys import ApiKey, read_api_keys
from config.files import BadSetting, read_file
from config.rules import RULES

_API_KEYS_BYTES_MAX = 16 * 1024 * 1024
_SECONDS_MAX = 1e9
_WHOLE_MAX = 2**63 - 1

SAMPLERS = (
    *("parentbased_traceidratio", "parentbased_always_on", "parentbased_always_off"),
    *("traceidratio", "always_on", "always_off"),
)
"""The values of OTEL_TRACES_SAMPLER; the first is the default."""


def _variable(parse: values.Parser, default: Any, help: str, *, default_text: str | None = None) -> Any:
    """Declare a variable; *default_text* shows the default where the value itself would not do."""
    return ts.option(
        default=default, converter=_named(parse, default), help=help, metadata={"default_text": default_text}
    )


def _secret(parse: values.Parser, default: Any, help: str) -> Any:
    """Declare a variable that no repr and no message shows, and whose value a file may hold."""
    return ts.secret(default=default, converter=_named(parse, default), help=help, metadata={"is_secret": True})


def _named(parse: values.Parser, default: Any) -> Any:
    def convert(value: Any, field: attrs.Attribute[Any]) -> Any:
        try:
            return None if value is None and default is None else parse(value)
        except (TypeError, ValueError) as error:
            raise BadSetting(variable_of(field), str(error)) from None

    return attrs.Converter(convert, takes_field=True)


def variable_of(field: attrs.Attribute[Any]) -> str:
    """Return the name of the variable that sets *field*."""
    return (field.alias or field.name).upper()


def database_variable(module: str) -> str:
    """Return the name of the variable for *module*'s own database."""
    return f"{module}_database_url".upper()


def _chosen_modules(value: Any, settings: Any) -> tuple[str, ...]:
    try:
        return values.subset(*settings.known_modules)(value)  # type: ignore[no-any-return]
    except (TypeError, ValueError) as error:
        raise BadSetting("MODULES", str(error)) from None


def _database_urls(value: Mapping[str, Any], settings: Any) -> Mapping[str, str]:
    found = {}
    for module, url in value.items():
        if module not in settings.known_modules:
            raise BadSetting(database_variable(module), f"there is no module {module}")
        try:
            found[module] = _database(url)
        except (TypeError, ValueError) as error:
            raise BadSetting(database_variable(module), str(error)) from None
    return MappingProxyType(found)


def _module_urls(value: Any, settings: Any) -> Mapping[str, str]:
    try:
        return MappingProxyType(values.addresses(*settings.known_modules)(value))
    except (TypeError, ValueError) as error:
        raise BadSetting("MODULE_URLS", str(error)) from None


def _hidden_key(value: Any) -> ts.SecretStr:
    return ts.SecretStr(values.visible_key(value))


def _hidden(value: Any) -> ts.SecretStr:
    return ts.SecretStr(values.text(value))


def _hidden_servers(value: Any) -> tuple[str, ...]:
    return tuple(ts.SecretStr(url) for url in values.urls("nats", "tls", "ws", "wss")(value))


def _database(value: Any) -> ts.SecretStr:
    url = values.text(value).strip()
    if url.startswith("postgres://"):  # as libpq and many hosters write it
        url = url.replace("postgres://", "postgresql://", 1)
    parts = values.split_url(url)
    if parts.scheme == "sqlite":
        if parts.netloc:
            raise ValueError("must be sqlite:///path, with three slashes (four before an absolute path)")
        if parts.path in ("", "/") or parts.path.startswith(("/:memory:", "/file:")):
            raise ValueError("must name a file; orders kept in memory would be lost with the process")
    elif parts.scheme != "postgresql" or not (parts.netloc or parts.path.strip("/")):
        raise ValueError("must begin with sqlite:/// or postgresql://")
    return ts.SecretStr(url)


@frozen(kw_only=True)
class Settings:
    """
    Everything that can be set, checked.

    Raises:
        BadSetting: A value is wrong, or two values contradict each other.
    """

    known_modules: tuple[str, ...]
    """Names of all modules that exist, in order; no variable sets this. `modules.registry.MODULES`, in this project."""

    secret_files: Mapping[str, str] = attrs.field(factory=dict, repr=False, eq=False)
    """Paths of the files that hold secrets which may be replaced, by variable; no variable sets this."""

    bus: str = _variable(
        values.choice("memory", "nats", fold=str.lower), "memory", "Bus that carries the events: memory (one process) or nats."
    )
    modules: tuple[str, ...] = ts.option(
        default=attrs.Factory(lambda self: self.known_modules, takes_self=True),
        converter=attrs.Converter(_chosen_modules, takes_self=True),
        help="Which modules this process runs, comma-separated; memory needs all of them.",
    )
    nats_url: tuple[str, ...] = _secret(_hidden_servers, "nats://127.0.0.1:4222", "NATS servers, comma-separated.")
    nats_creds: str | None = _variable(values.sole_text, None, "File with NATS credentials (JWT and seed).")
    nats_tls_ca: str | None = _variable(values.sole_text, None, "File with the CA certificates that verify the NATS servers.")
    nats_user: str | None = _variable(values.sole_text, None, "NATS user.")
    nats_password: str | None = _secret(_hidden, None, "NATS password.")
    nats_replicas: int = _variable(values.whole(1, 5), 1, "Replicas of each stream, 1 to 5.")
    nats_ack_wait_s: float = _variable(
        values.number(3, 3600), 30.0, "Seconds after which an unacknowledged message is delivered again, 3 to 3600."
    )
    _database_url: str = _secret(
        _database, "sqlite:///data/fulfilment.db", "Database: sqlite:///path or postgresql://..."
    )
    database_urls: Mapping[str, str] = ts.secret(
        factory=dict,
        converter=attrs.Converter(_database_urls, takes_self=True),
        help="The same for the module {module} alone.",
    )
    """By module, where it has an address of its own: one variable ``<MODULE>_DATABASE_URL`` for each known module."""
    http_host: str = _variable(values.sole_text, "127.0.0.1", "Address to listen on.")
    http_port: int = _variable(values.whole(0, 65535), 8080, "Port to listen on; 0 picks a free one and prints it.")
    http_workers: int = _variable(
        values.whole(0, 64), 0, "Processes that answer HTTP beside the one that runs the modules; 0: that one answers itself."
    )
    log_level: str = _variable(
        values.choice("TRACE", "DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL", fold=str.upper),
        "INFO",
        "Lowest level that is logged.",
    )
    log_format: str | None = _variable(
        values.choice("json", "text", fold=str.lower),
        None,
        "Format of the log on stdout: json or text.",
        default_text="json (text on a terminal)",
    )
    log_file: str | None = _variable(values.sole_text, None, "File that receives the log as JSON lines, in addition to stdout.")
    payment_gateway: str = _variable(
        values.choice("simulated", "stripe", fold=str.lower), "simulated", "Payment provider: simulated or stripe."
    )
    stripe_api_key: str | None = _secret(_hidden, None, "Stripe's secret key; required with PAYMENT_GATEWAY=stripe.")
    stripe_api_base: str = _variable(values.http_url, "https://api.stripe.com", "Base address of Stripe's API.")
    stripe_webhook_secret: str | None = _secret(_hidden, None, "Secrets that Stripe signs its webhooks with, comma-separated: one for each endpoint.")
    stripe_installation: str | None = _variable(values.name, None, "Name of this installation, kept with each charge; see payments.")
    simulated_decline_over: int | None = _variable(
        values.or_none(values.whole(0, _WHOLE_MAX)),
        None,
        "The simulated gateway declines totals above this many minor units.",
    )
    simulated_latency_ms: float = _variable(values.number(0, _SECONDS_MAX), 0.0, "Latency of the simulated gateway, in ms.")
    simulated_failure_rate: float = _variable(
        values.number(0, 1), 0.0, "Share of calls that fail in the simulated gateway, 0 to 1."
    )
    inventory_requires_if_match: bool = _variable(
        values.flag, False, "1 answers 428 to a PUT of a product without If-Match or If-None-Match."
    )
    order_timeout_s: float = _variable(
        values.number(0, _SECONDS_MAX, positive=True), 900.0,
        "An order that is not final after this many seconds is cancelled (timed_out).",
    )  # fmt: skip
    orders_kept: float | None = _variable(
        values.or_none(values.duration(2 * 86_400, _SECONDS_MAX)), None,
        "Age (90d, 72h; at least 2d) at which a finished order leaves the lists for the archive; by default none does.",
    )  # fmt: skip
    history_kept: float | None = _variable(
        values.or_none(values.duration(2 * 86_400, _SECONDS_MAX)), None,
        "Age (90d, 72h; at least 2d) at which the history of all events is deleted; by default it is kept for ever.",
    )  # fmt: skip
    history_archive: str | None = _variable(
        values.sole_text, None,
        "Folder with the archive of the history, which is read together with the database; then only `history archive --purge` deletes.",
    )  # fmt: skip
    analytics_file: str = _variable(
        values.sole_text, "data/analytics.duckdb", "DuckDB file of `analytics`; it has the events of all modules as tables."
    )
    analytics_memory: str = _variable(
        values.memory, "1GB", "Memory that DuckDB takes at most (512MB, 4GB); what needs more goes to the folder beside the file."
    )
    dead_letter_order: str = _variable(
        values.choice("none", "key", fold=str.lower), "none",
        "key: what a module receives about an order waits while an earlier event of the order is its dead letter; none: nothing waits.",
    )  # fmt: skip
    retired_versions: tuple[str, ...] = _variable(
        values.subjects, (), "Older versions of events (orders.created.v1), comma-separated, not published once no consumer needs them.", default_text=""
    )
    work_stalled_s: float = _variable(
        values.number(1, _SECONDS_MAX), 60.0,
        "Readiness is degraded when an event waits longer than this for the bus, or a consumer or a module makes no"
        " progress for this many seconds.",
    )  # fmt: skip
    clock_jump_s: float = _variable(
        values.number(10, _SECONDS_MAX),
        600.0,
        "When the clock differs from the last heartbeat by more seconds than this at a start, timers keep the time that"
        " they had left, and readiness is degraded.",
    )
    shutdown_grace_s: float = _variable(
        values.number(0, _SECONDS_MAX, positive=True), 20.0, "After SIGTERM, finish and exit within this many seconds."
    )
    shutdown_delay_s: float = _variable(
        values.number(0, _SECONDS_MAX),
        0.0,
        "After SIGTERM, answer readiness with 503 for this many seconds before the listener closes; SHUTDOWN_GRACE_S follows.",
    )
    auth: str = _variable(
        values.choice("off", "keys", fold=str.lower),
        "off",
        "off: calls need no key and are taken from this machine only; keys: each call needs a key of API_KEYS_FILE.",
    )
    auth_off_i_know: bool = _variable(values.flag, False, "1 lets AUTH=off listen on an address that other machines reach.")
    api_keys_file: str | None = _variable(
        values.sole_text,
        None,
        "File with one name:role:key[:customer] per line, keys of 16 characters or more; read with AUTH=keys, and at SIGHUP.",
    )
    allowed_hosts: tuple[str, ...] = _variable(
        values.hosts, (), "Host names, comma-separated, that AUTH=off answers for beside loopback; * for all.", default_text=""
    )
    cors_origins: tuple[str, ...] = _variable(
        values.origins, (), "Origins, comma-separated, whose pages may call this server (https://shop.example).", default_text=""
    )
    console_secret: str | None = _secret(
        _hidden, None, "Part of the signature of the console's sessions, the same for all replicas; with AUTH=keys the keys sign them anyway."
    )
    requests_per_s: int | None = _variable(
        values.or_none(values.whole(1, _WHOLE_MAX)), None, "Most requests a second of one API key; without keys, of one address."
    )
    connections_max: int | None = _variable(
        values.or_none(values.whole(1, 1_000_000)), None, "Most connections; by default what the limit of open files leaves."
    )
    module_urls: Mapping[str, str] = ts.option(
        default=attrs.Factory(dict),
        converter=attrs.Converter(_module_urls, takes_self=True),
        help="Where the other modules answer, in a split deployment: orders=http://orders:8080,inventory=...; the address of each"
        " module's own process or service.",
        metadata={"default_text": ""},
    )  # fmt: skip
    """By module. Addresses of modules that this process runs are not used."""
    module_key: str | None = _secret(
        _hidden_key, None, "Key of the role module with which this process asks those of MODULE_URLS."
    )
    otel_exporter_otlp_endpoint: str | None = _variable(
        values.or_none(values.http_url), None, "Base address of an OpenTelemetry collector (OTLP over HTTP) for traces and metrics."
    )
    otel_exporter_otlp_traces_endpoint: str | None = _variable(
        values.or_none(values.http_url), None, "Whole address for traces, in place of OTEL_EXPORTER_OTLP_ENDPOINT."
    )
    otel_exporter_otlp_metrics_endpoint: str | None = _variable(
        values.or_none(values.http_url), None, "Whole address for metrics, in place of OTEL_EXPORTER_OTLP_ENDPOINT."
    )
    otel_sdk_disabled: bool = _variable(values.true_or_false, False, "true or 1 sends nothing to a collector.")
    otel_traces_sampler: str = _variable(
        values.choice(*SAMPLERS, fold=str.lower), SAMPLERS[0], f"Which traces are sent: {', '.join(SAMPLERS)}."
    )
    otel_traces_sampler_arg: float = _variable(
        values.number(0, 1), 0.01, "Share of the traces that a sampler with a ratio sends, 0 to 1."
    )
    outbox_cap: int = _variable(
        values.whole(1, _WHOLE_MAX),
        400_000,
        "When more events than this wait to be published, new orders are answered with 503. The default is 13 minutes of"
        " 500 orders a second without the bus, or 6 of 1,000.",
    )
    batch_max: int = _variable(values.whole(1, 10_000), 256, "Largest number of events that a module processes in one batch.")

    api_keys: Mapping[str, ApiKey] = attrs.field(init=False, repr=False, eq=False)
    """The API keys by the clients' names; empty unless AUTH is keys."""

    def __attrs_post_init__(self) -> None:
        for rule in RULES:
            rule(self)
        object.__setattr__(self, "api_keys", _api_keys(self) if self.auth == "keys" else MappingProxyType({}))

    def database_url(self, module: str) -> str:
        """Return the address of *module*'s database: its own if it has one, the common one otherwise."""
        return self.database_urls.get(module) or self._database_url

    def database_variable(self, module: str) -> str:
        """Return the name of the variable that `database_url` of *module* comes from."""
        return database_variable(module) if module in self.database_urls else "DATABASE_URL"

    def log_format_on(self, stream: TextIO) -> str:
        """Return json or text: what is set, otherwise text if *stream* is a terminal, otherwise json."""
        return self.log_format or ("text" if stream.isatty() else "json")

    def secrets(self) -> Iterator[str]:
        """Yield every text that must never appear in a log: keys, secrets, and the passwords in addresses."""
        for secret in self.nats_password, self.stripe_api_key, self.module_key, self.console_secret, *str(self.stripe_webhook_secret or "").split(","):
            if secret and str(secret).strip():
                yield str(secret).strip()
        for url in (*self.nats_url, self._database_url, *self.database_urls.values()):
            parts = values.split_url(url)
            if parts.password:
                yield from {parts.password, unquote(parts.password)}
            yield from (value for name, value in parse_qsl(parts.query) if name == "password")


def _api_keys(settings: Settings) -> Mapping[str, ApiKey]:
    if settings.api_keys_file is None:
        raise BadSetting("API_KEYS_FILE", "is needed with AUTH=keys")
    try:
        return read_api_keys(read_file("API_KEYS_FILE", settings.api_keys_file, _API_KEYS_BYTES_MAX))
    except ValueError as error:
        raise BadSetting("API_KEYS_FILE", str(error)) from None
