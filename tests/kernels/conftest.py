"""The kernels, compiled once per session: for the simulator, and by nvcc for each generation of GPUs."""

import pytest
from compilation import ARCHITECTURES, NVCC, compile_cubin, known_architectures
from simulation import COMPILER, ORDERS, SANITIZERS, build


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


@pytest.fixture(params=("random",) if SANITIZERS else ORDERS)
def order(request):
    return request.param


@pytest.fixture(scope="session")
def cubin_of(tmp_path_factory):
    """Gives the cubin of a source for an architecture, and what ptxas said about it."""
    if NVCC is None:
        pytest.skip("no nvcc on the PATH: install a CUDA toolkit to compile the kernels")
    folder = tmp_path_factory.mktemp("cubins")
    results = {}

    def cubin(source, architecture):
        if architecture not in known_architectures():
            pytest.skip(f"this nvcc does not know {architecture}")
        if (source, architecture) not in results:
            path = folder / f"{source.stem}.{architecture}.cubin"
            results[source, architecture] = path, compile_cubin(source, architecture, path)
        return results[source, architecture]

    return cubin


@pytest.fixture(params=ARCHITECTURES)
def architecture(request):
    return request.param
