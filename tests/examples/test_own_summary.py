"""The example's kind of summary: what its rule says, and that the example runs with public names only."""

import runpy

import jax.numpy as jnp
import numpy as np
import pytest
from kinetics_kernels import reference
from kinetics_kernels.summaries import registry
from paths import ROOT

EXAMPLE = ROOT / "examples" / "own_summary.py"


@pytest.fixture
def kinds(monkeypatch):
    """The registry, put back as it was when the test ends."""
    monkeypatch.setattr(registry, "_kinds", {**registry._kinds})


def test_it_is_short_and_uses_public_names_only():
    lines = EXAMPLE.read_text().splitlines()
    assert len(lines) <= 60
    assert not [line for line in lines if line.startswith(("import ", "from ")) and "._" in line]


def test_its_summary_is_the_mean_and_the_farthest_key():
    made = runpy.run_path(str(EXAMPLE))
    keys = np.random.default_rng(0).standard_normal((3, 8, 16)).astype(np.float32)
    mean, farthest = made["make"](jnp.asarray(keys))
    np.testing.assert_allclose(mean, keys.mean(axis=1), rtol=1e-5, atol=1e-6)
    far = np.argmax(((keys - keys.mean(axis=1, keepdims=True)) ** 2).sum(axis=2), axis=1)
    np.testing.assert_array_equal(farthest, keys[np.arange(3), far])


@pytest.mark.slow
def test_it_runs(kinds, capsys):
    runpy.run_path(str(EXAMPLE), run_name="__main__")
    on_gpu, own_on_gpu, mean, own = capsys.readouterr().out.splitlines()
    assert on_gpu.endswith("select_pages runs on triton")
    assert own_on_gpu.endswith("select_pages runs on xla")
    vectors = [float(line.split(" vectors")[0].rpartition(" ")[2]) for line in (mean, own)]
    assert 1.8 < vectors[1] / vectors[0] < 2.2  # two a page
    assert reference.page_summary(jnp.ones((4, 16)), "mean_farthest").shape == (2, 16)
