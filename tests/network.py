"""The network cut, for tests: this machine can be reached, and nothing else.

python -m tests.network  # says whether it is
"""

from __future__ import annotations

import socket
from typing import Any

ELSEWHERE = ("192.0.2.1", 80)
"""An address that is nobody's (RFC 5737)."""


class NetworkIsCut(OSError):
    """A connection to another machine."""


def _is_here(family: int, address: Any) -> bool:
    if family not in (socket.AF_INET, socket.AF_INET6):
        return True  # a socket of files
    return str(address[0]) in ("localhost", "::1", "") or str(address[0]).startswith("127.")


def cut() -> None:
    """Refuse connections to other machines, in this process and those that it forks."""
    for name in ("connect", "connect_ex"):
        connect = getattr(socket.socket, name)
        if getattr(connect, "__name__", "") == "refusing":
            continue

        def refusing(one: socket.socket, address: Any, connect: Any = connect) -> Any:
            if not _is_here(one.family, address):
                raise NetworkIsCut(f"the network is cut in tests: {address}")
            return connect(one, address)

        setattr(socket.socket, name, refusing)


if __name__ == "__main__":
    try:
        socket.create_connection(ELSEWHERE, timeout=0.1)
    except OSError as error:
        print(type(error).__name__)
