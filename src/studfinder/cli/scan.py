"""studfinder scan"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from studfinder.cli import options as o
from studfinder.cli.progress import progress_bar
from studfinder.cli.shown import say_if_older
from studfinder.visible import say, say_json

EXAMPLES = """Examples:

\b
  studfinder scan                                  the built-in SmolLM2-135M-Instruct
  studfinder scan Qwen/Qwen3-8B --out runs/qwen    a hub model, into a folder of yours
  studfinder scan ./my-model --prompts mine.jsonl  your own prompts
  studfinder scan gemma3-270m --no-bos --json      without BOS, the record on stdout
"""


def command(
    model: o.Model = "smollm2",
    out: Annotated[Path | None, typer.Option(help="Run folder.  [default: runs/<model>/scan-<key>]")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Make it anew, and replace what is there.")] = False,
    prompt: Annotated[list[str] | None, typer.Option(help="A prompt to observe (repeatable).")] = None,
    prompts: Annotated[Path | None, typer.Option(help='Prompts: plain text, or .jsonl with "text".')] = None,
    bos: Annotated[
        bool | None,
        typer.Option("--bos/--no-bos", help="Force BOS on or off.  [default: as the tokenizer does]"),
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Prompts a forward pass.")] = 1,
    lam: Annotated[float, typer.Option(min=0, help="Massive values exceed this times their head's mean.")] = 5.0,
    train_length: Annotated[int | None, typer.Option(min=1, help="Training context.  [default: the config's]")] = None,
    prove: Annotated[bool, typer.Option("--prove/--no-prove", help="Test the candidates (minutes).")] = True,
    iterative: Annotated[bool, typer.Option("--iterative", help="Candidates from the paper's own loop.")] = False,
    dtype: o.Dtype = "auto",
    device: o.Device = None,
    device_map: o.DeviceMap = None,
    revision: o.Revision = None,
    attention: o.Attention = None,
    trust_remote_code: o.TrustRemoteCode = False,
    allow_pickle: o.AllowPickle = False,
    allow_missing: o.AllowMissing = False,
    merge_adapter: o.MergeAdapter = False,
    as_json: o.Json = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and stop.")] = False,
    debug: o.Debug = False,
) -> None:
    """Find a model's super weights, massive activations, massive values and attention sinks, and prove what the
    super weights carry.

    One forward pass over a dozen prompts finds them; then the model runs without each candidate on a proof text, beside
    matched controls. The model itself is never changed.
    """
    from studfinder.errors import StudfinderError

    if out is not None and out.is_file():  # said before a model is loaded for nothing
        raise StudfinderError(f"--out {out} is a file", expected="a folder, or a name that does not exist yet")
    texts = _texts(prompt, prompts)

    from studfinder.models import cached_content_hash
    from studfinder.records import Thresholds, to_json
    from studfinder.report import print_findings
    from studfinder.verbs.load import load
    from studfinder.verbs.scan import plan_scan, run_scan

    thresholds = Thresholds(lam=lam)  # said before a model is loaded for nothing
    lm = load(
        model,
        dtype=dtype,
        device=device,
        device_map=device_map,
        revision=revision,
        attention=attention,
        trust_remote_code=trust_remote_code,
        allow_pickle=allow_pickle,
        allow_missing=allow_missing,
        merge_adapter=merge_adapter,
    )
    plan = plan_scan(
        lm,
        prompts=texts,
        bos=bos,
        thresholds=thresholds,
        train_length=train_length,
        prove=prove,
        iterative=iterative,
        hash_of=cached_content_hash,
    )
    if dry_run:
        weights = sum(p.nbytes for p in lm.model.parameters()) / 1e6
        say(
            f"would scan {model} ({plan.model.parameters / 1e6:,.0f} M parameters, {weights:,.0f} MB of weights) on "
            f"{len(plan.prompts.tokens)} prompts, {plan.prompts.total:,} tokens"
            + (", and prove up to 10 candidates on 4,000 tokens (some 60 passes)" if plan.prove else "")
        )
        return
    with progress_bar(as_json) as progress:
        findings, folder = run_scan(
            plan,
            batch_size=batch_size,
            out=out,
            write=True,
            overwrite=overwrite,
            progress=progress,
            command="studfinder " + " ".join(sys.argv[1:]),
        )
    assert folder is not None
    say_if_older(findings.run)
    if as_json:
        say_json(to_json(findings, indent=1))  # also where a run of version 1 is shown
    else:
        print_findings(findings, folder)


def _texts(prompt: list[str] | None, prompts: Path | None) -> list | None:
    from studfinder.texts.prompts import Text, read_prompts

    given = [Text(f"prompt {number}", text) for number, text in enumerate(prompt or [])]
    if prompts is not None:
        given += read_prompts(prompts)
    return given or None
