"""studfinder quantize"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from studfinder.cli import options as o
from studfinder.cli.faces import face
from studfinder.cli.progress import progress_bar
from studfinder.cli.shown import say_next
from studfinder.verbs.configs import QuantizeConfig
from studfinder.visible import say, say_json

if TYPE_CHECKING:
    from studfinder.records import Quantization

EXAMPLES = """Examples:

\b
  studfinder quantize smollm2 --out smollm2-w4                 4 bits, integer zero point, clip search
  studfinder quantize ./my-model --bits 3 --group 64 --out w3  other bits and groups
  studfinder quantize ./my-model --scheme fp8 --out fp8        a scheme by name
  studfinder quantize smollm2 --keep RUN --out kept            with the findings of a scan kept
  studfinder quantize smollm2 --keep-columns RUN --format dense --out kept   and all that meets their inputs
  studfinder quantize smollm2 --keep-massive RUN --format dense --out kept   and the rows of massive values
  studfinder quantize smollm2 --rebalance RUN --out free       the same for nothing: exact, and no bits
  studfinder quantize smollm2 --hold-fraction 0.005 --group channel --format dense --out d
"""


@face(QuantizeConfig)
def command(
    model: o.Model,
    config: QuantizeConfig,
    as_json: o.Json = False,
    dry_run: o.DryRun = False,
    debug: o.Debug = False,
) -> None:
    """Quantise a model into a checkpoint that plain transformers and vLLM load, with a card that says what was kept.

    Round to nearest needs no calibration text and works from file to file with the memory of one tensor; an
    interrupted run goes on where it was.
    """
    from studfinder.verbs.quantize import run_quantize
    from studfinder.verbs.quantize_plan import forecast, plan_quantize

    with progress_bar(as_json) as progress:
        plan = plan_quantize(model, replace(config, progress=progress))
        if dry_run:
            say(*forecast(plan))
            return
        done = run_quantize(plan)
    if as_json:
        say_json((Path(config.out) / "studfinder.json").read_text(encoding="utf-8"))
    else:
        _print(done, Path(config.out))


def _print(done: Quantization, out: Path) -> None:
    say(f"{done.scheme}: {done.bits:.3f} bits a weight, {done.quantized} matrices, {done.stored_as}")
    for name in done.instead:
        say(f"kept by leaving it whole: {name}")
    for name, line in done.scores.items():
        say(f"{name}: {line}")
    say(f"verified: {done.verified}")
    for note in done.notes:
        say(note)
    say(f"seen to load in: {done.engines}")
    say(f"checkpoint {out}")
    say_next(done, out)
