"""kernel_resources.py: which kernels are compiled with which options; what they take is deviceless' to test."""

import kernel_resources
import pytest


def test_options_reach_the_kernels_that_take_them():
    assert kernel_resources.spellings(["triton", "mosaic_gpu"], []) == {"triton": "triton", "mosaic_gpu": "mosaic_gpu"}
    chosen = kernel_resources.spellings(["triton"], ["tokens=32", "select_pages.fused=true"])
    assert chosen == {"triton": "triton,select_pages=triton:fused=true,paged_decode=triton:tokens=32"}


def test_an_option_that_no_kernel_takes_is_named():
    with pytest.raises(ValueError, match=r"no kernel chosen takes stages; options of append_kv \(triton\): none"):
        kernel_resources.spellings(["triton"], ["stages=3"])


def test_results_of_the_defaults_are_not_overwritten():
    with pytest.raises(SystemExit, match="name a folder with --out"):
        kernel_resources.main(["--option", "tokens=32"])
    with pytest.raises(SystemExit, match="name a folder with --out"):
        kernel_resources.main(["--backend", "triton"])
