"""Records of an experiment, one a line, flushed as they are made: the same command goes on where it was stopped."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from kinetics_jax.errors import UserError
from kinetics_jax.files import write_atomic

KEY = ("part", "unit", "policy")


class Records:
    """A JSONL file: its first line are the settings, the others records told apart by part, unit and policy.

    A last line that was cut short is dropped. Raises UserError for a file of other settings.
    """

    def __init__(self, path: Path, settings: dict[str, Any]):
        self.path, self.found = path, {}
        settings = json.loads(json.dumps(settings))
        lines = path.read_text().splitlines(keepends=True) if path.exists() else []
        whole = [line for line in lines if line.endswith("\n")]
        if not whole:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(path, json.dumps(settings) + "\n")
            return
        if (there := json.loads(whole[0])) != settings:
            names = sorted(key for key in {*there, *settings} if there.get(key) != settings.get(key))
            raise UserError(f"{path} holds records with another {', '.join(names)}; give --records another name")
        if whole != lines:
            write_atomic(path, "".join(whole))
        self.found = {tuple(record[key] for key in KEY): record for record in map(json.loads, whole[1:])}

    def has(self, part: str, unit: str, policy: str) -> bool:
        return (part, unit, policy) in self.found

    def add(self, part: str, unit: str, policy: str, **fields: Any) -> None:
        record = {"part": part, "unit": unit, "policy": policy, **fields}
        with open(self.path, "a") as file:
            file.write(json.dumps(record) + "\n")
        self.found[part, unit, policy] = record

    def of(self, part: str) -> list[dict[str, Any]]:
        return [record for record in self.found.values() if record["part"] == part]
