"""scan: which numbers of this model stand out, and where."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from studfinder.detectors import Detector, every_detector, observe
from studfinder.detectors.census import census
from studfinder.detectors.census_findings import with_census
from studfinder.detectors.iterative import iterative_search
from studfinder.detectors.published import published_for
from studfinder.errors import StudfinderError
from studfinder.models import LM, cached_content_hash, config_hash, content_hash, model_card
from studfinder.models.memory import in_bytes
from studfinder.prove import MISSED, PROVING, VERSION
from studfinder.prove import prove as prove_candidates
from studfinder.records import (
    Findings,
    ModelCard,
    PromptCard,
    RunCard,
    Summary,
    Thresholds,
    to_json,
    to_plain,
)
from studfinder.records.config import identity, takes
from studfinder.records.findings import LISTS
from studfinder.records.presented import Presented
from studfinder.runs import SCORING, Run, key_of, now, read, run_of, versions, write_bytes, write_text
from studfinder.runs.progress import expect
from studfinder.sites import bidirectional
from studfinder.texts import Text, default_prompts, encode
from studfinder.texts.prompts import DEFAULT_PROMPTS, read_prompts
from studfinder.verbs.configs import ScanConfig
from studfinder.verbs.continuations import PROMPT, continuations
from studfinder.verbs.load import load_as
from studfinder.visible import say

_DRAWS = 2
"""Of labels, in the census."""


@dataclass(frozen=True)
class ScanPlan(Presented):
    """Everything that determines a scan's result, worked out before it starts."""

    lm: LM
    model: ModelCard
    prompts: PromptCard
    thresholds: Thresholds
    prove: bool
    census: bool
    config: ScanConfig
    settings: dict[str, Any] = field(default_factory=dict)


def _has_gradients(lm: LM) -> bool:
    """Whether all weights are at hand, as a census needs them."""
    return not any(one.is_meta or one.is_inference() for one in lm.model.parameters())


def _has_room(lm: LM) -> bool:
    """Whether a census fits into the memory that may be taken; it is said if not."""
    plan = lm.memory
    if plan is None or not plan.streamed or plan.census <= plan.budget:
        return True
    say(
        f"studfinder: note: {lm.source.id}: no census, which takes {in_bytes(plan.census)} of memory "
        "(--memory, --census)",
        file=sys.stderr,
    )
    return False


def plan_scan(model: Any, config: ScanConfig, hash_of: Callable[[LM], str] | None = None) -> ScanPlan:
    """Load the model where it is a name, encode the prompts and fix the settings.

    Args:
        hash_of: how the weights' hash is found; the default remembers that of a model it has just loaded.

    Raises:
        StudfinderError: an empty prompt, no prompts, or what `load` raises.
    """
    thresholds = config.thresholds or Thresholds()
    if config.lam is not None:
        thresholds = replace(thresholds, lam=config.lam)
    texts = _texts(config)
    hash_of = hash_of or (content_hash if isinstance(model, LM) else cached_content_hash)
    lm = load_as(model, config)
    encoded, begins = encode(lm, texts, bos=config.bos)
    source = DEFAULT_PROMPTS if config.prompts is None and not config.prompt else "given"
    prompts = PromptCard.of(source, [text.name for text in texts], encoded, bos=begins)
    card = model_card(lm, hash_of(lm), config.train_length)
    prove = config.prove and not bidirectional(lm)  # a proof is a likelihood, which such a model has not
    census = prove and _has_gradients(lm) and _has_room(lm) if config.census is None else config.census
    if census and bidirectional(lm):
        raise StudfinderError(f"no census: {bidirectional(lm)}", do="Leave --census out")
    settings = {
        **identity(config),
        "model": card.id,
        "model_hash": card.content_hash,
        "dtype": card.dtype,
        "config": config_hash(lm),
        "device": lm.device.type,
        "prompts": prompts.id,
        "prompts_hash": prompts.hash,
        "bos": prompts.bos,
        "train_length": card.train_length,
        "prove": prove,
        "census": census,
        "proof": VERSION if prove else None,
        **{f"threshold_{name}": value for name, value in vars(thresholds).items()},
        "scoring": SCORING,
    }
    return ScanPlan(lm, card, prompts, thresholds, prove, census, config, settings)


@takes(ScanConfig)
def scan(model: LM | str | os.PathLike[str], config: ScanConfig) -> Findings:
    """Find the super-weight candidates, massive activations, massive values and attention sinks of a model.

    One forward pass per prompt feeds every detector, and one backward pass predicts what each number of the model
    carries (`detectors.census`). The candidates of both are then proved: the model runs without each of
    them on our proof text, against matched controls (see studfinder/prove), and is left bit for bit as it was.

    Args:
        model: from `sf.load`, or what it takes.
        config: how; or its fields as keywords. With `out`, findings.json and profile.safetensors are written there.
            Results do not depend on `batch_size` beyond rounding.

    Raises:
        StudfinderError: an empty prompt, no tokenizer, `out` holds another run.
    """
    return run_scan(plan_scan(model, config), command="sf.scan(lm)")[0]


def run_scan(
    plan: ScanPlan,
    *,
    write: bool = False,
    command: str = "",
    root: Path = Path("runs"),
    seen: Callable[[Findings], Any] = lambda findings: None,
) -> tuple[Findings, Path | None]:
    """Carry out a planned scan, or read it where it is finished; returns the findings, and the run folder if any.

    Args:
        write: write a run folder even without `out`, at its default place.
        root: where default places are.
        seen: told what was found before any of it is put to the proof, which takes longer.
    """
    config = plan.config
    if config.out is None and not write:
        return _scanned(plan, command, seen)[0], None
    run = scan_run(plan, root)
    found = None if config.overwrite else run.finished()
    if found is not None:  # the key says that these are its prompts; findings of version 1 do not know their ids
        return replace(read(found, Findings), prompts=plan.prompts), found
    # The folder is claimed first, so that a mistake in --out costs no time.
    with run.work(overwrite=config.overwrite, sources=[plan.lm.source.folder]) as work:
        findings, profile = _scanned(plan, command, seen)
        _write(work.path, run.path, findings, profile)
    return findings, run.path


def scan_run(plan: ScanPlan, root: Path = Path("runs")) -> Run:
    """The run of a planned scan; nothing is written."""
    before = {
        name: value for name, value in plan.settings.items() if name not in ("config", "device", "scoring", "proof")
    }
    out = plan.config.folder
    return run_of("scan", plan.model.id, plan.settings, result="findings.json", out=out, root=root, before=before)


def _scanned(plan: ScanPlan, command: str, seen: Callable[[Findings], Any]) -> tuple[Findings, dict[str, torch.Tensor]]:
    """The findings, and the arrays for profile.safetensors."""
    started, clock = now(), time.monotonic()
    progress, bos = plan.config.progress, plan.config.bos
    expect(progress, _steps(plan))
    detectors, finite = observe_model(plan)
    lists: dict[str, Sequence[Any]] = {name: detector.found() for name, detector in detectors.items()}
    if plan.config.iterative:

        def rounds(number: int) -> None:
            progress("the paper's loop", number, number)

        lists["super_weights"] = iterative_search(plan.lm, plan.prompts.token_ids, progress=rounds)
    summary: dict[str, Any] = {}
    for detector in detectors.values():
        summary |= detector.summary(plan.model)
    findings = Findings(
        model=plan.model,
        run=RunCard(
            verb="scan",
            key=key_of(plan.settings),
            settings=plan.settings,
            command=command,
            started=started,
            device=str(plan.lm.device),
            versions=versions(),
        ),
        prompts=plan.prompts,
        summary=Summary(
            thresholds={name: float(value) for name, value in vars(plan.thresholds).items()},
            bidirectional=bidirectional(plan.lm),
            without_attention=tuple(
                n for n, layer in enumerate(plan.lm.anatomy.layers) if layer.mixer is None or not layer.mixer.readable
            ),
            **summary,
        ),
        nonfinite=(
            *(site for detector in detectors.values() for site in detector.nonfinite()),
            *(() if finite else ("logits",)),
        ),
        others={name: tuple(map(to_plain, entries)) for name, entries in lists.items() if name not in LISTS},
        **{name: tuple(entries) for name, entries in lists.items() if name in LISTS},  # type: ignore[arg-type]
    )
    if plan.prove or plan.census:
        seen(findings)
    counted = None
    if plan.census:
        spikes = [(weight.parameter, weight.index) for weight in findings.super_weights]
        counted = census(plan.lm, plan.prompts.token_ids, draws=_DRAWS, also=spikes, progress=progress)
        findings = with_census(plan.lm, findings, counted, _DRAWS)
    if plan.prove:
        findings = prove_candidates(
            plan.lm,
            findings,
            census=counted,
            bos=bos,
            most=plan.config.most,
            pools=plan.config.pools,
            progress=progress,
        )
        streamed = plan.lm.memory is not None and plan.lm.memory.streamed
        if findings.super_weights and not streamed:  # every token that is said would read all weights
            said = continuations(plan.lm, findings, bos=bos)
            findings = replace(findings, continuation_prompt=PROMPT, continuations=said)
    profile = {name: array for detector in detectors.values() for name, array in detector.profile(plan.model).items()}
    return replace(
        findings,
        published=published_for(plan.model, findings.super_weights),
        run=replace(findings.run, seconds=time.monotonic() - clock),
    ), {name: array.contiguous() for name, array in profile.items()}


def _steps(plan: ScanPlan) -> dict[str, float]:
    """What comes, in tokens that run through the model once; of the proof what is usual, as it stops where it can."""
    tokens, config = plan.prompts.total, plan.config
    return {
        "observing": tokens,
        "census": plan.census * 3.0 * _DRAWS * tokens,
        MISSED: (plan.census and plan.prove) * 250.0 * config.pools,
        PROVING: plan.prove * 12_000.0 * config.most,
    }


def observe_model(plan: ScanPlan) -> tuple[dict[str, Detector], bool]:
    """One forward pass over the prompts with every detector reading; returns them, and whether all logits were
    finite."""
    detectors, done = every_detector(plan.lm, plan.thresholds), 0

    def advance(prompts: int) -> None:
        nonlocal done
        done += prompts
        plan.config.progress("observing", done, len(plan.prompts.token_ids))

    ids, size = plan.prompts.token_ids, plan.config.batch_size
    return detectors, observe(plan.lm, ids, detectors.values(), batch_size=size, progress=advance)


def _write(folder: Path, place: Path, findings: Findings, profile: dict[str, torch.Tensor]) -> None:
    from safetensors.torch import save_file

    from studfinder.verbs.report import write_report

    write_bytes(folder / "profile.safetensors", lambda path: save_file(profile, path))
    write_text(folder / "findings.json", to_json(findings, indent=1))  # before it is drawn, which may fail
    write_report(folder, findings, {name: tensor.numpy() for name, tensor in profile.items()}, run=place)


def _texts(config: ScanConfig) -> tuple[Text, ...]:
    """The prompts given, or our own."""
    given: list[Text | str] = list(config.prompt)
    if isinstance(config.prompts, Path):
        given += read_prompts(config.prompts)
    elif config.prompts is not None:
        given += [config.prompts] if isinstance(config.prompts, str) else config.prompts
    elif not given:
        return default_prompts()
    if not given:
        raise StudfinderError("there are no prompts", expected="at least one text")
    return tuple(one if isinstance(one, Text) else Text(f"prompt {number}", one) for number, one in enumerate(given))
