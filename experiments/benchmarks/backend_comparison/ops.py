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
from kinetics_kernels.backends import BACKENDS, PARTS, backend_error, chosen_backend, implementation

from .cases import Case, State, cases_of, inputs_of
from .recording import ComparisonError, digest, failure

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
    if not interpret and backend is not None and (wrong := backend_error(backend)):
        raise ComparisonError(f"{wrong}; --interpret simulates it")


def interpreter(backend: str, op: str, dtype: str) -> tuple[str, Any]:
    """The interpreter of a backend's kernel: its name, and what the kernel's `interpret` argument takes.

    Raises ComparisonError where this jax has none.
    """
    if backend == "triton":
        return "Pallas' interpreter", True
    if backend == "mosaic_tpu":
        if (op, dtype) == ("select_pages", "bfloat16"):
            return "Pallas' interpreter: the TPU one has no ref.bitcast", True
        from jax.experimental.pallas import tpu

        return "the TPU interpreter", tpu.InterpretParams()
    from jax.experimental.pallas import mosaic_gpu

    params = getattr(mosaic_gpu, "InterpretGPUParams", None)
    if params is None:
        raise ComparisonError(f"jax {jax.__version__} has no interpreter for {backend}")
    return "the Mosaic GPU interpreter", params()


def interpreted(op: str, backend: str, dtype: str) -> tuple[str, Callable[..., Any]]:
    """What interprets an op, and the op. Raises NotImplementedError where the backend does not have it."""
    if op == "block_topk_decode":
        (first, select), (second, decode) = (interpreted(part, backend, dtype) for part in PARTS[op])

        def both(q, k_pages, v_pages, summaries, page_table, lengths, **choice):
            chosen = select(q, summaries, page_table, lengths, page_size=k_pages.shape[2], **choice)
            return decode(q, k_pages, v_pages, *chosen)

        return first if first == second else f"{first}; {second}", both
    function = implementation(op, backend)
    if "interpret" not in inspect.signature(function).parameters:
        raise NotImplementedError(f"{op}: the {backend} kernel cannot be interpreted")
    how, value = interpreter(backend, op, dtype)
    return how, functools.partial(function, interpret=value)


def run_case(
    case: Case, inputs: dict[str, np.ndarray], backend: str | None, interpret: bool
) -> tuple[str, dict[str, np.ndarray]]:
    """How one case was run, and its outputs by name."""
    if interpret:
        assert backend is not None
        how, function = interpreted(case.op, backend, case.state.dtype)
    else:
        how, function = "compiled", functools.partial(getattr(kernels, case.op), backend=backend)
    compiled = jax.jit(functools.partial(function, **case.options))
    results = jax.device_get(compiled(*[jnp.asarray(inputs[name]) for name in case.arrays]))
    return how, dict(zip(OUTPUTS[case.op], map(np.asarray, results), strict=True))


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
            status, reason, how = "ok", "", ""
            try:
                how, outputs = run_case(case, inputs, backend, interpret)
                arrays |= {f"outputs/{case.name}/{name}": array for name, array in outputs.items()}
            except NotImplementedError as error:
                status, reason = "refused", str(error)
            except ComparisonError:
                raise
            except Exception as error:  # a compiler's, a driver's: hours on a device are not lost to one case
                status, reason = "failed", failure(error)
            found.append({"case": case.name, "status": status, "reason": reason, "how": how})
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
