"""One folder of phantoms and undisturbed runs for all tests of a process."""

from __future__ import annotations

import pytest

from tests.faults.runs import Yard
from tests.server import Server


@pytest.fixture(scope="session")
def yard(server: Server) -> Yard:
    made = Yard(server.folder, server)
    made.prepare()
    return made
