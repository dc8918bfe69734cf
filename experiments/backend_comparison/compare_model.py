"""What differs between two recordings of a checkpoint's decoding."""

from __future__ import annotations

from typing import Any

import numpy as np

from .recording import ComparisonError, Recording

# Logits: largest difference over the largest logit. A token may differ where its lead over the next best is at most
# twice that on either side: there, rounding decides.
LOGITS = {"float32": 1e-4, "bfloat16": 2.0**-5, "float16": 2.0**-7}
SETTINGS = ("name", "fingerprint", "dtype", "attention", "samples", "max_tokens", "seed", "prompts_sha256")


def compare_model(a: Recording, b: Recording) -> list[dict[str, Any]]:
    """Rows on logits and on token ids; `beyond` lists what is out of bounds. None where a side has no model.

    Raises ComparisonError when the two models, or what they were given, differ.
    """
    models = [side.index.get("model") for side in (a, b)]
    if None in models:
        return []
    for what in SETTINGS:
        if models[0][what] != models[1][what]:
            raise ComparisonError(f"{a.path} and {b.path} have different inputs: {what} of the model")
    row: dict[str, Any] = {"model": models[0]["name"], "dtype": models[0]["dtype"]}
    for side, model in zip("ab", models, strict=True):
        if model["status"] != "ok":
            return [row | {"what": "model", "status": "refused", f"reason_{side}": model["reason"], "beyond": []}]
    row["status"] = "compared"
    sides = a.group("model"), b.group("model")
    rows = [row | _logits(name, *sides, row["dtype"]) for name in ("full", *models[0]["attention"])]
    for policy in models[0]["attention"]:
        for what, columns in (("greedy", slice(0, 1)), ("sampled", slice(1, None))):
            if sides[0][f"tokens/{policy}"][:, columns].size:
                rows.append(row | _tokens(policy, what, columns, *sides, row["dtype"]))
    return rows


def _logits(name: str, a: dict, b: dict, dtype: str) -> dict[str, Any]:
    first, second, whole = (x.astype(np.float64) for x in (a[f"logits/{name}"], b[f"logits/{name}"], a["logits/full"]))
    largest = float(np.abs(first).max())
    difference = float(np.abs(first - second).max())
    bound = LOGITS[dtype] * largest
    beyond = [] if difference <= bound else [f"logits differ by {difference:.3g} (bound {bound:.3g})"]
    found = {"what": f"logits {name}", "difference": difference, "largest": largest, "bound": bound, "beyond": beyond}
    if name == "dense":  # the cache against no cache, on either side
        found["from_full_a"] = float(np.abs(first - whole).max())
        found["from_full_b"] = float(np.abs(second - b["logits/full"].astype(np.float64)).max())
    return found


def _tokens(policy: str, what: str, columns: slice, a: dict, b: dict, dtype: str) -> dict[str, Any]:
    tokens = [side[f"tokens/{policy}"][:, columns] for side in (a, b)]
    margins = [side[f"margins/{policy}"][:, columns] for side in (a, b)]
    bound = 2 * LOGITS[dtype] * float(np.abs(a[f"logits/{policy}"]).max())
    differs = tokens[0] != tokens[1]
    diverged, beyond = [], []
    for problem, sample in np.argwhere(differs.any(axis=2)):
        position = int(differs[problem, sample].argmax())
        lead = float(min(abs(margin[problem, sample, position]) for margin in margins))
        diverged.append({"problem": int(problem), "sample": int(sample), "position": position, "lead": lead})
        if not lead <= bound:
            beyond.append(f"problem {problem} sample {sample} diverges at token {position}, which leads by {lead:.3g}")
    if beyond:
        beyond = [f"{line} (bound {bound:.3g})" for line in beyond]
    return {
        "what": f"{what} tokens {policy}",
        "identical": float(1 - differs.any(axis=2).mean()),
        "samples": int(differs.any(axis=2).size),
        "diverged": diverged,
        "bound": bound,
        "least_lead": float(np.nanmin(np.abs(margins[0]))),
        "beyond": beyond,
    }
