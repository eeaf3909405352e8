"""No test reaches another machine, so what they train, evaluate and predict needs no network."""

from __future__ import annotations

import socket

import pytest

from tests.network import ELSEWHERE, NetworkIsCut
from tests.server import Server


def test_the_network_is_cut_here() -> None:
    with pytest.raises(NetworkIsCut, match="the network is cut"):
        socket.create_connection(ELSEWHERE, timeout=0.1)
    with socket.create_server(("127.0.0.1", 0)) as here:
        socket.create_connection(here.getsockname(), timeout=1).close()


def test_the_network_is_cut_for_commands(server: Server) -> None:
    assert server.one(module="tests.network").text.split()[-1] == "NetworkIsCut"
