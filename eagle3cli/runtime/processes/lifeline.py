"""Who has died: every rank waits for a word that the next one says only when its work is done.

The ranks of a job with roles wait for each other at the store, which does not tell that a rank has gone; a connection
between two of them does, at once. One connection each is enough: who has lost the next rank ends, and is lost in turn.
"""

from __future__ import annotations

import os
import secrets
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from typing import Any

DONE = b"done"
START_TIMEOUT = 600.0
"""Seconds in which the ranks, which have met at the store, have to have reached each other."""


class Lifeline:
    """The two connections that a rank holds; ``on_lost`` is called from a thread with the next rank once that one has
    gone."""

    def __init__(self, store: Any, rank: int, world_size: int, on_lost: Callable[[int], None]) -> None:
        self.next = (rank + 1) % world_size
        self.on_lost = on_lost
        token = secrets.token_hex(16)
        with socket.create_server((own_address(), 0)) as server:
            server.settimeout(START_TIMEOUT)
            host, port = server.getsockname()[:2]
            store.set(f"lifeline/{rank}", f"{host} {port} {token}")
            self.to_next = self._connect(store)
            self.from_previous = _accept(server, token)
        self.thread = threading.Thread(target=self._listen, daemon=True, name="lifeline")
        self.thread.start()

    def _connect(self, store: Any) -> socket.socket:
        key = f"lifeline/{self.next}"
        store.wait([key], timedelta(seconds=START_TIMEOUT))
        host, port, token = store.get(key).decode().split()
        connection = socket.create_connection((host, int(port)), timeout=START_TIMEOUT)
        connection.sendall(token.encode())
        connection.settimeout(None)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        return connection

    def _listen(self) -> None:
        word = b""
        with suppress(OSError):
            word = self.to_next.recv(len(DONE), socket.MSG_WAITALL)
        if word != DONE:
            self.on_lost(self.next)

    def let_go(self) -> None:
        """Say that this rank's work is done, and wait until that of the next one is."""
        with suppress(OSError):  # the rank before has gone: others tell of it
            self.from_previous.sendall(DONE)
        self.thread.join()


def own_address() -> str:
    """This machine's address as the place where all meet sees it."""
    master = os.environ.get("MASTER_ADDR", "127.0.0.1")
    try:
        addresses = socket.getaddrinfo(master, 1, type=socket.SOCK_DGRAM)
        family, kind, protocol, _, address = min(addresses, key=lambda entry: entry[0] != socket.AF_INET)
        with socket.socket(family, kind, protocol) as probe:
            probe.connect(address)  # of a datagram: nothing is sent
            return str(probe.getsockname()[0])
    except OSError:
        return socket.gethostbyname(socket.gethostname())


def _accept(server: socket.socket, token: str) -> socket.socket:
    """The connection of the rank before; others, who do not know the token, are hung up on."""
    while True:
        connection, _ = server.accept()
        connection.settimeout(START_TIMEOUT)
        with suppress(OSError):
            if secrets.compare_digest(connection.recv(len(token), socket.MSG_WAITALL), token.encode()):
                connection.settimeout(None)
                return connection
        connection.close()
