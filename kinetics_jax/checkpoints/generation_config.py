"""generation_config.json: how its authors recommend to sample a checkpoint. No jax.

Hugging Face writes only what differs from its own defaults, so that what is not said is not recommended. A file that
recommends what `Sampling` does anyway recommends nothing. Of a GGUF file the metadata (`general.sampling.…`) are taken.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kinetics_jax.errors import CheckpointError, spelled
from kinetics_jax.files import read_json
from kinetics_jax.settings import Sampling, SamplingError

NAME = "generation_config.json"
SETTINGS = ("temperature", "top_p", "top_k", "min_p")  # of Sampling, by the same names
# What would draw other tokens, with the values that change nothing. Lengths are no matter of a recommendation.
OTHERS: dict[str, tuple[Any, ...]] = {
    "repetition_penalty": (1,),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "no_repeat_ngram_size": (0,),
    "encoder_repetition_penalty": (1,),
    "typical_p": (1,),
    "epsilon_cutoff": (0,),
    "eta_cutoff": (0,),
    "top_h": (0,),
    "penalty_alpha": (0,),
    "num_beams": (1,),
    "num_beam_groups": (1,),
    "diversity_penalty": (0,),
    "bad_words_ids": ([],),
    "suppress_tokens": ([],),
    "begin_suppress_tokens": ([],),
    "sequence_bias": ({},),
    "forced_bos_token_id": (),
    "forced_eos_token_id": (),
    "exponential_decay_length_penalty": (),
    "guidance_scale": (1,),
    "watermarking_config": (),
    # llama.cpp's, as `gguf_recommendation` names them
    "sequence": ("",),
    "xtc_probability": (0,),
    "mirostat": (0,),
}
# The metadata of a GGUF file, and what they are called in a generation_config.json.
GGUF_KEYS = {
    "temp": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "min_p": "min_p",
    "penalty_repeat": "repetition_penalty",
    "sequence": "sequence",
    "xtc_probability": "xtc_probability",
    "mirostat": "mirostat",
}
GGUF_PREFIX = "general.sampling."


@dataclasses.dataclass(frozen=True)
class Recommended:
    """Settings of Sampling that a checkpoint recommends; what it asks for beside them and is not done (`not_applied`);
    whether it says not to sample beside values for sampling, which are then not used (`greedy_beside`).
    """

    settings: Mapping[str, Any]
    not_applied: Mapping[str, Any]
    greedy_beside: tuple[str, ...] = ()

    def sampling(self, **changes: Any) -> Sampling:
        """The sampling, with changes."""
        return Sampling(**{**self.settings, **changes})

    @property
    def words(self) -> str:
        """temperature 0.6, top_p 0.95, top_k 20; repetition_penalty 1.05 is not applied."""
        said = ", ".join(f"{name} {value:g}" for name, value in self.settings.items())
        if self.greedy_beside:
            said += f" (do_sample is false, so that its {', '.join(self.greedy_beside)} are not used)"
        if self.not_applied:
            left = ", ".join(f"{name} {spelled(value, 30)}" for name, value in self.not_applied.items())
            said += f"; not applied: {left}"
        return said

    @property
    def identity(self) -> dict[str, Any]:
        """What run.json says of it."""
        left = {"not_applied": dict(self.not_applied)} if self.not_applied else {}
        return {"from": NAME, **self.settings, **left}


def read_recommended(directory: Path) -> Recommended | None:
    """What the generation_config.json of a directory recommends; None where there is none, or nothing in it.

    Raises CheckpointError naming the file and the field for what cannot be a setting.
    """
    path = directory / NAME
    try:
        fields = read_json(path, error=CheckpointError)
    except FileNotFoundError:
        return None
    settings = {name: _setting(path, name, fields[name]) for name in SETTINGS if fields.get(name) is not None}
    others = {
        name: fields[name]
        for name, neutral in OTHERS.items()
        if fields.get(name) is not None and fields[name] not in neutral
    }
    samples = fields.get("do_sample")
    if samples not in (None, True, False):
        raise _refusal(path, "do_sample", samples, "true or false")
    beside = tuple(name for name, value in settings.items() if value != getattr(Sampling(), name))
    if samples is False:
        return Recommended({"temperature": 0.0}, others, beside)
    return Recommended(settings, others) if beside or others else None


def _setting(path: Path, name: str, value: Any) -> float | int:
    """One setting, judged by Sampling. A top_k of -1 is none, as some write it."""
    if name == "top_k" and value == -1:
        return 0
    if name == "top_k" and isinstance(value, float) and value.is_integer():
        value = int(value)
    given: dict[str, Any] = {name: value}
    try:
        return getattr(Sampling(**given), name)
    except SamplingError as error:
        raise _refusal(path, name, value, str(error).removeprefix("sampling: ")) from error


def _refusal(path: Path, name: str, value: Any, why: str) -> CheckpointError:
    return CheckpointError(
        f"{path}: recommends {name} {spelled(value, 40)}, which cannot be ({why}); mend the file, or take it not "
        "(--sampling plain, or sampling=kj.Sampling())"
    )


def gguf_recommendation(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a generation_config.json that a GGUF file's metadata give: empty for most files.

    Numbers are stored in float32: 0.95 is given as such, not as 0.949999988.
    """
    given = {name: metadata.get(GGUF_PREFIX + key) for key, name in GGUF_KEYS.items()}
    return {name: _short(value) for name, value in given.items() if value is not None}


def _short(value: Any) -> Any:
    return float(f"{value:.6g}") if isinstance(value, float) else value
