"""The simulated kernels, compiled once per session."""

import pytest
from simulation import COMPILER, ORDERS, build


@pytest.fixture(scope="session")
def simulated(tmp_path_factory):
    """Gives the library of a stem, compiled when it is first asked for."""
    if COMPILER is None:
        pytest.skip("no g++ to compile the simulated kernels with")
    folder = tmp_path_factory.mktemp("simulated")
    libraries = {}

    def library(stem):
        if stem not in libraries:
            libraries[stem] = build(stem, folder)
        return libraries[stem]

    return library


@pytest.fixture(params=ORDERS)
def order(request):
    return request.param
