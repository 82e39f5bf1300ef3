"""The noise floor of a small effect: what its null edit does, beside it and taken off."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from studfinder.edits import null_streams, stream_of
from studfinder.edits.apply import GivenEdits
from studfinder.errors import StudfinderError
from studfinder.measures.effects import effects_of
from studfinder.models import LM
from studfinder.records import Interval


@dataclass(frozen=True, kw_only=True)
class NetEffect:
    """KL(clean || edited) in nats per token, and how much of it is more than noise.

    Attributes:
        kl: as measured; an interval over windows.
        null: that of the null edit, mean over its draws; over windows and draws.
        net: kl less null; over windows and draws. Below 0 where an edit does less than noise.
    """

    kl: Interval
    null: Interval
    net: Interval


def net_effect(
    lm: LM, encoded: Sequence[Sequence[int]], edits: GivenEdits, *, draws: int = 8, seed: int = 0
) -> NetEffect:
    """Measure what edits of weights do beyond what any change of the same stored numbers does (see `edits.null`).

    Args:
        encoded: windows of token ids; each is scored on all tokens but its first.
        edits: as `edited` takes them.
        draws: of the null edit.
        seed: of the first draw.

    Raises:
        NotApplicable: an edit of activations.
        StudfinderError: no draws; and as `effects_of`.
    """
    if draws < 1:
        raise StudfinderError(f"{draws} draws of the null edit", expected="at least one")
    effects = effects_of(lm, encoded, [stream_of(lm, edits), *null_streams(lm, edits, draws, seed)])
    nulls = range(1, draws + 1)
    return NetEffect(
        kl=effects.kl_interval(0), null=effects.null_interval(nulls), net=effects.null_interval(nulls, of=0)
    )
