"""
A pair of virtual network interfaces that leads to a network namespace of its own: packets can be lost on it, in each direction.

A process of this machine that connects to a port in the namespace sends real packets. When they are lost, nothing acknowledges
them: the kernel sends them again, as after a partition of a network. See veth(4), network_namespaces(7) and setns(2).
"""

from __future__ import annotations

__all__ = ["Cable", "CableRefused"]

import ctypes
import os
import shutil
import socket
import subprocess
import threading
from contextlib import suppress
from typing import Self

_NETWORK = 0x40000000
"""``CLONE_NEWNET``, the kind of namespace that setns(2) is to enter."""

_NOWHERE = "02:00:00:00:00:99"
"""An address of no interface: what is sent to it is lost, and the sender gets no error."""


class CableRefused(Exception):
    """The machine does not permit it; the message names what is missing."""


class Cable:
    """
    Two interfaces, one in this namespace and one in another; the addresses are ``10.213.<number>.1`` and ``.2``.

    May be used as a context manager.
    """

    def __init__(self, number: int) -> None:
        """*number* is below 256, and differs from those of the other cables of this machine."""
        self.host = f"10.213.{number}.2"
        """The address of the far end, at which `listen` listens."""
        self._near = f"10.213.{number}.1"
        self._name = f"cable{number}"
        self._far_name = f"cable{number}p"

    def __enter__(self) -> Self:
        """
        Create both interfaces.

        Raises:
            CableRefused: This is not root, ``ip`` is not installed, or the kernel has no virtual interfaces.
        """
        if shutil.which("ip") is None:
            raise CableRefused("the command ip is missing: install iproute2")
        self.close()  # what a run has left that was killed
        try:
            _ip("netns", "add", self._name)
            _ip("link", "add", self._name, "type", "veth", "peer", "name", self._far_name, "netns", self._name)
            _ip("addr", "add", f"{self._near}/30", "dev", self._name)
            _ip("link", "set", self._name, "up")
            self._far("addr", "add", f"{self.host}/30", "dev", self._far_name)
            self._far("link", "set", self._far_name, "up")
        except CableRefused:
            self.close()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Remove both interfaces and the namespace. Idempotent."""
        for command in (("link", "del", self._name), ("netns", "del", self._name)):
            with suppress(CableRefused):
                _ip(*command)

    def listen(self) -> socket.socket:
        """Return a socket that listens at a free port of `host`; any thread may accept its connections."""
        found: list[socket.socket] = []

        def listen() -> None:  # a thread of its own, because it cannot come back
            descriptor = os.open(f"/run/netns/{self._name}", os.O_RDONLY)
            try:
                if ctypes.CDLL(None, use_errno=True).setns(descriptor, _NETWORK) == 0:
                    found.append(socket.create_server((self.host, 0)))
            finally:
                os.close(descriptor)

        thread = threading.Thread(target=listen)
        thread.start()
        thread.join()
        if not found:
            raise CableRefused(f"no socket can be opened in the namespace {self._name}")
        return found[0]

    def lose(self, *, requests: bool, replies: bool) -> None:
        """Lose all packets towards the far end if *requests*, and all that come from it if *replies*; otherwise none."""
        for run, address, name, are_lost in (
            (_ip, self.host, self._name, requests), (self._far, self._near, self._far_name, replies),
        ):  # fmt: skip
            if are_lost:
                run("neigh", "replace", address, "lladdr", _NOWHERE, "dev", name, "nud", "permanent")
            else:
                with suppress(CableRefused):  # no packets were lost before
                    run("neigh", "del", address, "dev", name)

    def _far(self, *arguments: str) -> None:
        _ip("-n", self._name, *arguments)


def _ip(*arguments: str) -> None:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True)
    if done.returncode:
        detail = done.stderr.strip().partition("\n")[0]
        raise CableRefused(f"network namespaces need root and a kernel with veth: `ip {' '.join(arguments)}`: {detail}")
