"""What a diagnosis comes to: the cause, in a sentence, and what mends it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from studfinder.diagnosis.settings import HEAD
from studfinder.records import Interval
from studfinder.records.diagnosis import EngineDiagnosis, PartDiagnosis, SettingDiagnosis

HARMLESS = 0.01
"""Nats per token: a KL below it is no harm."""


@dataclass(frozen=True)
class CauseFound:
    """`cause` is a kind, `culprit` a name; both are empty where nothing is wrong that rounding does not do."""

    cause: str
    culprit: str
    sentence: str
    mend: str

    @property
    def ill(self) -> bool:
        """Whether there is a cause."""
        return bool(self.cause)


def cause_of(
    kl: Interval,
    settings_kl: Interval | None,
    parts: Sequence[PartDiagnosis],
    settings: Sequence[SettingDiagnosis],
    engine: EngineDiagnosis | None,
    original: str,
    output_matrix: str,
    spikes: Mapping[str, tuple[int, float]],
) -> CauseFound:
    """The first cause: a setting that does most of the harm, then the broken part that does, then other settings,
    then an engine that says something else than the weights.

    Args:
        settings_kl: what is left with all weights put back.
        original: what it was made from, in print.
        output_matrix: the name of its parameter.
        spikes: by parameter, a column that meets a spike in the original, and that spike.
    """
    computing = [one for one in settings if one.computes and one.counts]
    broken = [part for part in parts if part.breaks]
    head = [one for one in settings if one.name == HEAD]
    if broken and head and _worst(broken).name == output_matrix:
        return _setting(head[0], f"{_worst(broken).words}")
    if computing and settings_kl is not None and settings_kl.value > max(HARMLESS, kl.value / 2):
        return _setting(computing[0], f"with all weights put back a KL of {settings_kl.value:.3g} is left")
    if broken:
        return _broken(broken, original, spikes)
    if computing and settings_kl is not None and settings_kl.low > 0:
        return _setting(computing[0], f"it alone costs {settings_kl.value:.3g} nats per token")
    rest = [one for one in settings if not one.computes and one.counts]
    if rest:
        return _setting(rest[0], "the weights alone do not show what that costs")
    if engine is not None and not engine.agrees:
        where = f"from position {engine.begins} on" if engine.begins is not None else "here and there"
        return CauseFound(
            "engine",
            "engine",
            f"The weights are not the cause: the engine's log-probabilities differ from theirs {where} "
            f"(95 of 100 by less than {engine.far:.2g} nats).",
            "Look at the engine's kernel, the format of its cache and its settings; e.g. a cache in 16 bits",
        )
    return _healthy(parts, kl, spikes)


def _meets(part: PartDiagnosis, spikes: Mapping[str, tuple[int, float]]) -> str:
    """That a column of a part meets a spike of the original's, in words."""
    found = [spikes[name] for name in part.members if name in spikes]
    return "".join(f"; its column {column} meets a spike of {abs(spike):,.0f}" for column, spike in found[:1])


def _worst(broken: Sequence[PartDiagnosis]) -> PartDiagnosis:
    """Of broken parts, the one that wins most when it is put back, or is predicted to."""
    return max(broken, key=lambda part: (part.won is not None, part.won.value if part.won else part.predicted or 0.0))


def _setting(one: SettingDiagnosis, why: str) -> CauseFound:
    return CauseFound(
        "setting",
        one.name,
        f"A setting is the cause: {one.name} was {one.was} and is {one.is_now} ({one.about}); {why}.",
        f"Set {one.name} to what it was",
    )


def _broken(broken: Sequence[PartDiagnosis], original: str, spikes: Mapping[str, tuple[int, float]]) -> CauseFound:
    first = _worst(broken)
    share = "" if first.share is None else f" carries {min(first.share, 1):.0%} of the loss"
    more = {1: "", 2: "; one more part is broken"}.get(len(broken), f"; {len(broken) - 1} more parts are broken")
    return CauseFound(
        first.pattern,
        first.name,
        f"{first.name}{share or ' is broken'}: {first.words}{_meets(first, spikes)}{more}.",
        f"Write {', '.join(part.name for part in broken[:4])} anew from {original}, or leave it in 16 bits",
    )


def _healthy(parts: Sequence[PartDiagnosis], kl: Interval, spikes: Mapping[str, tuple[int, float]]) -> CauseFound:
    if not parts:
        return CauseFound("", "", "Nothing differs: the two models are the same.", "")
    ranked = [part for part in parts if part.won is not None and part.won.low > 0]
    cost = f"a KL of {kl.value:.3g} nats per token"
    if not ranked:
        return CauseFound(
            "",
            "",
            f"Nothing is broken: rounding costs {cost}; no part that was put back alone is shown to win any of it.",
            "",
        )
    first, tried = ranked[0], sum(part.won is not None for part in parts)
    return CauseFound(
        "",
        "",
        f"Nothing is broken: rounding costs {cost}; of {tried} parts put back alone, of {len(parts)} that differ, "
        f"{first.name} wins most, {first.share or 0:.0%} of it{_meets(first, spikes)}.",
        f"To lose less leave {', '.join(part.name for part in ranked[:2])} in more bits",
    )
