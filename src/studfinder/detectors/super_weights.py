"""Super-weight candidates (Yu et al. 2024, arXiv 2411.07191, section 3), ranked in one pass without editing.

At a token where the output of down_proj spikes at channel j, y_j = sum_k x_k w_jk. A candidate is a weight w_jk whose
single term x_k w_jk carries most of an outlying y_j, or the fewest weights (at most three) that do so together. That
covers both geometries: several neurons into one channel, and one neuron that fans out into several. The paper's own
rule (the input spikes at k and the output at j) is implied; what the terms add is that a large output made of many
small terms is not mistaken for one weight's doing.

Outlying is relative to the layer: score = |x_k w_jk| / median |y|. In models whose weights are permuted within each
tensor the largest score over all layers was 28 (docs/results/null.md, made by
benchmarks/null_super_weights.py); the threshold lies well above that.

For every output channel the token with its largest output is remembered, once among first tokens and once among the
others: what happens at a first token is a regime of its own and would hide the rest.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

import torch

from studfinder.detectors.detector import Detector, by_place
from studfinder.models import LM, CheckpointFiles, MatrixRef, matrix
from studfinder.records import ModelCard, SuperWeight, Thresholds
from studfinder.sites import WriterCall
from studfinder.stats import INF, AbsHistogram, magnitude_bits, to_bits
from studfinder.texts import Batch, token_text

_ROWS = 16
"""Output channels remembered for each matrix and token class."""
WORTH = 25.0
"""Outputs below this many medians are not looked into: they are far from a candidate's score."""
TERMS = 3
"""Most weights that count as carrying an output together."""


@dataclass(frozen=True)
class Spike:
    """A largest |x| or |y| of FFN matrices: value, token and channel."""

    value: float = 0.0
    prompt: int = -1
    position: int = -1
    channel: int = -1
    bits: int = 0

    @property
    def order(self) -> tuple[int, int, int]:
        return -self.bits, self.prompt, self.position


@dataclass(frozen=True)
class _Peak(Spike):
    """The largest output of one channel, with its largest terms."""

    cols: tuple[int, ...] = ()
    terms: tuple[float, ...] = ()
    weights: tuple[float, ...] = ()
    inputs: tuple[float, ...] = ()


@dataclass
class _Best:
    """For one matrix and token class: the best bits of each channel that can still matter, and what a channel must
    exceed to matter: its own best, the sixteenth largest of all, and `least`."""

    bits_C: torch.Tensor
    bar_C: torch.Tensor

    least: int

    @classmethod
    def of(cls, bits_C: torch.Tensor, least: int) -> _Best:
        floor = int(bits_C.topk(min(_ROWS, len(bits_C))).values[-1])
        return cls(bits_C, bits_C.clamp_min(max(least, floor - 1)), least)


_Place = tuple[int, int, int, int]
"""(writer, call, 0 for first tokens and 1 for others, row)"""


class SuperWeights(Detector):
    """Per layer: the largest outputs with the terms that carry them, the median output, and the spike traces."""

    def __init__(self, lm: LM, at: Thresholds | None = None) -> None:
        super().__init__(lm, at)
        depth = len(lm.anatomy.layers)
        self.peaks: list[dict[_Place, _Peak]] = [{} for _ in range(depth)]
        self.magnitudes = [AbsHistogram() for _ in range(depth)]
        self.input_spikes = [Spike() for _ in range(depth)]
        self.overflowed: set[str] = set()
        self.unreadable: set[str] = set()
        self.reached: set[tuple[int, int]] = set()  # layer and writer
        self._best: dict[tuple[int, int, int, int], _Best] = {}  # by layer, writer, call and token class
        self._repeated: set[str] = set()  # parameters of modules that a forward pass uses more than once

    @property
    def readers(self) -> Mapping[type, Callable[[list[Any]], None]]:
        return {WriterCall: self._read}

    def _read(self, seen: list[tuple[Batch, WriterCall]]) -> None:
        for group in by_place(seen, "layer", "writer", "call"):
            event = group[0][1]
            real = [one for one in map(_real, *zip(*group, strict=True)) if one[1].numel()]
            if not real:
                continue
            self.reached.add((event.layer, event.writer))
            if event.call > 1:
                self._repeated.add(event.ref.parameter)
            inputs, outputs, places = zip(*real, strict=True)
            y_NC, place_N2 = torch.cat(outputs), torch.cat(places)
            y_bits_NC = magnitude_bits(y_NC)
            # The median is only a scale: some forty tokens of each call give it as well as all would.
            some = [bits[:: max(1, len(bits) // 40)] for bits in y_bits_NC.split(list(map(len, outputs)))]
            self._trace(event.layer, inputs, place_N2)
            first_N = place_N2[:, 1] == 0
            if int(y_bits_NC.max()) >= INF:
                self.overflowed.add(f"down_proj.output[{event.layer}]")
                y_bits_NC.masked_fill_(y_bits_NC >= INF, 0)
            self.magnitudes[event.layer].add_bits(torch.cat(some))
            firsts = first_N.nonzero()[:, 0].to(y_NC.device)
            first_bits_KC = y_bits_NC[firsts]
            y_bits_NC[firsts] = 0
            if len(firsts):
                self._peaks(event, 0, firsts, inputs, y_NC, first_bits_KC, place_N2)
            if len(firsts) < len(place_N2):
                self._peaks(event, 1, None, inputs, y_NC, y_bits_NC, place_N2)

    def _trace(self, layer: int, inputs: Sequence[torch.Tensor], place_N2: torch.Tensor) -> None:
        """Remember the largest input."""
        ends = torch.stack([end for x_NF in inputs for end in x_NF.aminmax()])
        peaks = magnitude_bits(ends).view(-1, 2).amax(dim=1).tolist()
        if max(peaks) >= INF:
            self.overflowed.add(f"down_proj.input[{layer}]")
            finite = [bits.where(bits < INF, 0) for bits in map(magnitude_bits, inputs)]
            peaks = [int(bits.max()) for bits in finite]
        which = peaks.index(max(peaks))
        bits_NF = magnitude_bits(inputs[which])
        bits_NF = bits_NF.where(bits_NF < INF, 0)
        row = int(bits_NF.amax(dim=1).argmax())
        channel = int(bits_NF[row].argmax())
        prompt, position = place_N2[sum(map(len, inputs[:which])) + row].tolist()
        found = Spike(float(inputs[which][row, channel]), prompt, position, channel, peaks[which])
        self.input_spikes[layer] = min(self.input_spikes[layer], found, key=lambda spike: spike.order)

    @property
    def output_spikes(self) -> list[Spike]:
        """The largest output of each layer."""
        largest = [min(peaks.items(), key=lambda item: (item[1].order, item[0]), default=None) for peaks in self.peaks]
        return [Spike() if found is None else found[1] for found in largest]

    def _peaks(
        self,
        event: WriterCall,
        kind: int,
        tokens: torch.Tensor | None,
        inputs: Sequence[torch.Tensor],
        y_NC: torch.Tensor,
        bits_KC: torch.Tensor,
        place_N2: torch.Tensor,
    ) -> None:
        """Remember the channels whose largest output, among some tokens, beats what was seen before."""
        here = bits_KC.amax(dim=0)
        place = (event.layer, event.writer, event.call, kind)
        before = self._best.get(place)
        if before is None:
            least = to_bits(WORTH * self.magnitudes[event.layer].median)
            floor = int(here.topk(min(_ROWS, len(here))).values[-1])
            before = _Best(torch.zeros_like(here), torch.full_like(here, max(least, floor - 1)), least)
            self._best[place] = before
        rows = (here > before.bar_C).nonzero()[:, 0]
        if not len(rows):
            return
        self._best[place] = _Best.of(before.bits_C.index_copy(0, rows, here[rows]), before.least)
        token = bits_KC[:, rows].argmax(dim=0)
        token = token if tokens is None else tokens[token]
        with matrix(self.lm, event.ref) as weight_CF:
            if weight_CF is None:
                self.unreadable.add(event.ref.parameter)
                return
            inputs_SF = _rows(inputs, token.tolist()).float()
            weights_SF = weight_CF[rows.to(weight_CF.device)].to(inputs_SF.device).float()
            terms_SF = inputs_SF * weights_SF
            cols = terms_SF.abs().topk(min(TERMS, terms_SF.shape[1]), dim=1).indices
            largest = [tensor.gather(1, cols).tolist() for tensor in (terms_SF, weights_SF, inputs_SF)]
        values, where = y_NC[token, rows].float().tolist(), place_N2[token.cpu()].tolist()
        columns = zip(values, where, rows.tolist(), here[rows].tolist(), cols.tolist(), *largest, strict=True)
        for value, (prompt, position), row, bits, *terms in columns:
            peak = _Peak(value, prompt, position, row, bits, *map(tuple, terms))
            self._offer(event.layer, (event.writer, event.call, kind, row), peak)

    def _offer(self, layer: int, place: _Place, peak: _Peak) -> None:
        held = self.peaks[layer].get(place)
        if held is None or peak.order < held.order:
            self.peaks[layer][place] = peak

    def merge(self, other: SuperWeights) -> None:
        super().merge(other)
        for layer, peaks in enumerate(other.peaks):
            for place, peak in peaks.items():
                self._offer(layer, place, peak)
            self.magnitudes[layer].merge(other.magnitudes[layer])
            spikes = (self.input_spikes[layer], other.input_spikes[layer])
            self.input_spikes[layer] = min(spikes, key=lambda spike: spike.order)
        for place, best in other._best.items():
            mine = self._best.get(place)
            self._best[place] = best if mine is None else _Best.of(torch.maximum(mine.bits_C, best.bits_C), mine.least)
        self.reached |= other.reached
        self._repeated |= other._repeated
        self.overflowed |= other.overflowed
        self.unreadable |= other.unreadable

    def ranked(self) -> list[tuple[SuperWeight, float]]:
        """Every remembered weight, largest score first, each with its nearness: above 1 it is a candidate."""
        found: dict[tuple[int, ...], tuple[SuperWeight, float]] = {}
        for layer, peaks in enumerate(self.peaks):
            for (writer, call, kind, row), peak in peaks.items():
                # Only channels among the final best, so that the result does not depend on the order of prompts.
                if peak.bits <= int(self._best[layer, writer, call, kind].bar_C.min()):
                    continue
                for which, carried in enumerate(self.carried(peak)):
                    entry = self.entry(layer, (writer, call, kind, row), which, peak)
                    near = min(entry.score / self.at.score, carried / self.at.share)
                    key = (layer, writer, call, row, entry.col)
                    if key not in found or (near, entry.score) > (found[key][1], found[key][0].score):
                        found[key] = (entry, near)
        return sorted(found.values(), key=lambda pair: (-pair[0].score, pair[0].layer, pair[0].row, pair[0].col))

    def located(self, weights: Iterable[SuperWeight]) -> tuple[SuperWeight, ...]:
        """The weights with their places in the checkpoint files. The model must be as it was loaded."""
        files = CheckpointFiles(self.lm)
        found = []
        for weight in weights:
            refs = self.lm.anatomy.layers[weight.layer].writers
            ref = next(ref for ref in refs if (ref.parameter, ref.expert) == (weight.parameter, weight.expert))
            at = files.place(ref, weight.row, weight.col)
            found.append(
                replace(weight, checkpoint_tensor=at.tensor, checkpoint_index=at.index, checkpoint_note=at.note)
            )
        return tuple(found)

    def found(self) -> tuple[SuperWeight, ...]:
        """The candidates, largest score first."""
        return self.located(entry for entry, near in self.ranked() if near >= 1)

    def nearest(self) -> SuperWeight | None:
        """The nearest miss: the weight that is no candidate but has the largest share of both thresholds."""
        misses = [(near, entry) for entry, near in self.ranked() if near < 1]
        return self.located([max(misses, key=lambda pair: pair[0])[1]])[0] if misses else None

    def summary(self, model: ModelCard) -> dict[str, Any]:
        experts = [
            (layer, writer, ref)
            for layer, part in enumerate(self.lm.anatomy.layers)
            for writer, ref in enumerate(part.writers)
            if ref.routed
        ]
        unseen = (expert_name(layer, ref) for layer, writer, ref in experts if (layer, writer) not in self.reached)
        return {
            "nearest_super_weight": self.nearest(),
            "unreadable": tuple(sorted(self.unreadable)),
            "experts": len(experts),
            "unseen_experts": tuple(unseen),
        }

    def profile(self, model: ModelCard) -> dict[str, torch.Tensor]:
        """The traces of the FFN, by layer: `spike.input` and `spike.output` (L,), each with its place as (prompt,
        position, channel) in `spike.input.where`, and `spike.output.median` (L,)."""
        profile = {"spike.output.median": torch.tensor([h.median for h in self.magnitudes])}
        for name, spikes in (("input", self.input_spikes), ("output", self.output_spikes)):
            profile[f"spike.{name}"] = torch.tensor([spike.value for spike in spikes])
            profile[f"spike.{name}.where"] = torch.tensor([(s.prompt, s.position, s.channel) for s in spikes])
        return profile

    def entry(self, layer: int, place: _Place, which: int, peak: _Peak) -> SuperWeight:
        """The weight of a remembered output's `which`-th largest term, as a record."""
        writer, call, _, row = place
        median = self.magnitudes[layer].median
        ref = self.lm.anatomy.layers[layer].writers[writer]
        col, term = peak.cols[which], peak.terms[which]
        return SuperWeight(
            layer=layer,
            parameter=ref.parameter,
            index=ref.index(row, col),
            checkpoint_tensor=None,
            checkpoint_index=None,
            expert=ref.expert,
            row=row,
            col=col,
            value=peak.weights[which],
            input_spike=peak.inputs[which],
            output_spike=peak.value,
            share=term / peak.value,
            score=abs(term) / median if median else float("inf"),
            prompt=peak.prompt,
            position=peak.position,
            token=token_text(self.lm, self.prompts[peak.prompt][peak.position]),
            call=call if ref.parameter in self._repeated else None,
        )

    def nonfinite(self) -> list[str]:
        return sorted(self.overflowed)

    def carried(self, peak: _Peak) -> list[float]:
        """For each of the largest terms: the share of the output that the fewest weights carry which include it.

        Terms are taken from the largest on until they carry most of the output; one that comes after is not needed, and
        one that works against the output ends the list: they carry nothing.
        """
        shares = [term / peak.value for term in peak.terms]
        running, members = 0.0, 0
        for share in shares:
            if running >= self.at.share or share <= 0:
                break
            running, members = running + share, members + 1
        return [running if which < members else 0.0 for which in range(len(shares))]


def _real(batch: Batch, event: WriterCall) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Input, output and (prompt, position) of the real tokens that the matrix saw."""
    x_NF, y_NC = event.input_NF, event.output_NC
    if event.token_N is None:
        return batch.real(x_NF), batch.real(y_NC), batch.places_N2
    flat = event.token_N.cpu()
    if batch.mask_BT is None:
        return x_NF, y_NC, batch.where(flat)
    keep = batch.mask_BT.flatten()[flat]
    on_device = keep.to(x_NF.device)
    return x_NF[on_device], y_NC[on_device], batch.where(flat[keep])


def _rows(parts: Sequence[torch.Tensor], numbers: Sequence[int]) -> torch.Tensor:
    """Some rows of matrices one below the other, which are not put together for so few."""
    ends = list(accumulate(map(len, parts)))
    found = [(bisect_right(ends, number), number) for number in numbers]
    return torch.stack([parts[part][number - ends[part]] for part, number in found])  # counted from the end


def expert_name(layer: int, ref: MatrixRef) -> str:
    """'layers.3 expert 7'; an expert that is a module of its own by the module's name."""
    return f"layers.{layer} {ref.module}" if ref.expert is None else f"layers.{layer} expert {ref.expert}"
