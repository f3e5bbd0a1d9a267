"""Give the processes of a system fixed addresses, so that each of them can ask the others."""

from __future__ import annotations

__all__ = ["KEY_OF_PROCESSES", "know_each_other"]

import socket
from contextlib import ExitStack

from tests.split.system import MODULES, System

KEY_OF_PROCESSES = "key-of-the-processes"


def know_each_other(system: System, *keys: str) -> None:
    """Set the addresses of all processes of *system*, before it starts; *keys* are lines of the key file, without which AUTH is off."""
    with ExitStack() as stack:
        sockets = {name: stack.enter_context(socket.create_server(("127.0.0.1", 0))) for name in MODULES}
        ports = {name: each.getsockname()[1] for name, each in sockets.items()}
    urls = ",".join(f"{name}=http://127.0.0.1:{port}" for name, port in ports.items())
    for name, (server,) in system.servers.items():
        server.settings |= {"HTTP_PORT": str(ports[name]), "MODULE_URLS": urls}
        if keys:
            file, key = server.folder / "keys", server.folder / "module_key"
            file.write_text("\n".join((*keys, f"processes:module:{KEY_OF_PROCESSES}")))
            key.write_text(KEY_OF_PROCESSES)
            file.chmod(0o600)
            key.chmod(0o600)
            server.settings |= {"AUTH": "keys", "API_KEYS_FILE": str(file), "MODULE_KEY_FILE": str(key)}
