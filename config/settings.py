"""
What the environment says: one declaration per variable gives its name, its default, its help and its check.

A field's name in capitals is the variable's. Unset and empty both mean the default. `Settings` can be made by hand just
as well, and is checked then too; nobody ever holds settings that contradict themselves.

The declarations are typed-settings'; its loader is not used, because it reports a bad value by printing it.
"""

from __future__ import annotations

__all__ = ["MODULES", "BadSetting", "Settings", "Variable", "describe", "example_env", "load"]

import os
from collections.abc import Iterator, Mapping
from ipaddress import IPv6Address, ip_address
from pathlib import Path
from types import MappingProxyType
from typing import Any, TextIO
from urllib.parse import parse_qsl, unquote

import attrs
import typed_settings as ts
from attrs import frozen

from config import values
from config.api_keys import read_api_keys

MODULES = ("orders", "inventory", "payments")

_SECRET_BYTES_MAX = 64 * 1024
_API_KEYS_BYTES_MAX = 16 * 1024 * 1024
_SECONDS_MAX = 1e9
_WHOLE_MAX = 2**63 - 1


class BadSetting(Exception):
    """A variable has a value that nobody can work with; its text is one line that names it."""

    code = "bad_setting"

    def __init__(self, variable: str, detail: str) -> None:
        self.variable = variable
        self.detail = detail
        super().__init__(f"{variable}: {detail}")


@frozen
class Variable:
    """One variable of the environment, for `--help` and the manual; a secret can also be given as ``<name>_FILE``."""

    name: str
    default: str
    help: str
    is_secret: bool


def _variable(parse: values.Parser, default: Any, help: str, *, default_text: str | None = None) -> Any:
    """Declare a variable; *default_text* says the default where it is not simply the value."""
    return ts.option(
        default=default, converter=_named(parse, default), help=help, metadata={"default_text": default_text}
    )


def _secret(parse: values.Parser, default: Any, help: str) -> Any:
    """Declare a variable that no repr and no message shows, and that a file may hold."""
    return ts.secret(default=default, converter=_named(parse, default), help=help, metadata={"is_secret": True})


def _named(parse: values.Parser, default: Any) -> Any:
    def convert(value: Any, field: attrs.Attribute[Any]) -> Any:
        try:
            return None if value is None and default is None else parse(value)
        except (TypeError, ValueError) as error:
            raise BadSetting(_name(field), str(error)) from None

    return attrs.Converter(convert, takes_field=True)


def _name(field: attrs.Attribute[Any]) -> str:
    return (field.alias or field.name).upper()


def _hidden(value: Any) -> ts.SecretStr:
    return ts.SecretStr(values.text(value))


def _hidden_servers(value: Any) -> tuple[str, ...]:
    return tuple(ts.SecretStr(url) for url in values.urls("nats", "tls", "ws", "wss")(value))


def _database(value: Any) -> ts.SecretStr:
    url = values.text(value).strip()
    parts = values.split_url(url)
    if parts.scheme == "sqlite":
        if parts.netloc:
            raise ValueError("must be sqlite:///path, with three slashes (four before an absolute path)")
        if parts.path in ("", "/") or parts.path.startswith(("/:memory:", "/file:")):
            raise ValueError("must name a file; orders kept in memory would not outlive the process")
    elif parts.scheme != "postgresql" or not (parts.netloc or parts.path.strip("/")):
        raise ValueError("must begin with sqlite:/// or postgresql://")
    return ts.SecretStr(url)


def _is_loopback(host: str) -> bool:
    if host.lower() == "localhost":
        return True
    try:
        address = ip_address(host)
    except ValueError:
        return False
    if isinstance(address, IPv6Address) and address.ipv4_mapped:
        address = address.ipv4_mapped
    return address.is_loopback


@frozen(kw_only=True)
class Settings:
    """
    Everything that can be set, checked.

    Raises:
        BadSetting: A value is wrong, or two of them do not go together.
    """

    bus: str = _variable(
        values.choice("memory", "nats", fold=str.lower), "memory", "How events travel: memory (one process) or nats."
    )
    modules: tuple[str, ...] = _variable(
        values.subset(*MODULES),
        MODULES,
        "Which modules this process runs, comma-separated; memory needs all of them.",
        default_text=",".join(MODULES),
    )
    nats_url: tuple[str, ...] = _secret(_hidden_servers, "nats://127.0.0.1:4222", "NATS servers, comma-separated.")
    nats_creds: str | None = _variable(values.sole_text, None, "File with NATS credentials (JWT and seed).")
    nats_tls_ca: str | None = _variable(
        values.sole_text, None, "File with the certificates that NATS servers are checked against."
    )
    nats_user: str | None = _variable(values.sole_text, None, "NATS user.")
    nats_password: str | None = _secret(_hidden, None, "NATS password.")
    nats_replicas: int = _variable(values.whole(1, 5), 1, "Replicas of each stream, 1 to 5.")
    nats_ack_wait_s: float = _variable(
        values.number(3, 3600), 30.0, "A message that nobody answered for so many seconds is handed out again, 3 to 3600."
    )
    _database_url: str = _secret(
        _database, "sqlite:///data/fulfilment.db", "Where states are kept: sqlite:///path or postgresql://..."
    )
    orders_database_url: str | None = _secret(_database, None, "The same for the module orders alone.")
    inventory_database_url: str | None = _secret(_database, None, "The same for the module inventory alone.")
    payments_database_url: str | None = _secret(_database, None, "The same for the module payments alone.")
    http_host: str = _variable(values.sole_text, "127.0.0.1", "Address to listen on.")
    http_port: int = _variable(values.whole(0, 65535), 8080, "Port to listen on; 0 picks a free one and says which.")
    log_level: str = _variable(
        values.choice("TRACE", "DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL", fold=str.upper),
        "INFO",
        "The least level that is logged.",
    )
    log_format: str | None = _variable(
        values.choice("json", "text", fold=str.lower),
        None,
        "How stdout is written: json or text.",
        default_text="json (text on a terminal)",
    )
    log_file: str | None = _variable(values.sole_text, None, "File that gets the log as JSON lines, beside stdout.")
    payment_gateway: str = _variable(
        values.choice("simulated", "stripe", fold=str.lower), "simulated", "Who takes the money: simulated or stripe."
    )
    stripe_api_key: str | None = _secret(_hidden, None, "Stripe's secret key; stripe needs it.")
    stripe_api_base: str = _variable(values.http_url, "https://api.stripe.com", "Where Stripe's API is.")
    stripe_webhook_secret: str | None = _secret(_hidden, None, "What Stripe signs its webhooks with.")
    simulated_decline_over: int | None = _variable(
        values.or_none(values.whole(0, _WHOLE_MAX)),
        None,
        "The simulated gateway declines totals above this many minor units.",
    )
    simulated_latency_ms: float = _variable(
        values.number(0, _SECONDS_MAX), 0.0, "How long the simulated gateway takes, in milliseconds."
    )
    simulated_failure_rate: float = _variable(
        values.number(0, 1), 0.0, "Share of calls that the simulated gateway fails, 0 to 1."
    )
    order_timeout_s: float = _variable(
        values.number(0, _SECONDS_MAX, positive=True),
        900.0,
        "An order that is not at its end after so many seconds is cancelled (timed_out).",
    )
    shutdown_grace_s: float = _variable(
        values.number(0, _SECONDS_MAX, positive=True), 20.0, "SIGTERM: finish and leave within so many seconds."
    )
    auth: str = _variable(
        values.choice("off", "keys", fold=str.lower),
        "off",
        "off: everybody may call, and only from this machine; keys: API_KEYS_FILE says who may.",
    )
    auth_off_i_know: bool = _variable(values.flag, False, "1 lets AUTH=off listen on an address that others reach.")
    api_keys_file: str | None = _variable(
        values.sole_text,
        None,
        "File with one name:key a line, keys of 16 characters or more; AUTH=keys reads it at start.",
    )
    outbox_cap: int = _variable(
        values.whole(1, _WHOLE_MAX),
        20_000,
        "With more events than this waiting to go out, new orders are answered with 503.",
    )
    batch_max: int = _variable(values.whole(1, 10_000), 256, "Most events that one module takes at a time.")

    api_keys: Mapping[str, str] = attrs.field(init=False, repr=False, eq=False)
    """Callers' names, each with the SHA-256 of its key in hexadecimal digits; empty unless AUTH is keys."""

    def __attrs_post_init__(self) -> None:
        if self.bus == "memory" and self.modules != MODULES:
            raise BadSetting(
                "MODULES", f"must be all of {','.join(MODULES)} with BUS=memory, which reaches no other process"
            )
        if self.bus == "nats":
            for name, path in ("NATS_CREDS", self.nats_creds), ("NATS_TLS_CA", self.nats_tls_ca):
                if path is not None:
                    _read(name, path, _SECRET_BYTES_MAX * 16)
        if self.payment_gateway == "stripe" and not self.stripe_api_key:
            raise BadSetting("STRIPE_API_KEY", "is needed with PAYMENT_GATEWAY=stripe")
        if str(self.stripe_api_key).startswith("sk_live_") and not self.stripe_api_base.startswith("https:"):
            raise BadSetting("STRIPE_API_BASE", "must be an https:// address with a live key")
        if self.log_file is not None and (
            os.path.isdir(self.log_file) or not os.path.isdir(os.path.dirname(self.log_file) or ".")
        ):
            raise BadSetting("LOG_FILE", "must name a file in a folder that exists")
        if self.auth == "off" and not self.auth_off_i_know and not _is_loopback(self.http_host):
            raise BadSetting(
                "AUTH",
                f"off is refused with HTTP_HOST={self.http_host}, which others may reach;"
                " set AUTH=keys, or AUTH_OFF_I_KNOW=1",
            )
        object.__setattr__(self, "api_keys", self._read_api_keys() if self.auth == "keys" else MappingProxyType({}))

    def _read_api_keys(self) -> Mapping[str, str]:
        if self.api_keys_file is None:
            raise BadSetting("API_KEYS_FILE", "is needed with AUTH=keys")
        try:
            return read_api_keys(_read("API_KEYS_FILE", self.api_keys_file, _API_KEYS_BYTES_MAX))
        except ValueError as error:
            raise BadSetting("API_KEYS_FILE", str(error)) from None

    def database_url(self, module: str) -> str:
        """Return where *module* keeps its states: its own address if it has one, the common one otherwise."""
        own: str | None = getattr(self, f"{module}_database_url")
        return own or self._database_url

    def log_format_on(self, stream: TextIO) -> str:
        """Return json or text: what was set, otherwise text if *stream* is a terminal, otherwise json."""
        return self.log_format or ("text" if stream.isatty() else "json")

    def secrets(self) -> Iterator[str]:
        """Yield every text that must never be seen in a log: keys, secrets, and the passwords in addresses."""
        for secret in self.nats_password, self.stripe_api_key, self.stripe_webhook_secret:
            if secret:
                yield str(secret)
        databases = (
            self._database_url,
            self.orders_database_url,
            self.inventory_database_url,
            self.payments_database_url,
        )
        for url in (*self.nats_url, *databases):
            parts = values.split_url(url or "")
            if parts.password:
                yield from {parts.password, unquote(parts.password)}
            yield from (value for name, value in parse_qsl(parts.query) if name == "password")


def load(environ: Mapping[str, str]) -> Settings:
    """
    Return the settings that *environ* holds.

    Raises:
        BadSetting: The first thing that is wrong.
    """
    given: dict[str, Any] = {}
    for field in _fields():
        found = _look_up(environ, _name(field), bool(field.metadata.get("is_secret")))
        if found is not None:
            given[field.alias or field.name] = found
    return Settings(**given)


def describe() -> Iterator[Variable]:
    """Yield every variable in the order of the manual."""
    for field in _fields():
        default = field.metadata.get("default_text")
        if default is None:
            default = (
                ""
                if field.default is None
                else f"{field.default:g}"
                if isinstance(field.default, float)
                else str(field.default)
            )
            default = {"False": "0", "True": "1"}.get(default, default)
        help = field.metadata[ts.constants.METADATA_KEY]["help"]
        yield Variable(_name(field), default, help, bool(field.metadata.get("is_secret")))


def example_env() -> str:
    """Return the content of ``config/example.env``: every variable, commented out, at its default."""
    lines = [
        "# Every variable at its default. A secret NAME can also be given as NAME_FILE, the path of a file that holds it."
    ]
    for variable in describe():
        lines += ["", f"# {variable.help}", f"#{variable.name}={variable.default.partition(' (')[0]}"]
    return "\n".join(lines) + "\n"


def _fields() -> Iterator[attrs.Attribute[Any]]:
    return (field for field in attrs.fields(Settings) if field.init)


def _look_up(environ: Mapping[str, str], name: str, is_secret: bool) -> str | None:
    found = environ.get(name, "")
    file = environ.get(f"{name}_FILE", "") if is_secret else ""
    if file:
        if found:
            raise BadSetting(name, f"is given twice: here and as {name}_FILE")
        try:
            found = _read(f"{name}_FILE", file, _SECRET_BYTES_MAX).decode().rstrip("\r\n")
        except UnicodeDecodeError:
            raise BadSetting(f"{name}_FILE", "is not text in UTF-8") from None
        if not found:
            raise BadSetting(f"{name}_FILE", "is empty")
    return found if found.strip() else None


def _read(variable: str, path: str, bytes_max: int) -> bytes:
    """Read a small file. The message leaves out the path: who mixes up NAME and NAME_FILE has put a secret there."""
    try:
        with Path(path).open("rb") as file:
            content = file.read(bytes_max + 1)
    except (OSError, ValueError) as error:
        raise BadSetting(
            variable, f"the file cannot be read: {getattr(error, 'strerror', None) or 'no such name is possible'}"
        ) from None
    if len(content) > bytes_max:
        raise BadSetting(variable, f"the file is larger than {bytes_max} bytes")
    return content
