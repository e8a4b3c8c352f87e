"""The kernels, compiled once per session: for the simulator, and by nvcc for each generation of GPUs.

Compilers run side by side: what is asked for first is waited for, and the rest is compiled meanwhile.
"""

import os
from concurrent.futures import ThreadPoolExecutor

import pytest
import sanitizers
from compilation import ARCHITECTURES, NVCC, SOURCES, compile_cubin, known_architectures
from mutants import build_mutant
from simulation import COMPILER, STEMS, TRIED_ORDERS, build


@pytest.fixture(scope="session")
def compilers():
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        yield pool
        pool.shutdown(cancel_futures=True)


@pytest.fixture(scope="session")
def simulated(compilers, tmp_path_factory):
    """Gives the library of a stem."""
    if COMPILER is None:
        pytest.skip("no g++ to compile the simulated kernels with")
    folder = tmp_path_factory.mktemp("simulated")
    libraries = {stem: compilers.submit(build, stem, folder) for stem in STEMS}
    return lambda stem: libraries[stem].result()


@pytest.fixture(scope="module")
def mutant(request, compilers, tmp_path_factory):
    """Gives the library of one of the module's MUTANTS, of which those are compiled whose tests run."""
    if COMPILER is None:
        pytest.skip("no g++ to compile the simulated kernels with")
    tests = [item for item in request.session.items if item.module is request.module and hasattr(item, "callspec")]
    names = [item.callspec.params["name"] for item in tests if "name" in item.callspec.params]
    folder = tmp_path_factory.mktemp("mutants")
    libraries = {
        name: compilers.submit(build_mutant, folder / str(number), *request.module.MUTANTS[name][:-1])
        for number, name in enumerate(names)
    }
    return lambda name: libraries[name].result()


@pytest.fixture(scope="session", autouse=True)
def sanitized(request, tmp_path_factory):
    """The process under the sanitizers and its log, or None without sanitizers. It takes so long that it runs beside
    all other tests of this folder."""
    wanted = any(item.path.stem == "test_sanitized" for item in request.session.items)
    if not wanted or not sanitizers.libraries():
        yield None
        return
    log = tmp_path_factory.mktemp("sanitized") / "log"
    with sanitizers.start(log) as process:
        yield process, log
        process.kill()


@pytest.fixture(params=TRIED_ORDERS)
def order(request):
    return request.param


@pytest.fixture(scope="session")
def cubin_of(compilers, tmp_path_factory):
    """Gives the cubin of a source for an architecture, and what ptxas said about it."""
    if NVCC is None:
        pytest.skip("no nvcc on the PATH: install a CUDA toolkit to compile the kernels")
    folder = tmp_path_factory.mktemp("cubins")
    results = {}

    def start(source, architecture):
        path = folder / f"{source.stem}.{architecture}.cubin"
        results[source, architecture] = path, compilers.submit(compile_cubin, source, architecture, path)

    for architecture in ARCHITECTURES:
        for source in SOURCES if architecture in known_architectures() else ():
            start(source, architecture)

    def cubin(source, architecture):
        if architecture not in known_architectures():
            pytest.skip(f"this nvcc does not know {architecture}")
        if (source, architecture) not in results:
            start(source, architecture)
        path, log = results[source, architecture]
        return path, log.result()

    return cubin


@pytest.fixture(params=ARCHITECTURES)
def architecture(request):
    return request.param
