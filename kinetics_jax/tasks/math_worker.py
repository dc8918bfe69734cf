"""Compares answers with math-verify, in a process of its own: a script, started by math_grading and never imported.

JSON lines on standard input and output. The first line out is {"ready": true}; then every request has one reply:

    {"gold": formula, "box": formula}    is the second formula equal to the first?   {"correct": bool}

or {"error": text} instead, with "last": true where the process is of no more use. Arguments: bytes of address space,
and the seconds after which a request kills the process (a safeguard for when the parent, which has the shorter clock,
is gone).
"""

from __future__ import annotations

import functools
import json
import logging
import os
import re
import signal
import sys
from typing import Any


def main() -> None:
    size, seconds = int(sys.argv[1]), int(sys.argv[2])
    # Replies own the real standard output; whatever a library prints goes nowhere.
    replies = os.fdopen(os.dup(1), "w", encoding="ascii")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's, who closes our input
    logging.disable()
    memory = limit_memory(size)
    try:
        compare({"gold": "x^2", "box": "x^2"})  # imports, and builds the regular expressions and the parser
        reply: dict[str, Any] = {"ready": True}
    except Exception as error:
        reply = {"error": short(error)}
    print(json.dumps(reply), file=replies, flush=True)
    for line in sys.stdin:
        # The default action of SIGALRM ends the process even inside a long computation in C.
        if hasattr(signal, "alarm"):
            signal.alarm(seconds)
        try:
            reply = compare(json.loads(line))
        except Exception as error:
            reply = {"error": short(error)}
        if hasattr(signal, "alarm"):
            signal.alarm(0)
        # math-verify takes its own failures, out of memory too, for a difference; such a verdict is not to be trusted.
        if reply.get("correct") is False and memory is not None and peak_memory() > memory / 2:
            reply = {
                "error": "out of memory",
                "last": True,
            }  # peaks are not forgotten: the parent starts another process
        print(json.dumps(reply), file=replies, flush=True)


def limit_memory(size: int) -> int | None:
    """Makes allocations beyond `size` bytes of address space fail, or beyond a lower limit that this process has.

    Returns the limit in force; None where the system knows none or, as macOS, refuses this one.
    """
    try:
        import resource
    except ImportError:  # not a POSIX system
        return None
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    size = min(limit for limit in (size, soft, hard) if limit != resource.RLIM_INFINITY)
    try:
        resource.setrlimit(resource.RLIMIT_AS, (size, hard))
    except (ValueError, OSError):
        return None
    return size


def peak_memory() -> int:
    """The most bytes of address space this process ever had; 0 where the system does not tell."""
    try:
        with open("/proc/self/status", encoding="ascii") as status:
            return next((int(line.split()[1]) * 1024 for line in status if line.startswith("VmPeak:")), 0)
    except OSError:
        return 0


def compare(request: dict[str, str]) -> dict[str, Any]:
    """The reply to one request. Exceptions of math-verify and sympy pass through."""
    from math_verify import verify

    gold, found = read(request["gold"]), read(request["box"])
    # Inequalities are sets of numbers: 1 < x < 2 answers (1, 2).
    options: Any = {"allow_set_relation_comp": True, "timeout_seconds": None, "raise_on_error": True}
    return {"correct": bool(verify([gold], [found], **options) and same_digits(gold, found))}


def same_digits(gold: Any, found: Any) -> bool:
    """Whether two numbers that math-verify calls equal have the same leading digits; True for all that is no number.

    Coordinates and ends of intervals are compared one by one, sets and matrices not at all.
    math-verify compares decimal places: all numbers below some 1e-15 are zero to it. Rational numbers must agree to 25
    digits, others, where one may be a rounded decimal, to five in every case. Percentages, which equal the number
    before the sign too, and what cannot be evaluated to so many digits, as a zero in disguise, are left to math-verify.
    """
    import sympy
    from sympy.core.evalf import PrecisionExhausted

    if all(isinstance(x, sympy.Tuple | sympy.Interval) for x in (gold, found)):
        return all(same_digits(*pair) for pair in zip(gold.args, found.args, strict=False))
    numbers: list[Any] = [x.rhs if isinstance(x, sympy.Eq) and x.lhs.is_Symbol else x for x in (gold, found)]
    if not all(isinstance(x, sympy.Expr) and x.is_number and not x.has(sympy.UnevaluatedExpr) for x in numbers):
        return True
    tolerance = 1e-25 if all(x.is_rational for x in numbers) else 1e-5
    try:
        left, right = (x.evalf(30, strict=True) for x in numbers)
    except PrecisionExhausted:
        return True
    sizes = [abs(x).evalf(30) for x in (left - right, left, right)]
    if not all(size.is_Number and size.is_finite for size in sizes):
        return True
    return bool(sizes[0] <= tolerance * max(sizes[1:]))


def imaginary(expression: Any) -> Any:
    """The expression with its `i` as the imaginary unit, which math-verify leaves a symbol."""
    import sympy

    if not isinstance(expression, sympy.Expr):
        return expression
    units = {symbol: sympy.I for symbol in expression.free_symbols if str(symbol) == "i"}
    return expression.xreplace(units) if units else expression


@functools.lru_cache(maxsize=4096)
def read(latex: str) -> Any:
    """The sympy object of a formula. Raises an exception of the parser for what it cannot read."""
    from latex2sympy2_extended import NormalizationConfig
    from latex2sympy2_extended.math_normalization import normalize_latex

    # No units: whoever asks has taken them off, and a lone letter after a number is a variable.
    forms = NormalizationConfig(basic_latex=True, units=False, malformed_operators=True, nits=True, boxed="none")
    plain = normalize_latex(latex, forms)
    try:
        return imaginary(parsed(plain))
    except Exception:
        *_, last = re.split(r"(?<![\\<>!])=", plain)  # a = b = c says c
        if "," in plain or last == plain:
            raise
        return imaginary(parsed(last))


def parsed(latex: str) -> Any:
    from latex2sympy2_extended import latex2sympy
    from latex2sympy2_extended.latex2sympy2 import ConversionConfig
    from math_verify.grader import should_treat_as_complex

    return latex2sympy(
        latex,
        is_real=not should_treat_as_complex(latex),
        convert_degrees=False,
        normalization_config=None,
        conversion_config=ConversionConfig(lowercase_symbols=False),
    )


def short(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:200]


if __name__ == "__main__":
    main()
