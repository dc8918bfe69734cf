# What contributors and CI run; every line also works when it is copied to a shell. `just` comes with the `dev` extra.

# the recipes
default:
    @just --list

# style and types
check:
    ruff check . && ruff format --check . && pyright

# the tests that one runs while working
test-fast:
    pytest -m "not slow"

# every test
test:
    pytest

# what repeats at length what quicker tests cover: any program where those try a few, the quick demo whole
test-exhaustive:
    pytest --exhaustive -m exhaustive

# the tests that hold in every mode of jax, in each
modes:
    JAX_ENABLE_X64=1 JAX_DEBUG_NANS=1 pytest tests/test_modes.py
    JAX_NUMPY_DTYPE_PROMOTION=strict JAX_NUMPY_RANK_PROMOTION=raise pytest tests/test_modes.py

# the site, into site/; a broken link or an unknown name is an error
docs:
    zensical build --strict

# everything that a pull request is judged by
ci: check test test-exhaustive modes docs

# mend style
format:
    ruff check --fix . && ruff format .

# the lock file anew, for Python 3.11 and later on every platform
lock:
    uv pip compile --quiet --universal --python-version 3.11 --no-emit-index-url --generate-hashes pyproject.toml --extra test --extra dev --extra docs -o requirements.lock
