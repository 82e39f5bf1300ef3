"""What quantising will be: method, scheme, format, what is kept; and what it will come to, before anything is made."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from studfinder.edits import Selection, selected
from studfinder.errors import StudfinderError
from studfinder.models import LM, Source
from studfinder.models.places import fetched, source_named
from studfinder.quantizers import (
    RTN,
    ActivationScheme,
    Clip,
    MassiveRows,
    Method,
    Rebalance,
    Scheme,
    Target,
    calibration_windows,
    hold_out,
    method_class,
    neurons_of,
    skip,
)
from studfinder.quantizers.apply import bench_for, prepared
from studfinder.quantizers.bench import Workbench
from studfinder.quantizers.export import chosen_format, whole_experts
from studfinder.quantizers.keep import Skip, as_keeps, unkept
from studfinder.quantizers.mixed import mask_of
from studfinder.quantizers.source import Files, open_files
from studfinder.quantizers.storage import Storage, format_of
from studfinder.quantizers.targets import targets
from studfinder.records import Findings, Recipe
from studfinder.records.outside import whole_number
from studfinder.records.presented import Presented
from studfinder.records.scheme import Inputs, format_named
from studfinder.report.words import count
from studfinder.runs import check_place, read
from studfinder.verbs.configs import QuantizeConfig
from studfinder.verbs.load import load_as, options_of
from studfinder.verbs.publish import check_repository
from studfinder.verbs.quantize_recipe import Assigned, alike, assigned, recipe_given, rounding_of, unreadable

_GROUPS = (128, 64, 32)


def default_scheme(shapes: Collection[tuple[int, ...]], dtype: torch.dtype, *, experts: bool = False) -> Scheme:
    """4 bits, integer zero point, groups of 128, or of 64 or 32 where 128 does not divide every matrix.

    Args:
        shapes: (out, in) of what is quantised.
        dtype: of the model, in which scales are stored.
        experts: whether experts in fused parameters are among them, which plain transformers reads without zero points.
    """
    sizes = [size for size in _GROUPS if all(shape[1] % size == 0 for shape in shapes)]
    scale: Any = str(dtype).removeprefix("torch.")
    return Scheme(block=sizes[0] if sizes else "channel", zero="none" if experts else "integer", scale=scale)


def shapes_of(lm: LM, files: Files | None = None) -> tuple[dict[str, tuple[int, ...]], torch.dtype, bool]:
    """(out, in) of every matrix that is quantised, by name, their dtype, and whether experts of a fused parameter are
    among them: of a model in memory, or of its files."""
    found = targets(lm) if files is None else tuple(files.targets.values())
    experts = any(target.part is not None for target in found)
    if files is None:
        return {target.name: tuple(target.weight(lm).shape) for target in found}, lm.dtype, experts
    shapes = {target.name: files.matrix_shape(target.name) for target in found}
    return shapes, files.stored[found[0].name][0], experts


@dataclass(frozen=True)
class QuantizePlan(Presented):
    """What quantising will be, settled before anything is made.

    Attributes:
        model: by name, for the record.
        lm: the model; without its numbers where there are files.
        files: those of its checkpoint, of which each matrix can be read by itself.
        method: with its scheme.
        format: what is written.
        keep: what survives.
        transforms: changes before rounding.
        recipe: the format of each fused group, where they differ.
        inputs: how what enters every matrix is rounded, where the scheme says so.
        kept: single numbers that the plan keeps, as flat indices (out, in) by parameter name.
    """

    model: str
    lm: LM
    files: Files | None
    config: QuantizeConfig
    method: Method
    format: str
    keep: tuple[Any, ...]
    transforms: tuple[Any, ...]
    recipe: Recipe | None = None
    inputs: Inputs | None = None
    kept: Mapping[str, torch.Tensor] = field(default_factory=dict)


def plan_quantize(model: Any, config: QuantizeConfig) -> QuantizePlan:
    """Settle method, scheme and format; load the model where its files cannot be gone through one by one.

    Raises:
        StudfinderError: an unknown name, settings that do not go together, a scheme that the format cannot hold, `out`
            is taken, or what `load` raises.
    """
    if config.push_to_hub is not None:
        check_repository(config.push_to_hub)
    by_name = isinstance(model, str | os.PathLike)
    source: Any = source_named(os.fspath(model), config.revision) if by_name else getattr(model, "source", None)
    check_place(Path(config.out), config.overwrite, [] if source is None else [source.folder])
    if config.auto is not None:
        raise StudfinderError(
            "--auto is gone: it judged an error by the size of the output, which a spike decides",
            do="Spend bits where they count by `studfinder plan --kl`, in nats per token, and quantise what it made",
        )
    keep, changes = _keeps(config), _transforms(config)  # said before a model is loaded for nothing
    opened = _opened(source) if by_name and not set(options_of(config)) - {"revision", "memory"} else None
    lm, files = opened or (load_as(model, config), None)
    shapes, dtype, experts = shapes_of(lm, files)
    method = _method(config, default_scheme(shapes.values(), dtype, experts=experts))
    recipe, kept = (None, {}) if config.plan is None else recipe_given(config.plan)
    inputs = None
    if isinstance(config.scheme, str):
        inputs = format_named(config.scheme).inputs
    if inputs is not None and getattr(method, "activations", None) is not None:
        method, inputs = replace(method, activations=rounding_of(inputs)), None  # type: ignore[type-var]
    format = "as the plan says" if recipe else stored_as(method, config.format, dtype, inputs=inputs).format
    name = model.source.id if isinstance(model, LM) else str(model)
    return QuantizePlan(name, lm, files, config, method, format, keep, changes, recipe, inputs, kept)


def forecast(plan: QuantizePlan) -> list[str]:
    """What it will come to, a sentence each, from the same steps that quantising begins with. Raises as `quantize`."""
    laid = laid_out(plan)
    with prepared(laid.bench) as bench:
        sizes = {target.name: target.weight(bench.lm).numel() for target in bench.targets}
        said = [_sentence(plan, laid.format, len(sizes), sum(sizes.values()), bench.planned, bench.size)]
        held = [int(bench.held[name].sum()) for name in sizes if name in bench.held]
        if held:
            said.append(f"held out: {sum(held):,} numbers of {count(len(held), 'matrix', 'matrices')}")
        said += [f"left whole{', for what is kept in it' * (one in bench.instead)}: {one}" for one in bench.skipped]
        return [*said, *laid.notes, *bench.notes]


def _late(part: Any) -> bool:
    """Whether it needs calibration text."""
    return bool(getattr(part, "calibrated", False))


def _sentence(plan: QuantizePlan, format: str, matrices: int, weights: int, bits: float, all_weights: int) -> str:
    how = plan.config.method if isinstance(plan.config.method, str) else type(plan.method).__name__
    return (
        f"would quantise {matrices} matrices of {plan.model} ({weights / 1e6:,.0f} M weights) by {how}: "
        f"{plan.method.scheme}, {bits:.3f} bits a weight, {bits * all_weights / 8e6:,.0f} MB of them, as {format}"
    )


def source_files(plan: QuantizePlan) -> Files | None:
    """The files to go through one by one, where that is enough: round to nearest, and nothing to be run."""
    return plan.files if isinstance(plan.method, RTN) and not (plan.config.score or plan.transforms) else None


def _method(config: QuantizeConfig, usual: Scheme) -> Method:
    """The method with its scheme. Raises StudfinderError for what does not go together."""
    said = [name for name in ("scheme", "bits", "group", "zero") if getattr(config, name) is not None]
    if not isinstance(config.method, str):
        if said:
            raise StudfinderError(f"{said[0]} beside a method's own settings", expected="its scheme= in the method")
        return config.method
    kind: Any = method_class(config.method)
    if config.plan is not None and said:
        raise StudfinderError(f"--plan with --{said[0]}", expected="one or the other: the plan says the schemes")
    if isinstance(config.scheme, Scheme):
        scheme = config.scheme
    elif config.method == "smoothquant" and not said:
        scheme = _scheme(replace(config, scheme="w8-channel"), usual)  # beside 8-bit activations
    else:
        scheme = _scheme(config, usual)
    return kind(scheme=scheme, **({"clip": Clip() if config.clip else None} if config.method == "rtn" else {}))


def _scheme(config: QuantizeConfig, usual: Scheme) -> Scheme:
    if config.scheme is not None:
        if (config.bits, config.group, config.zero) != (None, None, None):
            raise StudfinderError("--scheme with --bits, --group or --zero", expected="one or the other")
        asked = format_named(str(config.scheme))
        known = asked.weights
        if known is None:
            raise StudfinderError("--scheme 16 leaves every matrix as it is", expected="fewer bits")
        if asked.kept:
            raise StudfinderError(
                f"--scheme {asked.name} does not say which numbers are kept", do="Plan it: studfinder plan --formats"
            )
        return replace(known, scale=usual.scale) if known.scale in ("bfloat16", "float16") else known
    changes: dict[str, Any] = {}
    if config.bits is not None:
        changes["element"] = f"int{config.bits}"
    if config.zero is not None:
        changes["zero"] = config.zero
    if config.group is not None:
        changes["block"] = whole_number(config.group) or str(config.group)[:40]
    return replace(usual, **changes)


def _keeps(config: QuantizeConfig) -> tuple[Any, ...]:
    kept = [selected(one) for one in _flat(config.keep)]
    for one in map(selected, _flat(config.keep_columns)):
        nothing = isinstance(one, Selection) and not one.numbers
        kept.append(one if nothing else hold_out(one, columns=True))
    kept += [_massive(one) for one in _flat(config.keep_massive)]
    if config.hold_fraction:
        kept.append(hold_out(fraction=config.hold_fraction))
    if config.skip:
        kept.append(skip(*config.skip))
    return tuple(kept)


def _massive(given: Any) -> MassiveRows:
    """Of findings, of a run's folder or file, or of its name with #query or #key; as it is if it is one."""
    if isinstance(given, MassiveRows):
        return given
    if isinstance(given, Findings):
        return MassiveRows(findings=given)
    path, mark, tensor = str(given).rpartition("#")
    if not mark or Path(given).exists():
        return MassiveRows(findings=read(given, Findings))
    return MassiveRows(findings=read(path, Findings), tensors=(tensor,))


def _transforms(config: QuantizeConfig) -> tuple[Any, ...]:
    changes: list[Any] = []
    for one in map(selected, _flat(config.rebalance)):
        model = one.findings.model.content_hash if isinstance(one, Selection) else ""
        changes.append(Rebalance(neurons=neurons_of(one), power=3, model=model))
    changes += _flat(config.transforms)
    return tuple(changes)


@dataclass(frozen=True)
class LaidOut:
    """A model on the bench, and all that is known before a method runs; `layout` says of every matrix that may be
    quantised, by parameter name, how it would be stored."""

    plan: QuantizePlan
    method: Method
    format: str
    layout: Mapping[str, Storage]
    bench: Workbench
    keep: tuple[Any, ...]
    text: str | None
    notes: tuple[str, ...]


def stored_as(
    method: Method,
    asked: str,
    dtype: torch.dtype,
    found: Sequence[Target] = (),
    *,
    scheme: Scheme | None = None,
    inputs: ActivationScheme | Inputs | None = None,
) -> Storage:
    """How a matrix is stored: of the method's scheme and inputs, or of others. Raises as `chosen_format`."""
    scheme = method.scheme if scheme is None else scheme
    inputs = rounding_of(inputs) if isinstance(inputs, Inputs) else inputs
    inputs = getattr(method, "activations", None) if inputs is None else inputs
    said = asked != "dense" and inputs is not None and inputs.arguments()  # asked before any work: not all can be said
    format = chosen_format(scheme, asked, dtype, found, acts=bool(said))
    return Storage(scheme=scheme, format=format, inputs=None if format == "dense" else inputs)


def _stored(
    plan: QuantizePlan, lm: LM, found: Sequence[Target], said_of: Assigned
) -> tuple[dict[str, Storage], list[str]]:
    """How every matrix that is rounded is stored, by parameter name, and what is said of it. Where nothing was asked
    for, what plain transformers could not read is stored dense."""

    def layout(format: str) -> dict[str, Storage]:
        return {
            target.name: stored_as(
                plan.method,
                format,
                lm.dtype,
                found,
                scheme=said_of.schemes.get(target.name),
                inputs=said_of.inputs.get(target.name),
            )
            for target in found
            if target.name not in said_of.left
        }

    asked = plan.config.format
    made = layout(asked)
    if not made:
        raise StudfinderError("the plan leaves every matrix as it is", expected="at least one matrix to quantise")
    if asked != "auto" or plan.recipe is None:
        return made, []
    why = (
        "compressed-tensors has no place for the numbers that the plan keeps" if plan.kept else unreadable(found, made)
    )
    said = "the checkpoint is dense: it holds the rounded weights in 16 bits, since"
    return (layout("dense"), [f"{said} {why}"]) if why and plan.config.verify else (made, [])


def laid_out(plan: QuantizePlan) -> LaidOut:
    """What the plan comes to on the model: in memory; without its numbers where its files are gone through; mapped from
    them where numbers are kept, since findings are held against the weights."""
    config, method, lm = plan.config, plan.method, plan.lm
    by_files = source_files(plan) is not None
    whole = by_files and plan.recipe is None and all(isinstance(one, Skip) for one in plan.keep)
    if plan.files is not None and not whole:
        lm = load_as(plan.model, config, own_names=by_files)
    found = targets(lm, offloaded=by_files)
    scale = str(lm.dtype).removeprefix("torch.")
    said_of = alike(found, plan.inputs) if plan.recipe is None else assigned(lm, plan.recipe, found, scale)
    notes = [*plan.lm.source.notes, *unkept(plan.keep), *said_of.notes]
    layout, said = _stored(plan, lm, found, said_of)
    notes += said
    format = format_of(layout.values())
    rounded = said_of.inputs if format != "dense" else {}
    if format == "dense" and (hasattr(method, "weights_only") or said_of.inputs):
        method = getattr(method, "weights_only", method)
        notes.append("a dense checkpoint holds weights only: whoever loads it does not round inputs")
    text: str | None = None
    windows: Sequence[Sequence[int]] = ()
    if _late(method) or any(map(_late, plan.transforms)):
        origin, windows = calibration_windows(lm, config.calibration, count=config.samples, length=config.length)
        text = f"{origin}, {len(windows)} windows of {config.length} tokens"
    # While the model is as it was scanned: inside, findings would be of another one.
    keep = tuple(as_keeps(lm, plan.keep))
    bench = bench_for(
        lm,
        method,
        found,
        keep=(*keep, *([skip(*said_of.left)] if said_of.left else [])),
        transforms=plan.transforms,
        windows=windows,
        schemes=said_of.schemes,
        inputs=rounded,
        progress=config.progress,
    )
    bench.numbers = format == "dense"
    held = {
        target.name: mask_of(target.weight(lm).shape, plan.kept[target.name], lm.device)
        for target in bench.targets
        if target.name in plan.kept
    }
    also = {name: mask | bench.held[name] if name in bench.held else mask for name, mask in held.items()}
    bench.held = {**bench.held, **also}
    left, said = whole_experts(lm, (*bench.targets, *bench.left), bench.skipped, layout)
    bench.skip(left)
    if not bench.targets:
        raise StudfinderError("everything is skipped", expected="at least one matrix to quantise")
    notes += said
    layout = {target.name: layout[target.name] for target in bench.targets}
    why = unreadable(bench.targets, layout)
    if why and config.verify:
        raise StudfinderError(
            why, do="Give them one scheme; or --format dense; or --no-verify, for an engine that reads them"
        )
    if why:
        notes.append(f"for engines only: {why}")
    return LaidOut(plan, method, format, layout, bench, (*keep, *plan.transforms), text, tuple(notes))


def _opened(source: Source) -> tuple[LM, Files] | None:
    """The files of a model, those of the hub once they are here; None where it has to be loaded, which also says why
    there is none."""
    folder = source.folder
    if folder is None:
        with suppress(Exception):  # the hub's client raises many kinds
            folder = fetched(source)
    return open_files(source, folder) if folder is not None and (folder / "config.json").is_file() else None


def _flat(keep: Any) -> list[Any]:
    if isinstance(keep, list | tuple):
        return [one for part in keep for one in _flat(part)]
    return [] if keep is None else [keep]
