"""NATS_CREDS with a server that authenticates users by JWT: the operator signs the account, the account its users."""

from __future__ import annotations

import json
import os
import time
from base64 import urlsafe_b64encode
from pathlib import Path
from typing import Any

import nkeys  # type: ignore[import-untyped]
import pytest
from attrs import frozen

from app.messaging.nats_session import BrokerOutOfReach, jetstream
from config.settings import Settings
from modules.registry import MODULES
from tests.nats import NatsServer

CORE = dict.fromkeys(("subs", "data", "payload", "imports", "exports", "conn", "leaf"), -1) | {"wildcards": True}
JETSTREAM = dict.fromkeys(("mem_storage", "disk_storage", "streams", "consumer"), -1)


@frozen
class Key:
    """A NATS key pair; the public key identifies its owner."""

    seed: bytes

    @classmethod
    def of(cls, prefix: int) -> Key:
        return cls(bytes(nkeys.encode_seed(os.urandom(32), prefix)))

    @property
    def public(self) -> str:
        name: bytes = nkeys.from_seed(bytearray(self.seed)).public_key
        return name.decode()

    def sign(self, subject: Key, **attributes: Any) -> str:
        """Return a NATS JWT (version 2) for *subject*, signed with this key."""
        claims = {
            "jti": subject.public,
            "iat": int(time.time()),
            "iss": self.public,
            "sub": subject.public,
            "name": "test",
        }
        parts = {"typ": "JWT", "alg": "ed25519-nkey"}, {**claims, "nats": {"version": 2, **attributes}}
        text = ".".join(_encoded(json.dumps(part).encode()) for part in parts)
        return f"{text}.{_encoded(nkeys.from_seed(bytearray(self.seed)).sign(text.encode()))}"


def _encoded(content: bytes) -> str:
    return urlsafe_b64encode(content).rstrip(b"=").decode()


def credentials(folder: Path, account: Key) -> Path:
    """Write the credentials file of a new user of *account*, as ``nsc generate creds`` does."""
    user = Key.of(nkeys.PREFIX_BYTE_USER)
    jwt = account.sign(user, type="user", subs=-1, data=-1, payload=-1)
    path = folder / f"{user.public}.creds"
    path.write_text(
        f"-----BEGIN NATS USER JWT-----\n{jwt}\n------END NATS USER JWT------\n\n"
        f"-----BEGIN USER NKEY SEED-----\n{user.seed.decode()}\n------END USER NKEY SEED------\n"
    )
    path.chmod(0o600)
    return path


@pytest.mark.slow
async def test_only_credentials_of_a_known_account_are_accepted(tmp_path: Path) -> None:
    """A connection without credentials is rejected as well."""
    operator = Key.of(nkeys.PREFIX_BYTE_OPERATOR)
    account, unknown, system = (Key.of(nkeys.PREFIX_BYTE_ACCOUNT) for _ in range(3))
    known = {
        account.public: operator.sign(account, type="account", limits=CORE | JETSTREAM),
        system.public: operator.sign(system, type="account", limits=CORE),
    }
    config = (
        f"operator: {operator.sign(operator, type='operator')}\nsystem_account: {system.public}\nresolver: MEMORY\n"
        f"resolver_preload: {json.dumps(known)}\n"
    )
    with NatsServer(tmp_path / "nats", config=config) as server:
        settings = Settings(
            known_modules=MODULES, bus="nats", nats_url=(server.url,), nats_creds=str(credentials(tmp_path, account))
        )
        async with jetstream(settings) as js:
            assert await js.streams_info() == []
        for creds in None, str(credentials(tmp_path, unknown)):
            with pytest.raises(BrokerOutOfReach):
                async with jetstream(Settings(known_modules=MODULES, bus="nats", nats_url=(server.url,), nats_creds=creds)):
                    pass
