"""A service that most tests ask; those that need another one start it themselves."""

import pytest
from serving import SEED, defence, running


@pytest.fixture(scope="session")
def chain():
    return defence()


@pytest.fixture(scope="module")
def service(chain):
    with running(chain, seed=SEED, made_by="me") as found:
        yield found
