"""
The list of modules. This is the one place where a module is registered.

A name stands for the package ``modules.<name>``, whose function ``module`` returns the descriptor. Settings, event
registry, streams, migrations, NATS accounts and documents all follow from the list. Importing this file imports no module.
"""

from __future__ import annotations

__all__ = ["MODULES", "NAME", "load_module"]

import re
from importlib import import_module
from typing import TYPE_CHECKING, Any

import attrs

from modules.errors import ModuleError
from modules.routes import ListStreamRoute

if TYPE_CHECKING:
    from modules.module import Module

MODULES = ("orders", "inventory", "payments")
"""In the order in which they are listed, shown and started."""

NAME = re.compile(r"[a-z]{2,24}")
"""A name is a Python package, the first part of subjects and of table names, and of environment variables in capitals."""


def load_module(name: str, **options: Any) -> Module:
    """
    Return the checked descriptor of the module *name*; *options* are what its factory takes.

    Raises:
        ModuleError: There is no such package, it has no factory, or its descriptor is incomplete.
    """
    if not NAME.fullmatch(name):
        raise ModuleError(f"{name}: a module's name has 2 to 24 of the letters a-z")
    try:
        package = import_module(f"modules.{name}")
    except ModuleNotFoundError as error:
        if error.name != f"modules.{name}":
            raise
        raise ModuleError(f"{name}: there is no package modules/{name}") from None
    factory = getattr(package, "module", None)
    if factory is None:
        raise ModuleError(f"{name}: modules/{name}/__init__.py has no function module()")
    module: Module = factory(**options)
    if module.name != name:
        raise ModuleError(f"{name}: its descriptor is named {module.name}")
    _check_tables(module)
    _check_routes(module)
    _check_workers(module)
    return module


def _check_tables(module: Module) -> None:
    for cls, table in module.tables.items():
        if not table.name.startswith(f"{module.name}_"):
            raise ModuleError(f"{module.name}: the table {table.name} of {cls.__name__} must be named {module.name}_...")
    for cls in module.archivable:
        if cls not in module.tables:
            raise ModuleError(f"{module.name}: {cls.__name__} is archivable and has no table in the descriptor")


def _check_routes(module: Module) -> None:
    for route in module.routes:
        where = f"{module.name}: the route {getattr(route, 'method', 'GET')} {route.path}"
        state = getattr(route, "state", None)
        if state is not None and state not in module.tables:
            raise ModuleError(f"{where} shows {state.__name__}, which has no table in the descriptor")
        if isinstance(route, ListStreamRoute) and "updated_at" not in attrs.fields_dict(route.state):
            raise ModuleError(f"{where} streams {route.state.__name__}, which has no attribute updated_at")
        for schema in (
            *(getattr(route, name, None) for name in ("request_schema", "line_schema")), route.response_schema,
        ):
            if schema is not None and schema not in module.http_schemas:
                raise ModuleError(f"{where} names the schema {schema}; there is no schemas/http/{schema}.json")


def _check_workers(module: Module) -> None:
    for worker in module.workers:
        if not worker.startswith(f"{module.name}-"):
            raise ModuleError(f"{module.name}: the worker {worker} must be named {module.name}-...")
