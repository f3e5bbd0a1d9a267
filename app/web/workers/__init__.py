"""
HTTP workers: processes that answer requests beside the one that runs the modules.

One process can use one core for Python code. With ``HTTP_WORKERS`` set, the process of the modules starts so many workers.
They share its listening socket, read and check requests, answer reads from the database, and pass commands on::

    client --HTTP--> worker --commands--> process of the modules --commit--> database
                     worker <--replies---
                     worker --HTTP------> process of the modules   (every other route)

A worker keeps nothing: a 202 is sent once the reply to its command has arrived, which is after the commit. The process of
the modules restarts a worker that ends, and a worker ends with that process.
"""

from __future__ import annotations

__all__ = ["HttpWorkers", "WorkerFailed"]

from app.web.workers.supervisor import HttpWorkers, WorkerFailed
