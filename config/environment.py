"""Settings from environment variables: read them, and describe every variable for ``--help`` and the manual."""

from __future__ import annotations

__all__ = ["Variable", "describe", "example_env", "load", "read_again"]

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import attrs
import typed_settings as ts
from attrs import frozen

from config.files import BadSetting, read_file
from config.settings import Settings, database_variable, variable_of

_SECRET_BYTES_MAX = 64 * 1024
_NOT_VARIABLES = ("known_modules", "secret_files")
_SECRETS_THAT_CHANGE = ("NATS_PASSWORD",)
"""Secrets whose files are read again while the process runs."""


@frozen
class Variable:
    """One environment variable, for ``--help`` and the manual; a secret can also be given as ``<name>_FILE``."""

    name: str
    default: str
    help: str
    is_secret: bool


def load(environ: Mapping[str, str], known_modules: Sequence[str]) -> Settings:
    """
    Return the settings that *environ* holds, for a program that has *known_modules*.

    Raises:
        BadSetting: The first value that is wrong.
    """
    given: dict[str, Any] = {}
    files = {name: environ.get(f"{name}_FILE", "") for name in _SECRETS_THAT_CHANGE}
    for field in _fields():
        if field.name == "database_urls":
            urls = {name: _look_up(environ, database_variable(name), is_secret=True) for name in known_modules}
            given[field.name] = {name: url for name, url in urls.items() if url is not None}
            continue
        found = _look_up(environ, variable_of(field), bool(field.metadata.get("is_secret")))
        if found is not None:
            given[field.alias or field.name] = found
    return Settings(known_modules=tuple(known_modules), secret_files=files, **given)


def read_again(settings: Settings, name: str) -> str | None:
    """
    Return what the file of the secret *name* holds now; None if *settings* came without such a file.

    Raises:
        BadSetting: The file cannot be read, or holds no text.
    """
    path = settings.secret_files.get(name)
    return _secret_in(f"{name}_FILE", path) if path else None


def describe(known_modules: Sequence[str]) -> Iterator[Variable]:
    """Yield every variable of a program that has *known_modules*, in the order of the manual."""
    for field in _fields():
        help = field.metadata[ts.constants.METADATA_KEY]["help"]
        if field.name == "database_urls":
            for module in known_modules:
                yield Variable(database_variable(module), "", help.format(module=module), is_secret=True)
        elif field.name == "modules":
            yield Variable(variable_of(field), ",".join(known_modules), help, is_secret=False)
        else:
            yield Variable(variable_of(field), _default_text(field), help, bool(field.metadata.get("is_secret")))


def _default_text(field: attrs.Attribute[Any]) -> str:
    text: str | None = field.metadata.get("default_text")
    if text is not None:
        return text
    if field.default is None:
        return ""
    if isinstance(field.default, bool):
        return str(int(field.default))
    return f"{field.default:g}" if isinstance(field.default, float) else str(field.default)


def example_env(known_modules: Sequence[str]) -> str:
    """Return the content of ``config/example.env``: every variable, commented out, at its default."""
    lines = [
        "# Every variable at its default. A secret NAME can also be given as NAME_FILE, the path of a file that holds it."
    ]
    for variable in describe(known_modules):
        lines += ["", f"# {variable.help}", f"#{variable.name}={variable.default.partition(' (')[0]}"]
    return "\n".join(lines) + "\n"


def _fields() -> Iterator[attrs.Attribute[Any]]:
    """Yield the fields that variables set, in the order of the manual."""
    return (field for field in attrs.fields(Settings) if field.init and field.name not in _NOT_VARIABLES)


def _look_up(environ: Mapping[str, str], name: str, is_secret: bool) -> str | None:
    found = environ.get(name, "")
    file = environ.get(f"{name}_FILE", "") if is_secret else ""
    if file:
        if found:
            raise BadSetting(name, f"is given twice: here and as {name}_FILE")
        found = _secret_in(f"{name}_FILE", file)
    return found if found.strip() else None


def _secret_in(variable: str, path: str) -> str:
    try:
        found = read_file(variable, path, _SECRET_BYTES_MAX).decode().rstrip("\r\n")
    except UnicodeDecodeError:
        raise BadSetting(variable, "is not text in UTF-8") from None
    if not found:
        raise BadSetting(variable, "is empty")
    return found
