"""A backend in a file of one's own, as kernels/README.md says: found, chosen for an op, refused where it has none."""

import importlib
import sys
import textwrap

import jax
import kinetics_kernels as kernels
import numpy as np
import pytest
from kinetics_kernels import kernel_files
from kinetics_kernels.backends import backend_error, chosen_backend, implementation, kernel_backends, used_backend
from kinetics_kernels.choices import Choice, choice_for
from kinetics_kernels.kernel_files import kernel_names, kernel_options

from . import oracle

FILE = '''
"""paged_decode by the reference, twice as loud."""

from kinetics_kernels import reference
from kinetics_kernels.ops.limits import refuse_unless

{platforms}

def paged_decode(q, k_pages, v_pages, page_table, lengths, *, scale=None, louder=2):
    refuse_unless("loud", "paged_decode", (q.shape[2] <= 64, f"a head_dim of at most 64, not {{q.shape[2]}}"))
    out, lse = reference.paged_decode(q, k_pages, v_pages, page_table, lengths, scale=scale)
    return louder * out, lse
'''


def write_backend(folder, name="loud", op="paged_decode", platforms="", text=FILE):
    folder = folder / op
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.py").write_text(textwrap.dedent(text).format(platforms=platforms))


@pytest.fixture
def package(tmp_path, monkeypatch):
    """An importable package `my_kernels`, still empty, and the packages that are known put back when the test ends."""
    (tmp_path / "my_kernels").mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(kernel_files, "_packages", [*kernel_files._packages])
    yield tmp_path / "my_kernels"
    for name in [name for name in sys.modules if name.split(".")[0] == "my_kernels"]:
        del sys.modules[name]


def state() -> oracle.Paged:
    return oracle.random_state(np.random.default_rng(0), [30, 7], page_size=8)


def decoded(backend):
    paged = state()
    return np.asarray(
        kernels.paged_decode(
            paged.q, paged.k_pages, paged.v_pages, paged.page_table, paged.lengths, backend=backend
        )[0]
    )  # fmt: skip


def test_a_file_is_found_and_chosen_for_its_op(package):
    write_backend(package)
    assert kernels.register_backends("my_kernels") == ["paged_decode=loud"]
    assert kernel_names()[-1] == "loud"
    assert kernel_backends("paged_decode")[-1] == "loud"
    assert "loud" not in kernel_backends("append_kv")
    np.testing.assert_array_equal(decoded("loud"), 2 * decoded("xla"))
    np.testing.assert_array_equal(decoded("append_kv=xla,paged_decode=loud"), 2 * decoded("xla"))
    np.testing.assert_array_equal(decoded("paged_decode=loud:louder=3"), 3 * decoded("xla"))
    np.testing.assert_array_equal(decoded("append_kv=xla"), decoded(None))
    assert kernel_options("paged_decode", "loud") == ["louder"]
    assert used_backend("paged_decode", "xla,paged_decode=loud") == "loud"
    assert used_backend("block_topk_decode", "select_pages=xla,paged_decode=loud") == "xla+loud"
    assert chosen_backend("paged_decode")[0] == "xla"  # never by default


def test_an_op_that_it_lacks_is_refused_by_name_and_with_a_cure(package):
    write_backend(package)
    kernels.register_backends("my_kernels")
    paged = state()
    call = paged.q, paged.k_pages, paged.v_pages, paged.summaries, paged.page_table, paged.lengths
    with pytest.raises(NotImplementedError) as refused:
        kernels.block_topk_decode(*call, pages=3, backend="loud")
    assert str(refused.value) == (
        "select_pages: no loud kernel is written; backends of this op: xla, triton, mosaic_gpu, mosaic_tpu; it has "
        "paged_decode: choose for each op, as in paged_decode=loud"
    )
    by_op = kernels.block_topk_decode(*call, pages=3, backend="paged_decode=loud")
    np.testing.assert_array_equal(by_op[0], 2 * kernels.block_topk_decode(*call, pages=3)[0])
    wide = oracle.random_state(np.random.default_rng(0), [30], head_dim=128)
    with pytest.raises(NotImplementedError, match="the loud backend takes a head_dim of at most 64, not 128"):
        implementation("paged_decode", "loud")(wide.q, wide.k_pages, wide.v_pages, wide.page_table, wide.lengths)


def test_it_says_its_platforms(package):
    write_backend(package, platforms='PLATFORMS = ("cuda", "tpu")')
    write_backend(package, name="anywhere")
    kernels.register_backends("my_kernels")
    here = jax.default_backend()
    assert backend_error("paged_decode=loud", "gpu") is None
    assert backend_error("loud", "tpu") is None
    assert backend_error("paged_decode=anywhere", here) is None
    if here == "cpu":
        wanted = "paged_decode: backend 'loud' does not run on a cpu; there: xla, anywhere"
        assert backend_error("paged_decode=loud") == wanted


def test_a_file_in_the_packages_own_folder_is_found_too(tmp_path, monkeypatch):
    """`kinetics_kernels/ops/<op>/<backend>.py`, here in a second place of that package's path."""
    write_backend(tmp_path)
    ops = importlib.import_module("kinetics_kernels.ops")
    folder = importlib.import_module("kinetics_kernels.ops.paged_decode")
    monkeypatch.setattr(ops, "__path__", [*ops.__path__, str(tmp_path)])
    monkeypatch.setattr(folder, "__path__", [*folder.__path__, str(tmp_path / "paged_decode")])
    importlib.invalidate_caches()
    np.testing.assert_array_equal(decoded("paged_decode=loud"), 2 * decoded("xla"))
    monkeypatch.delitem(sys.modules, "kinetics_kernels.ops.paged_decode.loud")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("def decode(q): return q", "defines no function paged_decode"),
        ("def paged_decode(q, pages): return q", "must begin with q, k_pages, v_pages, page_table, lengths, scale"),
    ],
)
def test_a_file_that_is_no_kernel_is_named(package, text, reason):
    write_backend(package, text=text)
    kernels.register_backends("my_kernels")
    with pytest.raises(ValueError, match=rf"paged_decode: .*loud\.py {reason}|loud\.py {reason}"):
        decoded("loud")


def test_packages_are_refused_by_name(package, monkeypatch):
    with pytest.raises(ValueError, match=r"no_such_kernels cannot be imported .ModuleNotFoundError"):
        kernels.register_backends("no_such_kernels")
    with pytest.raises(ValueError, match=r"my_kernels holds no kernel; write my_kernels/OP/BACKEND\.py, where OP"):
        kernels.register_backends("my_kernels")
    write_backend(package, name="triton")
    kernels.register_backends("my_kernels")
    with pytest.raises(ValueError, match=r"my_kernels\.paged_decode\.triton are two kernels of"):
        kernel_backends("paged_decode")
    monkeypatch.setattr(kernel_files, "_packages", [kernel_files.OWN])
    monkeypatch.setattr(kernel_files, "_offered", lambda: ("no_such_kernels",))
    with pytest.raises(ValueError, match=r"the package no_such_kernels, which an entry point .* uninstall it"):
        kernel_backends("paged_decode")


def test_an_installed_package_offers_its_kernels(package, monkeypatch):
    write_backend(package)
    monkeypatch.setattr(kernel_files, "_offered", lambda: ("my_kernels",))
    assert kernel_backends("paged_decode")[-1] == "loud"


def test_spellings():
    assert choice_for("append_kv", None) is None
    assert choice_for("append_kv", "triton") == Choice("triton")
    spelled = "mosaic_gpu, append_kv=xla ,paged_decode=triton:splits=4:fused=true:part=0.5:of=none:how=fast"
    options = ("splits", 4), ("fused", True), ("part", 0.5), ("of", None), ("how", "fast")
    assert choice_for("paged_decode", spelled) == Choice("triton", options)
    assert str(choice_for("paged_decode", spelled)) == "triton:splits=4:fused=true:part=0.5:of=none:how=fast"
    assert choice_for("append_kv", spelled) == Choice("xla")
    assert choice_for("select_pages", spelled) == Choice("mosaic_gpu")
    assert choice_for("select_pages", "paged_decode=triton") is None


@pytest.mark.parametrize(
    ("spelled", "reason"),
    [
        ("", "backend '': '' is not NAME or OP=NAME, as in paged_decode=triton"),
        ("paged_decode=", "'paged_decode=' is not NAME or OP=NAME"),
        ("=triton", "'=triton' is not NAME or OP=NAME"),
        ("paged_decoed=triton", "'paged_decoed' is no op with a choice of backends (append_kv, select_pages,"),
        ("xla,triton", "a backend for all ops is given twice"),
        ("append_kv=xla,append_kv=triton", "append_kv is given twice"),
        ("paged_decode=triton:splits", "option 'splits' is not NAME=VALUE"),
        ("append_kv=cuda", "append_kv: backend 'cuda' is not known (known: xla, triton, mosaic_gpu, mosaic_tpu)"),
        ("cuda", "backend 'cuda' is not known (known: xla, triton, mosaic_gpu, mosaic_tpu)"),
        ("grouped_matmul=mosaic_tpu", "grouped_matmul: no mosaic_tpu kernel is written; backends of this op"),
        ("paged_decode=triton:stages=3", "paged_decode: the triton backend has no option 'stages' (it has: splits"),
        ("append_kv=triton:splits=4", "append_kv: the triton backend has no option 'splits' (it has none)"),
        ("triton:splits=4", "an option belongs to an op, as in paged_decode=triton:splits=4"),
        ("append_kv=mosaic_tpu", "append_kv: backend 'mosaic_tpu' does not run on a gpu; there: xla, triton"),
    ],
)  # fmt: skip
def test_what_cannot_be_forced_is_told_by_op_and_backend(spelled, reason):
    assert reason in str(backend_error(spelled, "gpu"))
