"""One server and one folder of phantoms and undisturbed runs for all tests of a process."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.faults.runs import Yard
from tests.faults.server import Server


@pytest.fixture(scope="session")
def yard(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Yard]:
    folder = tmp_path_factory.mktemp("yard")
    server = Server(folder)
    made = Yard(folder, server)
    made.prepare()
    yield made
    server.close()
