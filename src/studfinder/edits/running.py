"""Site edits at work inside a forward pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

import torch

from studfinder.edits.change import new_entries
from studfinder.edits.choose import Statistics, chosen_dims, chosen_entries
from studfinder.edits.edit import SiteEdit
from studfinder.edits.offloaded import RecomputedRows
from studfinder.edits.selections import AboveLambda, Coordinates, Ranked, check_selection
from studfinder.edits.values import CleanOutput, Deviation, Mean, Noise, Recorded
from studfinder.errors import StudfinderError
from studfinder.models import LM, matrix, rotary_of
from studfinder.sites import ModelCall, Site, Tap, tapped


class SiteEdits:
    """The site edits of one `edited` block: what to replace where, and whether every edit did something."""

    def __init__(self, lm: LM, edits: Sequence[SiteEdit], recomputed: Sequence[RecomputedRows] = ()) -> None:
        self.call: ModelCall | None = None
        self._calls = 0
        self._recomputed = recomputed
        self._running = [_Running(lm, edit) for edit in edits]
        self._lm = lm

    def replacing(self) -> AbstractContextManager[Tap]:
        """Replace while the context lasts."""
        return tapped(self._lm, read={ModelCall: [self._begin]}, replace=self._replacements())

    def check_done(self) -> None:
        """Raise StudfinderError if the model ran and an edit changed nothing in any call."""
        done = {running.purpose for running in self._running if running.touched}
        for running in self._running:
            if self._calls and running.purpose not in done:
                raise StudfinderError(
                    f"the edit of {running.edit.site} ({running.edit.where}, {running.edit.when}) selected nothing in "
                    f"{self._calls} call{'s' * (self._calls > 1)} of the model",
                    do="Check its positions or its threshold, and whether there was a call of several tokens",
                )

    def _begin(self, call: ModelCall) -> None:
        self.call = call
        self._calls += 1

    def _replacements(self) -> dict[Site, Callable[[torch.Tensor], torch.Tensor]]:
        by_site: dict[Site, list[Callable[[torch.Tensor, ModelCall], torch.Tensor]]] = {}
        steps: list[RecomputedRows | _Running] = [*self._recomputed, *self._running]
        for step in steps:  # edits of weights come before those of what they give
            by_site.setdefault(step.site, []).append(step)
        for step in steps:
            if isinstance(step, _Running) and not isinstance(step.edit.value, CleanOutput):
                continue
            # After every edit of the input: what the matrix really gets.
            source = Site("down_proj.input", step.site.layer, step.site.writer)
            by_site.setdefault(source, []).append(step.remember_input)
        return {site: self._in_turn(functions) for site, functions in by_site.items()}

    def _in_turn(
        self, functions: Sequence[Callable[[torch.Tensor, ModelCall], torch.Tensor]]
    ) -> Callable[[torch.Tensor], torch.Tensor]:
        def replace(tensor: torch.Tensor) -> torch.Tensor:
            if self.call is None:
                raise StudfinderError(
                    "a part of the model ran by itself, so an edit cannot tell its tokens from padding",
                    do="Call lm.model itself",
                )
            for function in functions:
                tensor = function(tensor, self.call)
            return tensor

        return replace


class _Running:
    """One site edit, and what it has to remember from one call to the next."""

    def __init__(self, lm: LM, edit: SiteEdit) -> None:
        self.lm, self.edit, self.site = lm, edit, Site.parse(edit.site)
        self.touched = False
        self.site.check(lm)
        self._rotary = rotary_of(lm, self.site.layer) if self._attends and self.site.layer is not None else None
        self._check()
        self._recorded = edit.value.tensor() if isinstance(edit.value, Recorded) else None
        self._prefill: tuple[torch.Tensor | None, Statistics] | None = None
        self._input: torch.Tensor | None = None

    @property
    def purpose(self) -> object:
        """Edits of one purpose need only do something together: not every layer holds a value above lambda."""
        return (self.edit.where, self.edit.value) if isinstance(self.edit.where, AboveLambda) else self.edit

    @property
    def _attends(self) -> bool:
        return self.site.kind.startswith(("query", "key", "value"))

    def __call__(self, tensor: torch.Tensor, call: ModelCall) -> torch.Tensor:
        step = call.tokens == 1
        if step and self.edit.when == "prefill":
            return tensor
        x_BHTD = self._rows(tensor, call)
        real_BT, position_BT = call.real_BT.to(x_BHTD.device), call.position_BT.to(x_BHTD.device)
        looked_at = self._looked_at(x_BHTD, call)
        if looked_at is None:
            return tensor
        dims_BHD, statistics = self._statistics(looked_at, real_BT, call)
        chosen = chosen_entries(self.edit.where, looked_at, real_BT, position_BT, dims_BHD)
        self._check_positions(call, position_BT, real_BT)
        if not bool(chosen.any()):
            return tensor
        self.touched = True
        new = (
            looked_at
            if isinstance(self.edit.value, Recorded | CleanOutput)
            else new_entries(
                self.edit.value, self.edit.where, x_BHTD, chosen, real_BT, position_BT, statistics, self.edit.site
            )
        )
        return self._written(tensor, torch.where(chosen, new, x_BHTD), call)

    def remember_input(self, tensor: torch.Tensor, _call: ModelCall) -> torch.Tensor:
        """Keep the matrix's input for its output's sake."""
        self._input = tensor
        return tensor

    # --- which numbers -----------------------------------------------------------------------------------------------

    def _rows(self, tensor: torch.Tensor, call: ModelCall) -> torch.Tensor:
        """The call's new tokens as a view of shape (B,H,T,D)."""
        if tensor.dim() == 4:
            return tensor[:, :, -call.tokens :]
        if tensor.dim() == 2:  # flat: one row a token, in order
            if tensor.shape[0] != call.batch * call.tokens:
                raise StudfinderError(f"{self.edit.site} does not hold one row for each token")
            tensor = tensor.unflatten(0, (call.batch, call.tokens))
        return tensor[:, None]

    def _looked_at(self, x_BHTD: torch.Tensor, call: ModelCall) -> torch.Tensor | None:
        """The tensor in which the selection looks: the site's own, or what stands in its place."""
        if self._recorded is not None:
            return self._recorded_rows(x_BHTD, call)
        if not isinstance(self.edit.value, CleanOutput):
            return x_BHTD
        assert self._input is not None
        clean = x_BHTD.clone()
        rows = clean[..., self.edit.value.row]
        rows.copy_(clean_row(self.lm, self.site, self.edit.value, self._input).reshape(rows.shape))
        return clean

    def _recorded_rows(self, x_BHTD: torch.Tensor, call: ModelCall) -> torch.Tensor | None:
        recorded = self._recorded
        assert recorded is not None
        if call.past:
            return None  # the record ends with the prompt
        # A matrix that sees flat rows shows (B*T, F); a reader of one that does not may show them flat all the same.
        flat = (call.batch * call.tokens, x_BHTD.shape[-1])
        if tuple(recorded.shape) in (tuple(x_BHTD.shape), flat, (call.batch, call.tokens, flat[1])):
            return recorded.reshape(x_BHTD.shape).to(x_BHTD)
        raise StudfinderError(
            f"{self.edit.site} was recorded with shape {tuple(recorded.shape)}, and this pass has "
            f"{call.batch} x {call.tokens} tokens",
            expected="the same input as when it was recorded",
        )

    def _statistics(
        self, x_BHTD: torch.Tensor, real_BT: torch.Tensor, call: ModelCall
    ) -> tuple[torch.Tensor | None, Statistics | None]:
        """The dims that a ranking selection takes, and the statistics: this call's, or in a step the last prefill's."""
        ranked = isinstance(self.edit.where, Ranked)
        if not ranked and not isinstance(self.edit.value, Mean | Deviation | Noise):
            return None, None
        if call.tokens == 1 and call.past:
            if self._prefill is None or len(self._prefill[1].tokens_B) != call.batch:
                raise StudfinderError(
                    f"the edit of {self.edit.site} has seen no prompt to take its statistics from",
                    do='Run the prompt inside the edit too, or use when="prefill"',
                )
            return self._prefill
        statistics = Statistics.of(x_BHTD.detach(), real_BT)
        dims_BHD = None
        if isinstance(self.edit.where, Ranked):
            dims_BHD = chosen_dims(self.edit.where, statistics.norm_BHD, self._rotary, self.edit.site)
        self._prefill = dims_BHD, statistics
        return self._prefill

    # --- where they go -----------------------------------------------------------------------------------------------

    def _written(self, tensor: torch.Tensor, new_BHTD: torch.Tensor, call: ModelCall) -> torch.Tensor:
        cached = self.site.kind in ("key", "value") and self._at_interface and call.caching
        if cached:
            self._check_cache(tensor, call)
        target = tensor if cached and self.edit.cache == "touched" else tensor.clone()
        self._rows(target, call).copy_(new_BHTD)
        return target

    @property
    def _at_interface(self) -> bool:
        mixer = self.lm.anatomy.layers[self.site.layer or 0].mixer
        return mixer is not None and mixer.interface

    # --- refusals ----------------------------------------------------------------------------------------------------

    def _check(self) -> None:
        edit, anatomy = self.edit, self.lm.anatomy
        heads, dims = 1, anatomy.hidden
        if self._attends:
            mixer = anatomy.layers[self.site.layer or 0].mixer
            assert mixer is not None
            heads = mixer.heads if self.site.kind.startswith("query") else mixer.kv_heads
            dims = mixer.value_dim if self.site.kind == "value" else mixer.head_dim
            if self.site.kind.endswith("pre_rope") and mixer.interface and self._rotary is not None:
                dims = min(dims, 2 * len(self._rotary.inv_freq))  # the others go past RoPE
        elif self.site.kind == "down_proj.input":
            dims = anatomy.intermediate
        check_selection(edit.where, heads, dims, edit.site)
        if edit.cache == "clean" and (self.site.kind not in ("key", "value") or not self._at_interface):
            raise StudfinderError(
                f'cache="clean" for {edit.site}, which lies before the cache', expected='cache="touched"'
            )
        if self.site.kind.startswith("down_proj"):
            self._check_tokens()
        if isinstance(edit.value, CleanOutput) and self.site.kind != "down_proj.output":
            raise StudfinderError(f"the clean output of {edit.site}", expected="a site down_proj.output[l]")

    def _check_tokens(self) -> None:
        ref = self.lm.anatomy.layers[self.site.layer or 0].writers[self.site.writer]
        if ref.routed:
            raise StudfinderError(
                f"{self.edit.site} belongs to an expert, which sees only the tokens that were sent to it",
                do="Edit the expert's weights, or the residual stream",
            )

    def _check_cache(self, tensor: torch.Tensor, call: ModelCall) -> None:
        if tensor.shape[2] > call.past + call.tokens:
            raise StudfinderError("a cache of fixed size", expected="a cache that grows (DynamicCache)")
        layers = getattr(call.cache, "layers", ())
        if self.edit.cache == "clean" or self.site.layer is None or self.site.layer >= len(layers):
            return
        held = getattr(layers[self.site.layer], self.site.kind + "s", None)
        if (
            isinstance(held, torch.Tensor)
            and held.numel()
            and held.untyped_storage().data_ptr() != tensor.untyped_storage().data_ptr()
        ):
            raise StudfinderError(
                f"the cache of {self.edit.site} hands out copies, so it cannot be touched", expected='cache="clean"'
            )

    def _check_positions(self, call: ModelCall, position_BT: torch.Tensor, real_BT: torch.Tensor) -> None:
        where = self.edit.where
        if not isinstance(where, Coordinates) or where.positions is None or call.caching or call.past:
            return  # with a cache a position may come in another call; `check_done` sees to that
        shortest = int(position_BT.masked_fill(~real_BT, -1).amax(dim=1).min())
        if max(where.positions) > shortest:
            raise StudfinderError(
                f"position {max(where.positions)} of {self.edit.site} is not in a text of {shortest + 1} tokens"
            )


def clean_row(lm: LM, site: Site, value: CleanOutput, inputs: torch.Tensor) -> torch.Tensor:
    """One output channel of a matrix for the given inputs, with the named weights as they were; shape (..., 1).

    Recomputed, not corrected: taking x_k w_jk off a bf16 output loses what the largest term has rounded away.
    """
    ref = lm.anatomy.layers[site.layer or 0].writers[site.writer]
    with matrix(lm, ref) as weight_CF:
        if weight_CF is None:
            raise StudfinderError(f"{ref.parameter} is quantised", do="Edit the unquantised model")
        row_F = weight_CF[value.row].detach().clone()
    row_F[list(value.cols)] = torch.tensor(value.weights, dtype=row_F.dtype, device=row_F.device)
    bias = getattr(lm.model.get_submodule(ref.module), "bias", None)
    with torch.no_grad():
        return torch.nn.functional.linear(
            inputs, row_F[None].to(inputs.device), None if bias is None else bias[value.row : value.row + 1]
        )
