"""studfinder quantize"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from studfinder.cli import options as o
from studfinder.cli.progress import progress_bar
from studfinder.visible import say, say_json

if TYPE_CHECKING:
    import torch

    from studfinder.quantizers import Method, Scheme
    from studfinder.records import Quantization

EXAMPLES = """Examples:

\b
  studfinder quantize smollm2 --out smollm2-w4                 4 bits, integer zero point, clip search
  studfinder quantize ./my-model --bits 3 --group 64 --out w3  other bits and groups
  studfinder quantize ./my-model --scheme fp8 --out fp8        a scheme by name
  studfinder quantize smollm2 --keep RUN --out kept            with the findings of a scan kept
  studfinder quantize smollm2 --keep-columns RUN --format dense --out kept   and all that meets their inputs
  studfinder quantize smollm2 --rebalance RUN --out free       the same for nothing: exact, and no bits
  studfinder quantize smollm2 --hold-fraction 0.005 --group channel --format dense --out d
"""


def command(
    model: o.Model,
    out: Annotated[Path, typer.Option(help="Folder of the new checkpoint.", show_default=False)],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a checkpoint in --out.")] = False,
    method: Annotated[str, typer.Option(help="How to round: rtn, gptq, awq, smoothquant or clip-restore.")] = "rtn",
    scheme: Annotated[str | None, typer.Option(help="A scheme by name, e.g. fp8, w8-channel, mxfp4.")] = None,
    bits: Annotated[int | None, typer.Option(help="Bits of an integer, 2 to 8.  [default: 4]")] = None,
    group: Annotated[
        str | None,
        typer.Option(
            help="Inputs that share a scale, or channel, or tensor.  [default: 128, 64 or 32, what divides, or channel]"
        ),
    ] = None,
    zero: Annotated[str | None, typer.Option(help="Zero point: integer, none or float.  [default: integer]")] = None,
    clip: Annotated[bool, typer.Option("--clip/--no-clip", help="Search the range of each block (rtn).")] = True,
    keep: Annotated[list[Path] | None, typer.Option(help="Findings whose super weights are kept (repeatable).")] = None,
    keep_columns: Annotated[
        list[Path] | None, typer.Option(help="Findings whose super weights' whole columns are kept (repeatable).")
    ] = None,
    rebalance: Annotated[
        list[Path] | None,
        typer.Option(
            help="Findings whose proven super weights' columns are multiplied by 8 and their inputs divided by it: "
            "exact, and costs no bits (repeatable)."
        ),
    ] = None,
    hold_fraction: Annotated[
        float, typer.Option(min=0, max=0.5, help="Hold out this share of each matrix, the largest by magnitude.")
    ] = 0.0,
    auto: Annotated[
        float | None,
        typer.Option(min=0, help="Keep each fused group's relative output error below this, at the least cost."),
    ] = None,
    skip: Annotated[list[str] | None, typer.Option(help="A matrix to leave alone; * matches (repeatable).")] = None,
    format: Annotated[str, typer.Option(help="auto, dense, or the name of a compressed-tensors format.")] = "auto",
    calibration: Annotated[str, typer.Option(help="Calibration text: wikipedia, c4 or a file.")] = "wikipedia",
    samples: Annotated[int, typer.Option(min=1, help="Calibration windows.")] = 128,
    length: Annotated[int, typer.Option(min=2, help="Tokens of a calibration window.")] = 512,
    score: Annotated[
        bool,
        typer.Option(
            "--score", help="Put KL against the original and perplexities into the card, measured on the written files."
        ),
    ] = False,
    verify: Annotated[
        bool,
        typer.Option(
            "--verify/--no-verify",
            help="Load what was written in a fresh process and compare it with what was meant before it appears.",
        ),
    ] = True,
    dtype: o.Dtype = "auto",
    device: o.Device = None,
    revision: o.Revision = None,
    trust_remote_code: o.TrustRemoteCode = False,
    allow_pickle: o.AllowPickle = False,
    allow_missing: o.AllowMissing = False,
    merge_adapter: o.MergeAdapter = False,
    as_json: o.Json = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and stop.")] = False,
    debug: o.Debug = False,
) -> None:
    """Quantise a model into a checkpoint that plain transformers and vLLM load, with a card that says what was kept.

    Round to nearest needs no calibration text and works from file to file with the memory of one tensor; an
    interrupted run goes on where it was.
    """
    from studfinder.runs import check_place

    check_place(out, overwrite, [model])  # said before a model is loaded for nothing
    from studfinder.quantizers.export import chosen_format
    from studfinder.verbs.load import load
    from studfinder.verbs.quantize import folder_of, quantize, shapes_of

    source: Any = folder_of(model)
    options: dict[str, Any] = {
        "dtype": dtype,
        "device": device,
        "revision": revision,
        "trust_remote_code": trust_remote_code,
        "allow_pickle": allow_pickle,
        "allow_missing": allow_missing,
        "merge_adapter": merge_adapter,
    }
    if source is None or any(value not in (None, False, "auto") for value in options.values()):
        source = load(model, **options)
    shapes, own_dtype = shapes_of(source)
    if method == "smoothquant" and (scheme, bits, group, zero) == (None, None, None, None):
        scheme = "w8-channel"  # what smoothing is for: 8-bit weights beside 8-bit activations
    chosen = _method(method, _scheme(scheme, bits, group, zero, list(shapes.values()), own_dtype), clip)
    kept = _keep(keep or [], keep_columns or [], rebalance or [], hold_fraction, skip or [], auto)
    if dry_run:
        rounded = format != "dense" and getattr(chosen, "activation_arguments", None) is not None
        form = chosen_format(chosen.scheme, format, own_dtype, acts=rounded)
        say(_plan(model, chosen.scheme, method, form, shapes))
        return
    with progress_bar(as_json) as progress:
        done = quantize(
            model if folder_of(model) == source else source,
            chosen,
            keep=kept,
            out=out,
            format=format,
            calibration=calibration,
            samples=samples,
            length=length,
            score=score,
            verify=verify,
            overwrite=overwrite,
            progress=progress,
        )
    if as_json:
        say_json((out / "studfinder.json").read_text(encoding="utf-8"))
    else:
        _print(done, out)


def _scheme(
    name: str | None, bits: int | None, group: str | None, zero: str | None, shapes: list, dtype: torch.dtype
) -> Scheme:
    from dataclasses import replace

    from studfinder.errors import StudfinderError
    from studfinder.quantizers import SCHEMES
    from studfinder.verbs.quantize import default_scheme

    if name is not None:
        if name not in SCHEMES:
            raise StudfinderError(f"there is no scheme {name!r}", expected=", ".join(SCHEMES))
        if (bits, group, zero) != (None, None, None):
            raise StudfinderError("--scheme with --bits, --group or --zero", expected="one or the other")
        known = SCHEMES[name]
        own: Any = str(dtype).removeprefix("torch.")
        return replace(known, scale=own) if known.scale in ("bfloat16", "float16") else known
    from studfinder.records.outside import whole_number

    changes: dict[str, Any] = {}
    if bits is not None:
        changes["element"] = f"int{bits}"
    if zero is not None:
        changes["zero"] = zero
    if group is not None:
        changes["block"] = whole_number(group) or group[:40]
    return replace(default_scheme(shapes, dtype), **changes)


def _method(name: str, scheme: Scheme, clip: bool) -> Method:
    from studfinder.quantizers import Clip, method_class

    kind: Any = method_class(name)
    return kind(scheme=scheme, clip=Clip() if clip else None) if name == "rtn" else kind(scheme=scheme)


def _keep(
    runs: list[Path],
    columns: list[Path],
    rebalance: list[Path],
    fraction: float,
    skips: list[str],
    budget: float | None,
) -> list[Any]:
    from studfinder.quantizers import Auto, Rebalance, hold_out, neurons_of, skip
    from studfinder.records import Findings
    from studfinder.records.json import read_record
    from studfinder.runs import record_file

    kept: list[Any] = [read_record(Findings, record_file(run, "findings.json")) for run in runs]
    for run in columns:
        findings = read_record(Findings, record_file(run, "findings.json"))
        load_bearing = any(weight.verdict != "inert" for weight in findings.super_weights)
        kept.append(hold_out(findings, columns=True) if load_bearing else findings)
    for run in rebalance:
        findings = read_record(Findings, record_file(run, "findings.json"))
        neurons = neurons_of(findings.proven) if findings.proven else ()
        kept.append(Rebalance(neurons=neurons, power=3, model=findings.model.content_hash))
    if fraction:
        kept.append(hold_out(fraction=fraction))
    if skips:
        kept.append(skip(*skips))
    return kept if budget is None else [*kept, Auto(budget=budget)]


def _plan(model: str, scheme: Scheme, method: str, format: str, shapes: dict[str, tuple[int, ...]]) -> str:
    from studfinder.quantizers import bits_per_weight

    sizes = {name: rows * cols for name, (rows, cols) in shapes.items()}
    bits = sum(bits_per_weight(shape, scheme) * sizes[name] for name, shape in shapes.items())
    weights = sum(sizes.values())
    return (
        f"would quantise {len(shapes)} matrices of {model} ({weights / 1e6:,.0f} M weights) by {method}: {scheme}, "
        f"{bits / weights:.3f} bits a weight, {bits / 8e6:,.0f} MB of them, as {format}"
    )


def _print(done: Quantization, out: Path) -> None:
    say(f"{done.scheme}: {done.bits:.3f} bits a weight, {done.quantized} matrices, {done.stored_as}")
    for name in done.instead:
        say(f"kept by leaving it whole: {name}")
    for name, line in done.scores.items():
        say(f"{name}: {line}")
    say(f"verified: {done.verified}")
    for note in done.notes:
        say(note)
    say(f"kernel in vLLM: {done.kernel or ('not needed' if done.stored_as == 'dense' else 'none known')}")
    say(f"checkpoint {out}")
