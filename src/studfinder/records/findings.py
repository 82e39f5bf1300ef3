"""What a scan found: the schema of `findings.json`.

Version 2 holds the token ids of its prompts, so that everything in it can be found again in its model; version 1, which
has none, is still read.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from studfinder.errors import StudfinderError
from studfinder.records.numbers import CensusCard, Effect, OtherNumber, Place, SuperWeight, Verdict
from studfinder.records.presented import Presented, presented
from studfinder.records.public import OneLine
from studfinder.records.run import ModelCard, PromptCard, RunCard
from studfinder.visible import visible

if TYPE_CHECKING:
    import pandas

TokenClass = Literal["first", "delimiter", "low-semantic", "other"]
QKV: tuple[Literal["query", "key", "value"], ...] = ("query", "key", "value")


@dataclass(frozen=True, kw_only=True)
class Proof(OneLine):
    """How the candidates were tested.

    Attributes:
        text, text_hash, windows, tokens: the proof text (always our own), the hash of its token ids as they were cut
            into windows and ordered, and its size.
        looks: how many windows had been seen each time that candidates and controls could be left; the last are all.
            Empty where that was done otherwise.
        floor: KL in nats per token below which nothing matters.
        level: confidence level of each candidate's interval, corrected for the number tested.
        tested: how many candidates were tested; the rest keep the verdict "candidate".
        skipped: candidates beyond the cap, untested.
        joint: all tested candidates set to zero at once.
        clean_perplexity: of the untouched model on the proof text.
    """

    text: str
    text_hash: str
    windows: int
    tokens: int
    floor: float
    level: float
    tested: int
    skipped: int
    joint: Effect | None
    clean_perplexity: float
    looks: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Continuation:
    """A greedy continuation of the same prompt. `label` says by which model: "clean", "without <weight>", "without a
    random weight of the same size: <weight>"."""

    label: str
    text: str


@dataclass(frozen=True, kw_only=True)
class PublishedWeight:
    """A super weight that a paper or its code has published for a model that looks like this one.

    Attributes:
        model: the model it was published for.
        layer, row, col: where.
        source: where it is published, with misprints named.
        match: whether name ("name") or only the shape ("shape") of this model fits.
        rank: its place among this scan's candidates, from 1; None if it is no candidate here.
        verdict: what the proof said of it here; None if it was not tested.
    """

    model: str
    layer: int
    row: int
    col: int
    source: str
    match: Literal["name", "shape"]
    rank: int | None
    verdict: Verdict | None


@dataclass(frozen=True, kw_only=True)
class MassiveActivation(OneLine):
    """A scalar of the residual stream with |a| > 100 and |a| > 1000 x the layer's median (Sun et al. 2024)."""

    layer: Place
    dim: Place
    prompt: Place
    position: Place
    token: str
    token_class: TokenClass
    value: float
    median: float
    ratio: float


@dataclass(frozen=True, kw_only=True)
class MassiveValue(OneLine):
    """An entry of M[h,d] = sqrt(sum over tokens of q^2) above lambda times its head's mean (Jin et al. 2025)."""

    layer: Place
    tensor: Literal["query", "key", "value"]
    head: Place
    dim: Place
    norm: float
    ratio: float


@dataclass(frozen=True, kw_only=True)
class AttentionSink(OneLine):
    """A head whose mean attention to the first token exceeds the threshold (Gu et al. 2024)."""

    layer: Place
    head: Place
    strength: float


LISTS: dict[str, type] = {
    "super_weights": SuperWeight,
    "other_numbers": OtherNumber,
    "massive_activations": MassiveActivation,
    "massive_values": MassiveValue,
    "attention_sinks": AttentionSink,
}
"""The lists of findings, and what their entries are."""


@dataclass(frozen=True, kw_only=True)
class Thresholds:
    """When a number stands out. The defaults are the papers', or calibrated as the detectors' files say.

    Attributes:
        activation, activation_ratio: a massive activation exceeds both |a| and |a| / median (Sun et al. 2024).
        lam: a massive value exceeds this times its head's mean (Jin et al. 2025).
        score, share: a super-weight candidate's |x w| / median |y|, and its share of y.
        sink, sink_tokens: mean attention to the first token, over that many tokens (Gu et al. 2024).

    Raises:
        StudfinderError: a threshold that is not above 0, or not finite.
    """

    activation: float = 100.0
    activation_ratio: float = 1000.0
    lam: float = 5.0
    score: float = 50.0
    share: float = 0.5
    sink: float = 0.3
    sink_tokens: int = 64

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            most = 1.0 if name in ("share", "sink") else 1e9  # a share, or far above all that a model can show
            if not 0 < value <= most:
                raise StudfinderError(f"threshold {name}={value}", expected=f"a number above 0, at most {most:,g}")


@dataclass(frozen=True, kw_only=True)
class MassiveValueSummary:
    """Massive values of one tensor over all layers.

    Attributes:
        tensor, stage: which, and whether it was read after RoPE.
        entries: massive entries in all layers.
        layers_with, layers: layers that hold at least one, of how many with attention.
        overlap: median over layers of the mean pairwise overlap of the heads' top dims; None for a single head.
        agreeing_layers: layers where that overlap beats its permutation null at p < 0.05.
        concentration: median over layers and heads of the concentration index (0 even, 1 one dim).
        concentration_null: what one vector of random direction reaches at its 99th percentile.
        slow_share, slow_base: share of massive entries in dims that never complete a turn in training, and the share
            of such dims among all; None without RoPE or without entries.
    """

    tensor: str
    stage: str
    entries: int
    layers_with: int
    layers: int
    overlap: float | None
    agreeing_layers: int
    concentration: float
    concentration_null: float
    slow_share: float | None
    slow_base: float | None


@dataclass(frozen=True, kw_only=True)
class Summary(OneLine):
    """What was searched, by which thresholds, and what came nearest.

    Attributes:
        thresholds: every threshold by name.
        enters, leaves: first layer with a massive activation, and the first after the last; None where there is none.
        nearest_super_weight, nearest_massive_activation, nearest_massive_value: the nearest miss, found or not.
        massive_values: by tensor.
        sink_heads: heads looked at; 0 where attention could not be read.
        unreadable: matrices that are quantised, so that no term could be formed.
        bidirectional: why the model is not causal; empty if it is.
        experts: down projections of experts that were searched; `unseen_experts`: those that no prompt reached.
        without_attention: layers whose tokens meet without a softmax, or in one whose Q and K cannot be told.
        pictured: the tokens of `residual.picture` in profile.safetensors, as text.
    """

    thresholds: dict[str, float] = field(default_factory=dict)
    enters: int | None = None
    leaves: int | None = None
    nearest_super_weight: SuperWeight | None = None
    nearest_massive_activation: MassiveActivation | None = None
    nearest_massive_value: MassiveValue | None = None
    massive_values: tuple[MassiveValueSummary, ...] = ()
    sink_heads: int = 0
    unreadable: tuple[str, ...] = ()
    bidirectional: str = ""
    experts: int = 0
    unseen_experts: tuple[str, ...] = ()
    without_attention: tuple[int, ...] = ()
    pictured: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Findings(Presented):
    """Everything a scan found.

    `nonfinite` names every site where inf or NaN appeared. `others` holds, by name, the records of detectors that have
    no list of their own here, as plain data.
    """

    EARLIER: ClassVar = (1,)

    format: Literal["studfinder.findings"] = "studfinder.findings"
    version: Literal[2] = 2
    model: ModelCard
    run: RunCard
    prompts: PromptCard
    summary: Summary = field(default_factory=Summary)
    nonfinite: tuple[str, ...] = ()
    super_weights: tuple[SuperWeight, ...] = ()
    other_numbers: tuple[OtherNumber, ...] = ()
    massive_activations: tuple[MassiveActivation, ...] = ()
    massive_values: tuple[MassiveValue, ...] = ()
    attention_sinks: tuple[AttentionSink, ...] = ()
    others: dict[str, tuple[dict[str, Any], ...]] = field(default_factory=dict)
    proof: Proof | None = None
    census: CensusCard | None = None
    continuation_prompt: str = ""
    continuations: tuple[Continuation, ...] = ()
    published: tuple[PublishedWeight, ...] = ()

    def __post_init__(self) -> None:
        seen: list[SuperWeight | MassiveActivation] = [*self.super_weights, *self.massive_activations]
        tokens = dict(enumerate(self.prompts.tokens))
        for entry in seen:
            if not 0 <= entry.position < tokens.get(entry.prompt, 0):
                raise ValueError(f"there is no position {entry.position} in prompt {entry.prompt}")

    def ids_of(self, entry: SuperWeight | MassiveActivation) -> tuple[int, ...]:
        """Token ids of the prompt that an entry was seen on. Raises StudfinderError if they are not known."""
        if not self.prompts.token_ids:
            raise StudfinderError(
                f"the findings of {self.model.id} do not know their prompts' token ids (version 1 did not hold them)",
                do="Scan it again: studfinder scan MODEL --overwrite",
            )
        return self.prompts.token_ids[entry.prompt]

    @property
    def proven(self) -> tuple[SuperWeight, ...]:
        """The super weights whose removal was shown to matter."""
        return tuple(w for w in self.super_weights if w.verdict in ("proven", "proven-jointly"))

    @property
    def proven_numbers(self) -> tuple[SuperWeight | OtherNumber, ...]:
        """All numbers whose removal was shown to matter: super weights, then others."""
        return (*self.proven, *(n for n in self.other_numbers if n.verdict in ("proven", "proven-jointly")))

    @property
    def strongest(self) -> tuple[SuperWeight, ...]:
        """Those proven, the one with the largest effect first."""
        return tuple(sorted(self.proven, key=lambda weight: -weight.effect.kl.value if weight.effect else 0.0))

    def to_frame(self, of: str = "super_weights") -> pandas.DataFrame:
        """One of the lists, or of `others`, as a pandas DataFrame, a row an entry; an effect becomes columns `kl`,
        `kl_low` and so on. Raises StudfinderError if pandas is not installed, or for another name."""
        return presented("frame", "frame_of", self, of)

    def __repr__(self) -> str:
        lists: dict[str, tuple] = {"massive activations": self.massive_activations}
        lists |= {"massive values": self.massive_values, "sinks": self.attention_sinks, **self.others}
        counts = "".join(f", {len(of)} {visible(name)}" for name, of in lists.items())
        found = f"{len(self.super_weights)} super-weight candidates ({len(self.proven)} proven)"
        if self.other_numbers:
            proven = len(self.proven_numbers) - len(self.proven)
            found += f", {len(self.other_numbers)} other numbers ({proven} proven)"
        return f"Findings({self.model.id!r}: {found}{counts})"
