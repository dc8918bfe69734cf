"""Flags that say what stored samples leave unsaid, shared by the commands that compare them."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from kinetics_jax.cli.checks import require, require_between

if TYPE_CHECKING:
    from kinetics_jax.analysis.samples import RunData
    from kinetics_jax.costs.architectures.architecture import PricedModel

MAX_PROMPT = 1 << 24  # tokens; beyond any context


@dataclasses.dataclass(frozen=True)
class Unsaid:
    """What files of samples do not say: flags of `frontier` and `plan`."""

    model: str | None = None
    """The model of files that name none; a cost needs a published name or --config."""
    attention: str | None = None
    """The attention of files that name none."""
    config: Annotated[tuple[str, ...], tyro.conf.arg(metavar="[MODEL=]PATH …")] = ()
    """A config.json, or its directory: the architecture of a model without a published name. Of several such models,
    MODEL=PATH for each."""
    tokenizer: Path | None = None
    """A tokenizer.json that counts the tokens of the published traces."""
    prompt_tokens: int | None = None
    """Tokens of every prompt, for tables that do not say."""
    undecided: Literal["unsolved", "drop"] = "unsolved"
    """Samples without a verdict count as unsolved, or are left out of accuracies (drop)."""

    def check(self) -> None:
        """Raises UserError for impossible values, before anything is read."""
        require(
            self.tokenizer is None or self.tokenizer.exists(),
            f"--tokenizer {self.tokenizer}: no such file or directory; name a tokenizer.json, or the directory of one",
        )
        if self.prompt_tokens is not None:
            require_between("--prompt-tokens", self.prompt_tokens, 1, MAX_PROMPT)
        named = [name for name, equals, _ in (each.rpartition("=") for each in self.config) if equals]
        require(
            len(self.config) < 2 or len(named) == len(self.config),
            "--config of several models names each: --config MODEL=config.json …",
        )
        require(len(set(named)) == len(named), "--config names a model twice")

    @property
    def given(self) -> bool:
        """Whether any flag says what a run folder says itself."""
        return bool(self.model or self.attention or self.config or self.tokenizer or self.prompt_tokens)

    def read(self, paths: tuple[Path, ...], *, bare_questions: bool = False) -> list[RunData]:
        """The samples of all sources; see `readers.read_all`."""
        from kinetics_jax.analysis.readers import read_all

        return read_all(
            paths,
            model=self.model,
            attention=self.attention,
            config=self._configs(),
            tokenizer=self.tokenizer,
            prompt_tokens=self.prompt_tokens,
            bare_questions=bare_questions,
        )

    def _configs(self) -> PricedModel | dict[str, PricedModel] | None:
        from kinetics_jax.costs.architectures.readers import read_priced

        parts = [each.rpartition("=") for each in self.config]
        configs = {name: read_priced(Path(path)) for name, _, path in parts}
        return configs.get("", configs) or None


UnsaidArgs = tyro.conf.OmitArgPrefixes[Unsaid]
ALL_SAID = Unsaid()
