"""The KV cache in few bits: keys and values rounded where attention reads them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch

from studfinder.errors import StudfinderError
from studfinder.models import LM, check_findings
from studfinder.passes import carry
from studfinder.quantizers.grid import grid_of, nearest
from studfinder.quantizers.scheme import Scheme
from studfinder.records import Findings
from studfinder.records.config import Config, option
from studfinder.sites import AttentionCall, BlockOutput, ModelCall, Site, tapped
from studfinder.texts import batches

_SCALE_BITS = 16
_SEEN = (1e-4, 2e-2)
"""By how much of its norm a block's output may change for other reasons than a constant, in 32 and in 16 bits."""


@dataclass(frozen=True, kw_only=True)
class KVCache(Config):
    """How keys and values are stored. What is computed is what a cache in this format would give back; the tensors
    themselves stay in the model's dtype.

    Attributes:
        element: int2 to int8, or fp8.
        keys, values: what shares a scale in each head: the dims of a "token", or one "channel" over a run of `run`
            tokens, of which the last stays in 16 bits until it is full (as KIVI, arXiv 2402.02750, §3.3).
        run: tokens of a run.
        zero: "none", "integer" or "float"; see Scheme.
        rope: whether keys are stored after rotation ("post", as transformers' caches) or before ("pre"; they are
            rotated when read).
        first: so many first positions stay in 16 bits: the massive keys and values of the first token.
        centre: subtract from all keys of a head their mean on calibration text before rounding. "added": it is added
            back when read. "dropped": it is not, because one vector subtracted from all keys changes every score of a
            query by one number, which a plain softmax does not see; only after rotation.
    """

    element: Literal["int2", "int3", "int4", "int5", "int6", "int7", "int8", "fp8"] = "int8"
    keys: Literal["token", "channel"] = "token"
    values: Literal["token", "channel"] = "token"
    run: int = option(32, least=1)
    zero: Literal["none", "integer", "float"] = "float"
    rope: Literal["pre", "post"] = "post"
    first: int = option(0, least=0)
    centre: Literal["none", "added", "dropped"] = "none"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.centre == "dropped" and self.rope == "pre":
            raise StudfinderError(
                "a constant dropped before rotation: rotated, it is not the same for all keys",
                expected="centre='added', or rope='post'",
            )
        _ = self.scheme

    @property
    def scheme(self) -> Scheme:
        """The same as a scheme for a matrix whose rows share a scale."""
        narrow = self.zero == "none" and self.element != "fp8"
        return Scheme(element=self.element, block="channel", zero=self.zero, scale="float16", narrow=narrow)

    def bits(self, head_dim: int, length: int, *, held: int = 0) -> float:
        """True bits a number of keys and values when `length` tokens are stored: elements, fp16 scales, zero points,
        first positions and unfilled runs in 16 bits.

        Args:
            held: dims of a head's keys, on average, that stay in 16 bits.
        """
        kept = min(self.first, length)
        zero = {"none": 0, "integer": self.scheme.bits, "float": _SCALE_BITS}[self.zero]

        def total(scope: str, dims: int) -> float:
            """Bits of `dims` dims of one head's keys or values."""
            if scope == "token":
                return (length - kept) * (dims * self.scheme.bits + _SCALE_BITS + zero) + kept * dims * 16
            runs = max(0, length - kept) // self.run
            whole = runs * self.run
            return dims * (whole * self.scheme.bits + runs * (_SCALE_BITS + zero) + (length - whole) * 16)

        keys = total(self.keys, head_dim - held) + held * length * 16
        return (keys + total(self.values, head_dim)) / (2 * head_dim * length)


@contextmanager
def quantized_cache(
    lm: LM, config: KVCache, *, keep: Findings | None = None, windows: Sequence[Sequence[int]] = ()
) -> Iterator[KVCache]:
    """Round keys and values while the context lasts; the model is bit-identical before and after.

    In a full pass keys and values are rounded before any token reads them, also those of the same pass. Positions are
    counted from the left, so prompts of unequal lengths are to be padded on the right; in a sliding cache that has
    dropped tokens, `first` and runs count from what is left.

    Args:
        keep: findings whose massive values of K stay in 16 bits, and set no range.
        windows: calibration token ids, to centre keys by.

    Raises:
        StudfinderError: keys are to be centred without calibration text, or with attention that sees a constant in the
            scores; findings of another model; attention that cannot be reached.
    """
    check_supported(lm, config)
    if config.centre != "none" and not windows:
        raise StudfinderError("keys are centred by calibration text", do="Give windows from calibration_windows(lm)")
    centres = {} if config.centre == "none" else key_means(lm, windows, rope=config.rope)
    held = {} if keep is None else held_dims(lm, keep)
    past = [0]  # how many tokens the model's cache holds when a forward pass begins

    def begun(call: ModelCall) -> None:
        past[0] = call.past

    replace: dict[Site, Callable[[torch.Tensor], torch.Tensor]] = {}
    for layer, part in enumerate(lm.anatomy.layers):
        if part.attention is None:
            continue
        key = Site("key.pre_rope" if config.rope == "pre" else "key", layer)
        replace[key] = _keys(config, past, centres.get(layer), held.get(layer))
        replace[Site("value", layer)] = lambda value: cached(value, config, config.values)
    # Keys before RoPE are reached only where a reader asks for them.
    read: dict[type, Sequence[Callable[[Any], None]]] = {ModelCall: (begun,), AttentionCall: (lambda call: None,)}
    with tapped(lm, replace=replace, read=read, pre_rope=config.rope == "pre"):
        yield config


def check_supported(lm: LM, config: KVCache) -> None:
    """Raise StudfinderError if a setting is wrong for this model's attention."""
    if config.rope == "pre" and lm.anatomy.stage != "post-RoPE":
        raise StudfinderError(
            f"{lm.anatomy.architecture} has no rotary step between keys and cache that can be reached",
            expected="rope='post'",
        )
    if config.centre != "dropped":
        return
    seen = sees_constants(lm)
    if seen is not None:
        raise StudfinderError(
            f"{seen} sees a constant that is added to all scores of a query",
            expected="a plain softmax",
            do="Use centre='added'",
        )


def key_means(
    lm: LM, windows: Sequence[Sequence[int]], *, rope: Literal["pre", "post"] = "post"
) -> dict[int, torch.Tensor]:
    """The mean key of each head over the calibration tokens, windows' first left out, by layer: (G, D) fp32."""
    sums: dict[int, torch.Tensor] = {}
    tokens = sum(len(ids) - 1 for ids in windows)

    def read(call: AttentionCall) -> None:
        key = call.key_pre_BGTD if rope == "pre" else call.key_BGSD
        assert key is not None
        own = key[0, :, 1:].float().sum(dim=1)
        sums[call.layer] = sums[call.layer] + own if call.layer in sums else own

    with tapped(lm, read={AttentionCall: (read,)}, pre_rope=rope == "pre"):
        for _ in carry(lm, list(batches(windows))):
            pass
    if not tokens:
        raise StudfinderError("windows of one token", expected="calibration windows of two tokens or more")
    means = {layer: total / tokens for layer, total in sums.items()}
    for layer, mean in means.items():
        if not torch.isfinite(mean).all():
            raise StudfinderError(f"keys of layer {layer} are NaN or infinite on the calibration text")
    return means


def held_dims(lm: LM, findings: Findings) -> dict[int, torch.Tensor]:
    """Which dims of K hold massive values, by layer: bool (G, D).

    Raises:
        StudfinderError: findings of another model, or without massive values of K.
    """
    check_findings(lm, findings)
    found: dict[int, torch.Tensor] = {}
    for value in findings.massive_values:
        if value.tensor == "key":
            mask = found.setdefault(
                value.layer, torch.zeros(lm.anatomy.kv_heads, lm.anatomy.head_dim, dtype=torch.bool)
            )
            mask[value.head, value.dim] = True
    if not found:
        raise StudfinderError("the findings hold no massive values of K", do="Scan for massive values first")
    return found


def cached(
    x_BGSD: torch.Tensor,
    config: KVCache,
    scope: Literal["token", "channel"],
    *,
    start: int = 0,
    held_GD: torch.Tensor | None = None,
) -> torch.Tensor:
    """What a cache would give back for keys or values, in their dtype.

    Args:
        scope: "token" or "channel".
        start: position of the first of them.
        held_GD: dims that stay as they are.
    """
    kept = min(max(0, config.first - start), x_BGSD.shape[2])
    x = x_BGSD[:, :, kept:].float()
    held = None if held_GD is None else held_GD[None, :, None, :].to(x.device)
    if scope == "token":
        made = _rounded(x, config.scheme, held)
    else:
        whole = x.shape[2] // config.run * config.run
        runs = x[:, :, :whole].unflatten(2, (-1, config.run)) if whole else x[:, :, :0, None]
        made = torch.cat([_rounded(runs, config.scheme, None).flatten(2, 3), x[:, :, whole:]], dim=2)
    if held is not None:
        made = torch.where(held, x, made)
    return torch.cat([x_BGSD[:, :, :kept], made.to(x_BGSD.dtype)], dim=2)


def _rounded(x: torch.Tensor, scheme: Scheme, held: torch.Tensor | None) -> torch.Tensor:
    """Rounded and back, fp32; one range along axis 3, held entries left out of it."""
    if not x.numel():
        return x
    low = (x if held is None else x.masked_fill(held, float("inf"))).amin(3, keepdim=True)
    high = (x if held is None else x.masked_fill(held, -float("inf"))).amax(3, keepdim=True)
    empty = low > high  # all of them are held
    grid = grid_of(low.masked_fill(empty, 0), high.masked_fill(empty, 0), scheme)
    return nearest(x, grid.step, grid.zero, scheme)


def _keys(
    config: KVCache, past: list[int], centre_GD: torch.Tensor | None, held_GD: torch.Tensor | None
) -> Callable[[torch.Tensor], torch.Tensor]:
    def replaced(key: torch.Tensor) -> torch.Tensor:
        start = 0
        if config.rope == "pre":  # only the new tokens come by; after RoPE it is the whole cache
            start = past[0]
            if start and config.keys == "channel":
                raise StudfinderError(
                    "runs of keys before RoPE that reach over several calls", do="Use keys='token', or one full pass"
                )
        if centre_GD is None:
            return cached(key, config, config.keys, start=start, held_GD=held_GD)
        centre = centre_GD[None, :, None, :].to(key)
        made = cached(key - centre, config, config.keys, start=start, held_GD=held_GD)
        return made + centre if config.centre == "added" else made

    return replaced


@torch.no_grad()
def sees_constants(lm: LM) -> str | None:
    """What in a model's attention tells apart scores that differ by a constant; None if nothing does.

    Attention of unknown kind is asked: one vector is added to all keys, and whatever then changes has seen it.
    """
    from studfinder.attention.saved import variants_of

    calls: dict[int, AttentionCall] = {}
    outputs: dict[int, torch.Tensor] = {}
    changed: list[int] = []

    def compare(event: BlockOutput) -> None:
        new = event.hidden_BTC.float()
        old = outputs.setdefault(event.layer, new)
        if not (new - old).norm() <= _SEEN[lm.dtype.itemsize < 4] * old.norm():
            changed.append(event.layer)

    def shifted(key_BGSD: torch.Tensor) -> torch.Tensor:
        spread = torch.linspace(-1, 1, key_BGSD.shape[-1]).to(key_BGSD)
        return key_BGSD + 2 * key_BGSD.abs().mean() * spread

    attending = [layer for layer, part in enumerate(lm.anatomy.layers) if part.attention is not None]
    ids_BT = torch.randint(lm.anatomy.vocabulary, (2, 12), generator=torch.Generator().manual_seed(0)).to(lm.device)
    for replace in ({}, {Site("key", layer): shifted for layer in attending}):
        readers: dict[type, Any] = {AttentionCall: (lambda event: calls.setdefault(event.layer, event),)}
        with tapped(lm, read={**readers, BlockOutput: (compare,)}, replace=replace):
            lm.model(input_ids=ids_BT, use_cache=False)
    for layer, call in sorted(calls.items()):
        if call.softcap:
            return "a soft cap on scores"
        if call.sinks is not None:
            return "a sink logit"
        if layer in changed and not call.comparable:
            names = [variant.name for variant in variants_of(lm.model.config)]
            return f"attention {' and '.join(names) or lm.model.config._attn_implementation!r}, in layer {layer},"
    return None
