"""What differs between two recordings of a checkpoint's decoding."""

from __future__ import annotations

from typing import Any

import numpy as np

from .recording import ComparisonError, Recording

# Logits: largest difference over the largest logit. A token may differ if its lead over the next best is at most twice
# that on either side: there, rounding decides.
LOGITS = {"float32": 1e-4, "bfloat16": 2.0**-5, "float16": 2.0**-7}
SETTINGS = ("fingerprint", "dtype", "attention", "samples", "max_tokens", "seed", "prompts_sha256")


def compare_model(a: Recording, b: Recording) -> list[dict[str, Any]]:
    """Rows on logits and on token ids; `beyond` lists what is out of bounds. No rows if a side has no model.

    Raises ComparisonError if the two models or their inputs differ.
    """
    models = [side.index["model"] for side in (a, b) if "model" in side.index]
    if len(models) < 2:
        return []
    for what in SETTINGS:
        if models[0][what] != models[1][what]:
            raise ComparisonError(f"{a.path} and {b.path} have different inputs: {what} of the model")
    row: dict[str, Any] = {"model": models[0]["name"], "dtype": models[0]["dtype"]}
    if stopped := [(side, model) for side, model in zip("AB", models, strict=True) if model["status"] != "ok"]:
        failed = [f"{side} failed: {model['reason']}" for side, model in stopped if model["status"] == "failed"]
        row |= {f"reason_{side.lower()}": model["reason"] for side, model in stopped}
        return [row | {"what": "model", "status": "failed" if failed else "refused", "beyond": failed}]
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
    row = {"what": f"logits {name}", "difference": difference, "largest": largest, "bound": bound, "beyond": beyond}
    if name == "dense":  # the cache against no cache, on either side
        row["from_full_a"] = float(np.abs(first - whole).max())
        row["from_full_b"] = float(np.abs(second - b["logits/full"].astype(np.float64)).max())
    return row


def _tokens(policy: str, what: str, columns: slice, a: dict, b: dict, dtype: str) -> dict[str, Any]:
    tokens = [side[f"tokens/{policy}"][:, columns] for side in (a, b)]
    leads = [side[f"leads/{policy}"][:, columns] for side in (a, b)]
    bound = 2 * LOGITS[dtype] * float(np.abs(a[f"logits/{policy}"]).max())
    differs = tokens[0] != tokens[1]
    diverged, beyond = [], []
    for problem, sample in np.argwhere(differs.any(axis=2)):
        position = int(differs[problem, sample].argmax())
        lead = float(np.nanmin([side[problem, sample, position] for side in leads]))
        diverged.append({"problem": int(problem), "sample": int(sample), "position": position, "lead": lead})
        if not lead <= bound:
            line = f"problem {problem} sample {sample} diverges at token {position}, which leads by {lead:.3g}"
            beyond.append(f"{line} (bound {bound:.3g})")
    least = [float(np.nanmin(side)) for side in leads]
    for side, lead in zip("AB", least, strict=True):
        if lead < -bound:  # the engine's token is not the best one of its own logits
            beyond.append(f"{side} drew a token that trails the best by {-lead:.3g} (bound {bound:.3g})")
    return {
        "what": f"{what} tokens {policy}",
        "identical": float(1 - differs.any(axis=2).mean()),
        "samples": int(differs.any(axis=2).size),
        "diverged": diverged,
        "bound": bound,
        "least_lead_a": least[0],
        "least_lead_b": least[1],
        "beyond": beyond,
    }
