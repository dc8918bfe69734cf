"""Shape annotations are checked at run time while the tests run; compiled programs are kept."""

import gc
import os
import pathlib

import jax  # reads the variables below when it is imported: they are for commands, not for this process
import pytest
from jaxtyping import install_import_hook

# Programs run where they are called, not beside what the test does next (kernels/interpreted.py says what that does to
# those that call back into jax).
jax.config.update("jax_cpu_enable_async_dispatch", False)

# The suite is bound by compiling, which takes a third of the time so. The programs compute the same, rounded in another
# order at most.
QUICKLY_COMPILED = (
    "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true "
    "--xla_cpu_parallel_codegen_split_count=1"
)
if jax.__version_info__ < (0, 11):  # later XLA has one way to compile a fusion, and refuses to start with the flag
    QUICKLY_COMPILED += " --xla_cpu_use_fusion_emitters=false"

# Before any module of the package is imported; the traced functions are checked once per compilation.
ATTENTION = [f"attention.{name}" for name in ("causal", "decode", "decode_step", "heads", "shared_prefix")]
install_import_hook(
    [f"kinetics_jax.{name}" for name in (*ATTENTION, "engine.sampling", "language_model", "models")],
    "beartype.beartype",
)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--optimised", action="store_true", help="compile as users do, which takes thrice as long")
    parser.addoption("--exhaustive", action="store_true", help="run the tests marked `exhaustive` too")


def pytest_configure(config: pytest.Config) -> None:
    """XLA reads its flags when it compiles first; commands that tests start inherit them."""
    if not config.getoption("--optimised"):
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {QUICKLY_COMPILED}".strip()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--exhaustive"):
        for item in items:
            if item.get_closest_marker("exhaustive"):
                item.add_marker(pytest.mark.skip(reason="in the exhaustive lane: pytest --exhaustive"))


def pytest_collection_finish() -> None:
    """What is imported lives as long as the tests: the collector need not walk it again and again."""
    gc.collect()
    gc.freeze()


MAPS = pathlib.Path("/proc/self/maps")
MANY_MAPS = 8_000  # with about 1 GB of programs


@pytest.fixture(scope="module", autouse=True)
def _forget_compiled_programs(request):
    """Every compiled CPU program holds memory and maps; Linux allows 65,530 maps, which the whole suite would exceed.

    Programs are kept from module to module until there are many: most are single operations, which all tests share. Not
    those of a module that replaces parts of the package, which a trace may hold.
    """
    yield
    tests = [item for item in request.session.items if item.path == request.path]
    replaced = any("monkeypatch" in getattr(test, "fixturenames", ()) for test in tests)
    if replaced or not MAPS.exists() or MAPS.read_bytes().count(b"\n") > MANY_MAPS:
        jax.clear_caches()
        gc.collect()


@pytest.fixture(scope="session", autouse=True)
def _compiled_programs(request, tmp_path_factory):
    """Compilation caches, never the user's own: what one test compiles, the next one loads, in whatever worker; what
    one command compiles, the next command of this worker.

    pytest's cache keeps them for the next run; `pytest --cache-clear` empties them.
    """
    assert jax.config.jax_compilation_cache_dir == os.environ.get("JAX_COMPILATION_CACHE_DIR")
    kept = getattr(request.config, "cache", None)

    def folder(name: str) -> str:
        return str(kept.mkdir(f"{name}-{jax.__version__}") if kept else tmp_path_factory.mktemp(name))

    jax.config.update("jax_compilation_cache_dir", folder("programs"))
    jax.config.update("jax_compilation_cache_max_size", 2 << 30)  # with a limit, access is locked between workers
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    worker = os.environ.get("PYTEST_XDIST_WORKER", "alone")
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", folder(f"commands-{worker}"))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")
