"""What of the findings is still there in a changed model: massive values of Q and K, super activations."""

from __future__ import annotations

import numpy as np
import torch

from studfinder.experiments.norms import norm_ratios, read_maps
from studfinder.measures import Scores, scored
from studfinder.models import LM
from studfinder.records import Findings
from studfinder.sites import capture

QUERY, KEY, SPIKE = "massive entries of Q kept", "massive entries of K kept", "super activation, error"


class Preserved:
    """Scores of a changed model against the original.

    Massive values: by layer the share of the original's massive entries that are massive still. Super activations: what
    each super weight writes into the residual stream, |changed - original| / |original|, at the prompt and position
    where the scan saw it; with all that the layers before it lost, and unmoved by factors folded into matrices.
    """

    name = "what is preserved"

    def __init__(self, findings: Findings, prompts: int, lam: float) -> None:
        self.findings, self.prompts, self.lam = findings, prompts, lam
        self._massive: dict[str, np.ndarray] = {}
        self._spikes: np.ndarray | None = None

    def see(self, lm: LM) -> None:
        """Read the original, before anything is changed; once."""
        if not self._massive:
            self._massive, self._spikes = self._maps(lm), spikes(lm, self.findings)

    def scores(self, lm: LM) -> dict[str, Scores]:
        """The model as it stands now, by measure."""
        found = {}
        massive = self._maps(lm)
        for tensor, label in (("query", QUERY), ("key", KEY)):
            both = zip(self._massive[tensor], massive[tensor], strict=True)
            shares = [float((was & now).sum() / was.sum()) for was, now in both if was.any()]
            if shares:
                found[label] = scored(label, shares, text=f"massive values: {self.prompts} prompts, layers resampled")
        if self._spikes is not None and len(self._spikes):
            off = np.abs(spikes(lm, self.findings) - self._spikes) / np.abs(self._spikes)
            found[SPIKE] = scored(SPIKE, off.tolist(), text="super activations: where seen", better="lower")
        return found

    def _maps(self, lm: LM) -> dict[str, np.ndarray]:
        maps = read_maps(lm, self.prompts)
        return {tensor: norm_ratios(maps.norm_LHD(tensor)) > self.lam for tensor in ("query", "key")}


def spikes(lm: LM, findings: Findings) -> np.ndarray:
    """The residual stream after each proven super weight's block, in its row, at the prompt and position where the scan
    saw it, shape (weights,)."""
    values = []
    for weight in findings.proven:
        site = f"residual[{weight.layer}]"
        hidden_BTC = capture(lm, torch.tensor([findings.ids_of(weight)]), [site])[site]
        values.append(float(hidden_BTC[0, weight.position, weight.row]))
    return np.array(values)
