"""`kinetics cost`: what a configuration costs, part by part, how long it takes on each chip, and what fits there."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from kinetics_jax.attention.policies.base import AttentionPolicy
from kinetics_jax.attention.policies.registry import parse_policy
from kinetics_jax.cli.arguments import AttentionArg, Dtype, JsonArg, batch_of, priced_model
from kinetics_jax.cli.checks import require, require_between
from kinetics_jax.cli.terminal import prose, say
from kinetics_jax.costs.batching import too_many
from kinetics_jax.costs.conventions import CostError
from kinetics_jax.costs.hardware import chips_words
from kinetics_jax.costs.widths import TYPE_BYTES
from kinetics_jax.settings import MAX_DRAFTS

if TYPE_CHECKING:
    from kinetics_jax.costs.architectures.architecture import PricedModel
    from kinetics_jax.costs.batching import Room
    from kinetics_jax.costs.cost import Cost
    from kinetics_jax.costs.hardware import Hardware

MAX_CHIPS = 1024


def cost(
    *,
    model: Annotated[
        str, tyro.conf.arg(metavar="MODEL", help="Published or built-in name, or a config.json or its directory.")
    ],
    output: Annotated[tuple[int, ...], tyro.conf.arg(metavar="TOKENS")],
    prompt: int = 256,
    trials: int = 1,
    attention: AttentionArg = "dense",
    convention: str = "traffic",
    hardware: str | None = None,
    intensity: float | None = None,
    batch: Annotated[str | None, tyro.conf.arg(metavar="fit|N|none")] = None,
    chips: int = 1,
    shared_prompt: bool = False,
    kv_dtype: Dtype = "bfloat16",
    weight_dtype: Dtype = "bfloat16",
    compute_dtype: str | None = None,
    price: float | None = None,
    joules: bool = False,
    half_width: float | None = None,
    speculate: int = 0,
    accept: float | None = None,
    as_json: JsonArg = False,
) -> None:
    """What samples cost: every component, seconds per chip, and how many sequences fit.

    Args:
        output: Tokens of a sample; several stand for equally likely lengths, and the cost is the expected one.
        prompt: Tokens of the prompt.
        trials: Samples of the prompt.
        convention: How costs are counted: traffic, paper or upstream (see the documentation of costs).
        hardware: Chip, or a .json profile; default: h100 prices the reads, and seconds are given for all known chips.
        intensity: FLOP per byte that prices the reads, instead of a chip's.
        batch: Sequences that decode side by side and share the reads of the weights: fit (as many as each chip holds on
            average), a number, or none (the weights cost nothing); default: fit, in the traffic convention.
        chips: Chips that the model is split over (tensor parallel).
        shared_prompt: Trials read whole pages of the prompt's KV once for all, in dense layers.
        kv_dtype: Type of the KV cache.
        weight_dtype: Type of the weights.
        compute_dtype: Price arithmetic at the chip's peak for this type, such as float8; default: bfloat16.
        price: Price of a chip-hour, in any currency; needs --hardware.
        joules: What it draws too; without --hardware, on every chip whose energy was measured, such as h100-vllm.
        half_width: Also: how many problems make a 95 % interval of ± this certain (0.02 for two points), and what those
            cost, at worst; `kinetics plan RUNS --half-width` knows better where there are samples.
        speculate: Price dense samples by self-speculation: so many tokens are drafted by --attention before one dense
            pass verifies them.
        accept: With --speculate, the part of drafts that are kept, as `kinetics sample --speculate` measures it.
        as_json: Print JSON; amounts in units of 1e12.
    """
    from kinetics_jax.analysis.sample_size import WORST, check_half_width
    from kinetics_jax.costs.batching import room
    from kinetics_jax.costs.cost import best_of_n_cost, generation_cost
    from kinetics_jax.costs.hardware import HARDWARE, measured_energy
    from kinetics_jax.costs.hardware import hardware as hardware_named
    from kinetics_jax.costs.links import unknown_link
    from kinetics_jax.costs.speculation import expected_rounds, speculation_cost
    from kinetics_jax.stats.precision import problems_for

    require(output != (), "--output needs a number of tokens")
    require_between("--chips", chips, 1, MAX_CHIPS)
    require(price is None or hardware is not None, "--price needs --hardware")
    require(
        hardware is None or intensity is None,
        "give --hardware or --intensity, not both: the hardware has an intensity of its own",
    )
    require(compute_dtype is None or intensity is None, "--compute-dtype picks a chip's peak; --intensity has none")
    if half_width is not None:
        check_half_width(half_width)
    policy, config = parse_policy(attention), priced_model(model)
    fits_by_default = batch is None and intensity is None and convention == "traffic"
    rule = "fit" if fits_by_default else None if batch is None else batch_of(batch)
    require((accept is None) == (speculate == 0), "--speculate N and --accept A, the part of drafts kept, go together")
    if speculate:
        require_between("--speculate", speculate, 1, MAX_DRAFTS)
        require(
            len(output) == 1 and convention == "traffic" and chips == 1 and not shared_prompt,
            "--speculate is priced for one length, in the traffic convention, on one chip, without --shared-prompt",
        )
        require(policy.kind != "dense", "--speculate drafts by a sparse --attention; give one")
    require(
        rule != "fit" or (intensity is None and convention == "traffic"),
        "--batch fit is what a chip's memory holds, in the traffic convention; leave out --intensity and --convention",
    )
    widths: dict[str, Any] = {"kv_bytes": TYPE_BYTES[kv_dtype], "weight_bytes": TYPE_BYTES[weight_dtype]}

    def chip(named: str) -> Hardware:
        profile = hardware_named(named)
        profile = profile if compute_dtype is None else profile.at(compute_dtype)
        return profile if price is None else dataclasses.replace(profile, price_per_hour=price)

    def room_on(chip: Hardware) -> Room:
        shared = prompt if shared_prompt and max(output) > 0 else 0
        return room(
            config, chip, prompt_tokens=prompt, output_tokens=output, chips=chips, attention=policy,
            shared_tokens=shared, **widths,
        )  # fmt: skip

    def priced(side_by_side: Any, **by: Any) -> Cost:
        if speculate:
            rounds = expected_rounds(output[0], speculate, accept or 0.0)
            return speculation_cost(
                config, prompt_tokens=prompt, rounds=rounds, drafts=speculate, draft=policy, trials=trials,
                batch=side_by_side, **widths, **by,
            )  # fmt: skip
        lengths = {"output_tokens": output[0]} if len(output) == 1 else {"output_lengths": output}
        compute = generation_cost if len(output) == 1 else best_of_n_cost
        return compute(
            config,
            prompt_tokens=prompt,
            trials=trials,
            attention=policy,
            convention=convention,
            batch=side_by_side,
            chips=chips,
            shared_prompt=shared_prompt,
            **widths,
            **lengths,
            **by,
        )

    with_energy = measured_energy(chip(hardware) if hardware else None) if joules else []
    priced_on = chip(hardware or "h100") if intensity is None else None
    if fits_by_default and priced_on is not None and not room_on(priced_on).batch:
        say(
            f"not one sequence fits beside the weights on {chips_words(chips, priced_on.name)}, so the weights are "
            "left out; give more --chips or other --hardware"
        )
        rule = None
    side_by_side = rule if priced_on is None else _batch_on(priced_on, rule, room_on(priced_on), chips)
    if fits_by_default and rule == "fit" and priced_on is not None:
        say(
            f"weights shared by the {side_by_side} sequences that fit {chips_words(chips, priced_on.name)} on average, "
            "as in kinetics frontier; --batch none leaves them out"
        )
    total = priced(side_by_side, hardware=priced_on, intensity=intensity)
    names = [each.name for each in with_energy] if joules else HARDWARE
    known = [chip(hardware)] if hardware else [chip(name) for name in names if _has_peak(name, compute_dtype)]
    for each in known:
        if unknown := unknown_link(each, chips):
            say(unknown)
    rows, too_small = [], []
    for each in known:
        fitting = room_on(each)
        shares = fitting.batch if rule == "fit" else rule
        too_many_here = isinstance(shares, int) and shares > fitting.batch
        if too_many_here and each != priced_on:  # of that one a line is told above, and it is priced as asked
            too_small.append(f"{each.name} ({fitting.batch})")
            spent = None
        else:
            spent = None if shares == 0 else priced(shares, hardware=each)
        rows.append(
            _chip_row(
                each,
                spent,
                config,
                policy,
                chips=chips,
                batch=shares,
                tokens=max(1, prompt + max(output)),
                shared_tokens=prompt if shared_prompt and max(output) > 0 else 0,
                **widths,
            )
        )
    if too_small:
        say(f"batch {rule} does not fit, and has no seconds, on {', '.join(too_small)} (sequences that fit)")
    if rule is None and any(each.calibrated for each in known):
        say("a measured profile takes overheads in every step, which are left out without a batch (--batch fit)")
    if policy.price == "upper bound" and convention != "upstream":
        say(f"{policy.kind}: costs are an upper bound, for what it reads depends on the data; a run counts it")
    asked = {
        "model": config.name or model,
        "attention": str(policy),
        "convention": convention,
        "prompt_tokens": prompt,
        "output_tokens": output[0] if len(output) == 1 else list(output),
        "trials": trials,
        "batch_rule": "fit" if rule == "fit" else "none" if rule is None else "given",
        "batch": side_by_side,
        "chips": chips,
        "shared_prompt": shared_prompt,
        "kv_dtype": kv_dtype,
        "weight_dtype": weight_dtype,
        "intensity": priced_on.intensity if priced_on else intensity,
        "priced_on": priced_on.name if priced_on else None,
    }
    if speculate:
        densely = generation_cost(
            config, prompt_tokens=prompt, output_tokens=output[0], trials=trials, batch=side_by_side,
            hardware=priced_on, intensity=intensity, **widths,
        )  # fmt: skip
        asked |= {"speculate": speculate, "accept": accept, "dense_total": float(densely.total)}
    needed = None if half_width is None else problems_for(half_width, WORST, 1)
    if needed:
        asked |= {"half_width": half_width, "problems_needed": needed, "cost_of_problems": needed * float(total.total)}
    if as_json:
        print(json.dumps({**_amounts(total), **asked, "hardware": rows}, indent=1))
    else:
        _print(total, asked, rows, measured=[each.calibrated for each in known])
    if needed and not as_json:
        prose(
            f"\nA 95 % interval of ± {half_width:g} takes {needed:,} problems at worst (half of them always solved, "
            "the others never, so that more samples of each do not help): "
            f"{needed * float(total.total):,.4g} Tera-eFLOPs."
        )


def _batch_on(chip: Hardware, rule: int | Literal["fit"] | None, fitting: Room, chips: int) -> int | None:
    """The batch that is priced on a chip; a line to standard error where it does not fit there. Raises CostError where
    what fits was asked for and nothing does.
    """
    where = chips_words(chips, chip.name)
    if rule == "fit":
        if not fitting.batch:
            raise CostError(
                f"not one sequence fits beside the weights on {where}, so no batch does; give more --chips, other "
                "--hardware, or --batch none, which takes the weights for free"
            )
        return fitting.batch
    if rule is not None and rule > fitting.batch:
        say(too_many(rule, fitting, where))
    return rule


def _has_peak(name: str, dtype: str | None) -> bool:
    from kinetics_jax.costs.hardware import HARDWARE, HardwareError, hardware

    if dtype is not None and not any(dtype in chip.peaks for chip in HARDWARE.values()):
        raise HardwareError(f"no chip has a peak for {dtype!r}")
    return dtype is None or dtype in hardware(name).peaks


def _chip_row(
    chip: Hardware,
    cost: Cost | None,
    config: PricedModel,
    policy: AttentionPolicy,
    *,
    chips: int,
    batch: Any,
    tokens: int,
    **options: Any,
) -> dict:
    """A row of the hardware table: one chip's seconds and room; no seconds where not one sequence fits."""
    from kinetics_jax.costs.memory import fits, least_chips

    full = fits(config, chip, tokens=tokens, attention=policy, chips=chips, **options)
    return {
        "name": chip.name,
        "intensity": chip.intensity,
        "chips": chips,
        "batch": batch,
        "seconds": None if cost is None else float(cost.seconds),
        "additive_seconds": None if cost is None else float(cost.additive_seconds),
        "price": None if cost is None or cost.price is None else float(cost.price),
        "joules": None if cost is None or cost.joules is None else float(cost.joules),
        "fits": full.sequences,
        "weights_gb_per_chip": full.weights / 1e9,
        "sequence_gb_per_chip": full.sequence / 1e9,
        "least_chips": least_chips(config, chip, tokens=tokens, attention=policy, most=MAX_CHIPS, **options),
    }


def _amounts(cost: Cost) -> dict[str, Any]:
    return {
        "compute": float(cost.compute),
        "memory": float(cost.memory),
        "total": float(cost.total),
        "roofline": float(cost.roofline),
        "parts": {name: float(amount) for name, amount in cost.parts.items()},
        "shared": {name: float(amount) for name, amount in cost.shared.items()},
    }


def _print(cost: Cost, asked: dict[str, Any], rows: list[dict], *, measured: list[bool]) -> None:
    """`measured`: of every row whether its chip's rates were measured with an engine."""
    import pandas as pd

    from kinetics_jax.cli.terminal import print_table
    from kinetics_jax.costs.batching import weight_words
    from kinetics_jax.costs.memory import RESERVE

    lengths = asked["output_tokens"]
    length = f"{lengths} output tokens" if isinstance(lengths, int) else f"output tokens among {lengths}, expected"
    where = f" ({asked['priced_on']})" if asked["priced_on"] else ""
    weights = weight_words(asked["batch_rule"], asked["batch"])
    if asked["batch_rule"] == "fit":
        weights += f", {asked['batch']} sequences"
    prose(
        f"{asked['model']}, {asked['attention']}: {asked['trials']} trials of {length} for a prompt of "
        f"{asked['prompt_tokens']}; {asked['convention']} convention, I = {asked['intensity']:.4g}{where}, "
        f"{asked['kv_dtype']} KV, {asked['weight_dtype']} weights; {weights}\n"
    )
    total = float(cost.total)
    if "speculate" in asked:
        print(
            f"Dense samples by speculation: {asked['speculate']} drafts a round, {asked['accept']:g} of them kept.\n"
            f"It costs {total / asked['dense_total']:.1%} of dense decoding, {asked['dense_total']:,.4g}.\n"
        )

    def row(part: str, amount: Any) -> dict[str, Any]:
        share = f"{amount / total:.1%}" if total else "-"
        return {"part": part.replace("_", " "), "Tera-eFLOPs": float(amount), "share": share}

    parts = [row(name, amount) for name, amount in cost.parts.items() if amount]
    sums = {"compute": cost.compute, "memory": cost.memory, "total": total, "roofline (max)": cost.roofline}
    print_table(pd.DataFrame([*parts, *(row(name, amount) for name, amount in sums.items())]), False)
    table = pd.DataFrame(rows).rename(columns={"name": "chip", "intensity": "I", "additive_seconds": "not overlapped"})
    sequence = table.pop("sequence_gb_per_chip").iloc[0]
    weights = table.pop("weights_gb_per_chip").iloc[0]
    empty = [name for name in ("price", "joules", "batch") if all(each[name] is None for each in rows)]
    table = table.drop(columns=empty)
    longest = asked["prompt_tokens"] + (lengths if isinstance(lengths, int) else max(lengths))
    if all(measured):
        rates = "at the rates and with the overheads that were measured, in the profile's own form or not overlapped"
    else:
        of_some = ", measured ones at their own rates" if any(measured) else ""
        rates = f"at the data sheet's peak rates{of_some}, arithmetic and reads overlapped or not"
    prose(
        f"\nSeconds of all trials {rates}; how many sequences of {longest} tokens ({sequence:.3g} GB a chip) fit "
        f"beside the weights ({weights:.3g} GB a chip), {RESERVE:.0%} in reserve; the fewest chips, a power of two, "
        "that hold one.\n"
    )
    print_table(table, False)
