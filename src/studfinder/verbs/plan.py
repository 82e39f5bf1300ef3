"""plan: a measured budget of bits."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from studfinder.errors import StudfinderError
from studfinder.models import LM, cached_content_hash, config_hash, content_hash, model_card
from studfinder.models.memory import as_bytes, in_bytes
from studfinder.quantizers.calibration import calibration_windows
from studfinder.quantizers.formats import WHOLE_BITS, candidate, candidates
from studfinder.quantizers.keep import resolve, skip
from studfinder.quantizers.method import method_class
from studfinder.quantizers.mixed import KeptPlaces
from studfinder.quantizers.targets import Target, by_fused, other_matrices, targets
from studfinder.recipes import mlx, tool_named, written
from studfinder.records import (
    UNTOUCHED,
    Findings,
    Format,
    GroupCosts,
    LeftOut,
    ModelCard,
    Plan,
    PlannedGroup,
    RunCard,
    Sensitivity,
    Solution,
    to_json,
)
from studfinder.records.config import identity, takes
from studfinder.records.presented import Presented
from studfinder.records.run import ids_hash
from studfinder.runs import SCORING, Run, Work, key_of, now, read, run_of, versions, write_text
from studfinder.sites import check_causal
from studfinder.verbs.configs import PlanConfig
from studfinder.verbs.load import load_as
from studfinder.verbs.plan_costs import (
    KEPT_FILE,
    SENSITIVITY_FILE,
    earlier_costs,
    measured_costs,
    predicted_costs,
    write_kept,
)
from studfinder.verbs.plan_judge import judged_plan
from studfinder.verbs.plan_measure import Bed
from studfinder.verbs.plan_solve import Aim, Chosen, chosen
from studfinder.verbs.plan_text import PlanText, plan_text
from studfinder.verbs.plan_tools import formats_for
from studfinder.verbs.plan_why import causes

PLAN_FILE = "plan.json"
_CALIBRATION, _LENGTH = 32, 512
"""Windows of Wikipedia that a method is calibrated on, and their tokens."""


@dataclass(frozen=True)
class PlanReady(Presented):
    """Everything that determines a plan, worked out before it is made.

    Attributes:
        found: the matrices that are planned.
        tools: for each tool the names of the formats that it takes; "" is our own quantize.
    """

    lm: LM
    model: ModelCard
    config: PlanConfig
    found: tuple[Target, ...]
    tools: dict[str, tuple[str, ...]]
    text: PlanText
    findings: Findings | None
    settings: dict[str, Any] = field(default_factory=dict)

    @cached_property
    def formats(self) -> tuple[Format, ...]:
        """All that any tool takes, and 16 bits, in which a group is left that no other fits."""
        return candidates([*(name for names in self.tools.values() for name in names), UNTOUCHED])

    @property
    def weights(self) -> int:
        """How many numbers are planned."""
        return sum(target.weight(self.lm).numel() for target in self.found)

    @property
    def rest(self) -> int:
        """Bits of everything else, in 16."""
        return WHOLE_BITS * (sum(one.numel() for one in self.lm.model.parameters()) - self.weights)

    @property
    def budget(self) -> str:
        """In words."""
        config = self.config
        if config.bits is not None:
            return f"{config.bits:g} bits a weight"
        return f"{config.size} in all" if config.size is not None else f"a KL of {config.kl:g} nats per token"

    @property
    def aim(self) -> Aim:
        """In numbers."""
        if self.config.bits is not None:
            return Aim(size=self.config.bits * self.weights)
        if self.config.size is None:
            return Aim(cost=self.config.kl)
        left = 8 * as_bytes(self.config.size) - self.rest
        if left <= 0:
            raise StudfinderError(
                f"--size {self.config.size}: what is not planned takes {in_bytes(self.rest / 8)} alone",
                expected="more than that",
            )
        return Aim(size=left)


def ready_plan(model: Any, config: PlanConfig) -> PlanReady:
    """Load the model where it is a name, and settle what is planned, in which formats, on which text.

    Raises:
        StudfinderError: no budget, or two; an unknown tool or format; or what `load` raises.
    """
    given = [one for one in (config.bits, config.size, config.kl) if one is not None]
    if len(given) != 1:
        raise StudfinderError(
            "a plan needs a budget" if not given else "a plan has one budget",
            expected="one of --bits 4.5, --size 4GB and --kl 0.05",
        )
    asked = [candidate(name).name for name in config.formats]
    tools = {tool: formats_for(tool, asked) for tool in dict.fromkeys(config.tools or ("",))}
    hash_of = content_hash if isinstance(model, LM) else cached_content_hash
    lm = model if isinstance(model, LM) else load_as(model, config, dtype=config.dtype)
    check_causal(lm, "plans")
    every = targets(lm)
    _, skipped = resolve(lm, every, skip(*config.skip)) if config.skip else ({}, set())
    found = tuple(target for target in every if target.fused not in skipped)
    if not found:
        raise StudfinderError("everything is skipped", expected="at least one matrix to plan")
    text = plan_text(lm, config)
    card = model_card(lm, hash_of(lm))
    findings = None if config.findings is None else read(config.findings, Findings)
    earlier = None if config.earlier is None else read(config.earlier, Sensitivity)
    settings = {
        **identity(config),
        "model": card.id,
        "model_hash": card.content_hash,
        "dtype": card.dtype,
        "config": config_hash(lm),
        "device": lm.device.type,
        "formats": "; ".join(f"{tool}: {', '.join(names)}" for tool, names in tools.items()),
        "skip": ", ".join(config.skip),
        "tools": ", ".join(config.tools),
        "text": None if config.text is None else str(config.text),
        "chosen_by": ids_hash(text.choosing),
        "judged_by": ids_hash(text.judging),
        "earlier": "" if earlier is None else key_of({"costs": to_json(earlier)}),
        "scoring": SCORING,
    }
    ready = PlanReady(lm, card, config, found, tools, text, findings, settings)
    _ = ready.aim, ready.formats  # said before anything is computed
    return ready


@takes(PlanConfig)
def plan(model: LM | str | os.PathLike[str], config: PlanConfig) -> Plan:
    """A format for every fused group of a model, within a budget of bits, bytes or nats.

    One backward pass a window predicts what rounding each group costs in every format; an exact solver chooses; and the
    plan is judged on text that chose nothing, beside one format for all, simple rules and groups at random.

    Args:
        model: from `sf.load`, or what it takes.
        config: how; or its fields as keywords. plan.json and sensitivity.json are written to `out`, or to the run's
            default folder; interrupted, the same call goes on where it stopped.

    Raises:
        StudfinderError: no budget, or one that nothing fits; an unknown tool or format; text too short.
    """
    return run_plan(ready_plan(model, config), command="sf.plan(lm)")[0]


def run_plan(ready: PlanReady, *, command: str = "") -> tuple[Plan, Path]:
    """Make what was settled, or read it where it is finished; returns the plan and its folder."""
    config, run = ready.config, plan_run(ready)
    found = None if config.overwrite else run.finished()
    if found is not None:
        return read(found, Plan), found
    with run.work(overwrite=config.overwrite, sources=[ready.lm.source.folder]) as work:
        made, costs, kept = _planned(ready, work, command)
        write_kept(work.path / KEPT_FILE, kept)
        write_text(work.path / SENSITIVITY_FILE, to_json(costs, indent=1))
        for tool in filter(None, ready.tools):
            text = written(made.recipe(tool, origin=str(run.path)), tool)
            write_text(work.path / tool_named(tool).FILE, text)
        if "mlx" in ready.tools:
            write_text(work.path / mlx.SENSITIVITIES, mlx.mlx_sensitivities(costs, ready.tools["mlx"]))
        from studfinder.verbs.results import write_plan

        write_plan(work.path, made, costs)
        write_text(work.path / PLAN_FILE, to_json(made, indent=1))
    return made, run.path


def plan_run(ready: PlanReady) -> Run:
    """The run of a plan; nothing is written."""
    return run_of("plan", ready.lm.source.id, ready.settings, result=PLAN_FILE, out=ready.config.folder)


def _planned(ready: PlanReady, work: Work, command: str) -> tuple[Plan, Sensitivity, KeptPlaces]:
    started, clock = now(), time.monotonic()
    config, lm = ready.config, ready.lm
    groups, kept = _costs(ready, work)
    bed = Bed(lm, ready.found, {one.name: one for one in ready.formats}, kept, work.steps, config.progress)
    if config.score == "measured":
        groups = measured_costs(bed, groups, ready.text.choosing)
    groups = causes(lm, groups, ready.found, ready.findings)
    solutions = [_solution(ready, bed, groups, tool, names) for tool, names in ready.tools.items()]
    run = RunCard(
        verb="plan",
        key=key_of(ready.settings),
        settings=ready.settings,
        command=command,
        started=started,
        seconds=work.steps.earlier + time.monotonic() - clock,
        device=str(lm.device),
        seed=config.seed,
        versions=versions(),
    )
    notes = []
    if config.method != "rtn":
        notes.append(
            f"costs are those of rounding to nearest; plan and rivals were judged as {config.method} rounds them"
        )
    if lm.dtype is not torch.float32:
        notes.append(f"the model ran in {ready.model.dtype}: small costs are noise there (--dtype float32)")
    made = Plan(
        model=ready.model,
        run=run,
        budget=ready.budget,
        method=config.method,
        text=ready.text.chose,
        judged_on=ready.text.judged,
        solutions=tuple(solutions),
        left_out=tuple(_left_out(ready)),
        notes=tuple(notes),
    )
    tokens = sum(map(len, ready.text.choosing))
    return made, Sensitivity(model=ready.model, run=run, text=_text(ready), tokens=tokens, groups=groups), kept


def _left_out(ready: PlanReady) -> Iterator[LeftOut]:
    planned = {name for target in ready.found for name in target.modules}
    skipped = {name for target in targets(ready.lm) for name in target.modules} - planned
    yield from (LeftOut(module=name, why="it was skipped") for name in sorted(skipped))
    others = other_matrices([ready.lm.model], planned | skipped)
    yield from (LeftOut(module=name, why="no matrix of the blocks that is rounded") for name in others)


def _text(ready: PlanReady) -> str:
    return f"{ready.text.chose} ({ids_hash(ready.text.choosing)[:12]})"


def _costs(ready: PlanReady, work: Work) -> tuple[tuple[GroupCosts, ...], KeptPlaces]:
    config, formats = ready.config, ready.formats
    if config.earlier is not None:
        groups = by_fused(ready.found)
        return earlier_costs(Path(config.earlier), ready.model.content_hash, _text(ready), groups, formats)
    return predicted_costs(
        ready.lm,
        ready.found,
        formats,
        ready.text.choosing,
        work,
        draws=config.draws,
        seed=config.seed,
        progress=config.progress,
    )


def _solution(ready: PlanReady, bed: Bed, groups: Sequence[GroupCosts], tool: str, names: Sequence[str]) -> Solution:
    fitting = {group.name: {one.stored_as for one in group.costs} & set(names) for group in groups}
    able = tuple(names) if all(fitting.values()) else (*names, UNTOUCHED)
    found = chosen(bed, groups, able, ready.text.choosing, ready.aim, ready.config.score, ready.config.draws)
    formats = found.choice.formats
    bits = found.choice.size / ready.weights
    judgement = None
    if ready.text.judging:
        judgement = judged_plan(
            _judging(ready, bed), groups, able, ready.text.judging, formats, bits, ready.config.seed
        )
    return Solution(
        tool=tool,
        formats=able,
        groups=tuple(_group(group, found, formats) for group in groups),
        bits=bits,
        size=round((found.choice.size + ready.rest) / 8),
        predicted=found.choice.cost,
        gap=found.choice.gap,
        kl=None if judgement is None else judgement.kl,
        rivals=() if judgement is None else judgement.rivals,
        better=None if judgement is None else judgement.better,
        verdict="" if judgement is None else judgement.verdict,
        notes=tuple(found.notes),
    )


def _judging(ready: PlanReady, bed: Bed) -> Bed:
    """What a plan is judged on: rounded by the method that it is made for."""
    if ready.config.method == "rtn":
        return bed
    _, windows = calibration_windows(ready.lm, "wikipedia", count=_CALIBRATION, length=_LENGTH)
    method = method_class(ready.config.method)()
    return replace(bed, method=method, windows=windows)


def _group(group: GroupCosts, found: Chosen, formats: Mapping[str, str]) -> PlannedGroup:
    cost = group.cost(formats[group.name])
    return PlannedGroup(
        name=group.name,
        layer=group.layer,
        modules=group.modules,
        shapes=group.shapes,
        stored_as=cost.stored_as,
        bits=cost.bits,
        kl=cost.nats * found.factors.get(group.name, 1.0),
        basis="measured" if cost.measured is not None else found.basis.get(group.name, "predicted"),
        why=group.why,
    )
