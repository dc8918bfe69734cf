"""Records of an experiment as JSON lines, written as they are made: the same command continues an interrupted run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from kinetics_jax.errors import UserError
from kinetics_jax.files import write_atomic

KEY = ("part", "unit", "policy")


class Records:
    """A JSONL file: the settings in the first line, then records, whose key is part, unit and policy.

    A torn last line is dropped. Raises UserError if the file has other settings.
    """

    def __init__(self, path: Path, settings: dict[str, Any]):
        self.path, self.by_key = path, {}
        settings = json.loads(json.dumps(settings))
        lines = path.read_text().splitlines(keepends=True) if path.exists() else []
        whole = [line for line in lines if line.endswith("\n")]
        if not whole:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(path, json.dumps(settings) + "\n")
            return
        if (stored := json.loads(whole[0])) != settings:
            names = sorted(key for key in {*stored, *settings} if stored.get(key) != settings.get(key))
            raise UserError(f"{path} holds records with another {', '.join(names)}; give --records another name")
        if whole != lines:
            write_atomic(path, "".join(whole))
        self.by_key = {tuple(record[key] for key in KEY): record for record in map(json.loads, whole[1:])}

    def has(self, part: str, unit: str, policy: str) -> bool:
        return (part, unit, policy) in self.by_key

    def add(self, part: str, unit: str, policy: str, **fields: Any) -> None:
        record = {"part": part, "unit": unit, "policy": policy, **fields}
        with open(self.path, "a") as file:
            file.write(json.dumps(record) + "\n")
        self.by_key[part, unit, policy] = record

    def of_part(self, part: str) -> list[dict[str, Any]]:
        return [record for record in self.by_key.values() if record["part"] == part]
