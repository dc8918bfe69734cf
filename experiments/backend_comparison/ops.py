"""Runs the op cases on one backend. Needs jax, NumPy and kinetics_kernels alone."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import kinetics_kernels as kernels
import numpy as np
from kinetics_kernels.backends import BACKENDS, OF_PLATFORM, chosen_backend, implementation

from .cases import Case, State, cases_of, inputs_of
from .recording import ComparisonError, digest

OUTPUTS = {
    "append_kv": ("k_pages", "v_pages", "summaries"),
    "select_pages": ("selected", "covered"),
    "paged_decode": ("out", "lse"),
    "block_topk_decode": ("out", "lse"),
}


def check_backend(backend: str | None, interpret: bool) -> None:
    """Raises ComparisonError for a backend that is not known, or that only an interpreter can run here."""
    if backend is not None and backend not in BACKENDS:
        raise ComparisonError(f"backend {backend!r} is not known (known: default, {', '.join(BACKENDS)})")
    if interpret and backend in (None, "xla"):
        raise ComparisonError("--interpret is for a kernel: name it with --backend")
    here = jax.default_backend()
    if not interpret and backend not in (None, "xla", *OF_PLATFORM.get(here, ())):
        raise ComparisonError(f"backend {backend} does not run on a {here}; --interpret simulates it")


def interpreter(backend: str) -> Any:
    """What a backend's `interpret` argument takes. Raises ComparisonError where this jax has no interpreter for it."""
    if backend == "triton":
        return True
    if backend == "mosaic_tpu":
        from jax.experimental.pallas import tpu

        return tpu.InterpretParams()
    from jax.experimental.pallas import mosaic_gpu

    params = getattr(mosaic_gpu, "InterpretGPUParams", None)
    if params is None:
        raise ComparisonError(f"jax {jax.__version__} has no interpreter for {backend}")
    return params()


def op_function(op: str, backend: str | None, interpret: bool) -> Callable[..., Any]:
    """An op on a backend, compiled or interpreted. Raises NotImplementedError where the backend does not have it."""
    if not interpret:
        return functools.partial(getattr(kernels, op), backend=backend)
    assert backend is not None
    if op == "block_topk_decode":
        return functools.partial(_select_and_decode, backend=backend)
    function = implementation(op, backend)
    if "interpret" not in inspect.signature(function).parameters:
        raise NotImplementedError(f"{op}: the {backend} kernel cannot be interpreted")
    return functools.partial(function, interpret=interpreter(backend))


def _select_and_decode(q, k_pages, v_pages, summaries, page_table, lengths, *, backend: str, **choice):
    """As kernels.block_topk_decode, which has no way to ask for an interpreter."""
    select, decode = (op_function(op, backend, interpret=True) for op in ("select_pages", "paged_decode"))
    chosen = select(q, summaries, page_table, lengths, page_size=k_pages.shape[2], **choice)
    return decode(q, k_pages, v_pages, *chosen)


def run_case(case: Case, inputs: dict[str, np.ndarray], backend: str | None, interpret: bool) -> dict[str, np.ndarray]:
    """The outputs of one case, by name."""
    function = functools.partial(op_function(case.op, backend, interpret), **case.options)
    results = jax.jit(function)(*[jnp.asarray(inputs[name]) for name in case.arrays])
    return dict(zip(OUTPUTS[case.op], map(np.asarray, jax.device_get(results)), strict=True))


def record_ops(
    states: list[State], *, seed: int, backend: str | None, interpret: bool, said: Callable[[str], None]
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Runs every case of the states: what goes into a recording's index under `ops`, and its arrays.

    A case that the backend refuses is recorded as `refused` with the reason. One that fails otherwise is recorded as
    `failed`, and takes no other with it.
    """
    check_backend(backend, interpret)
    arrays: dict[str, np.ndarray] = {}
    found = []
    for state in states:
        inputs = inputs_of(state, seed)
        arrays |= {f"inputs/{state.name}/{name}": array for name, array in inputs.items()}
        for case in cases_of(state):
            status, reason = "ok", ""
            try:
                outputs = run_case(case, inputs, backend, interpret)
                arrays |= {f"outputs/{case.name}/{name}": array for name, array in outputs.items()}
            except NotImplementedError as error:
                status, reason = "refused", str(error)
            except ComparisonError:
                raise
            except Exception as error:  # a compiler's, a driver's: hours on a device are not lost to one case
                status, reason = "failed", f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"
            found.append({"case": case.name, "status": status, "reason": reason})
            if status != "ok":
                said(f"{case.name} {status}: {reason}")
        said(f"{state.name}: done")
    why = f"forced{', interpreted' if interpret else ''}"
    return {
        "seed": seed,
        "states": [state.name for state in states],
        "inputs_sha256": digest({name: array for name, array in arrays.items() if name.startswith("inputs/")}),
        "backends": {
            op: dict(zip(("backend", "why"), chosen_backend(op) if backend is None else (backend, why), strict=True))
            for op in OUTPUTS
        },
        "cases": found,
    }, arrays
