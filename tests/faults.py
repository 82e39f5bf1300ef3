"""Broken checkpoints of sixteen kinds, and healthy ones: what is broken, where, how much, and in which model is drawn.

Each is a pair of tiny live models: one that was rounded as exports are, and broken, and the one that it was made from.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from architected import built
from studfinder.models import LM, load
from studfinder.quantizers import AWQ, GPTQ, RTN, KVCache, SmoothQuant, Target, quantized, quantized_cache, targets
from studfinder.records import scheme_named
from tiny import token_ids, tokenizer

KINDS = ("llama", "gemma3_text", "mixtral", "phi3", "gpt_neox", "deepseek_v3", "qwen2", "mistral", "olmo2")
EXPERTS = ("mixtral", "deepseek_v3", "qwen3_moe", "olmoe")
FOUR = ("int4-channel", "int4-channel-zero", "int4-g32-rest", "int4-g32-zero-rest")
EIGHT = ("int8-channel", "int8-g32-rest", "int8-tensor-narrow", "fp8")
_CHAT = "{% for one in messages %}<{{ one.role }}>{{ one.content }}{% endfor %}"


@dataclass
class Case:
    """A pair, and what is to be said of it.

    Attributes:
        cause: what may be called the cause; empty of a healthy one.
        culprit: in which of the parts, or settings.
        outputs: what an engine said, as lines of its file.
    """

    original: LM
    made: LM
    cause: set[str] = field(default_factory=set)
    culprit: set[str] = field(default_factory=set)
    outputs: list[dict[str, Any]] = field(default_factory=list)

    def right(self, found: Any) -> bool:
        """Whether a diagnosis names it first."""
        if not self.cause:
            return not found.ill
        return found.ill and found.cause in self.cause and found.culprit in self.culprit


def case(fault: str, seed: int) -> Case:
    """A checkpoint with a fault, or a healthy one for ""."""
    draw = random.Random(f"{fault} {seed}")
    return FAULTS[fault](draw) if fault else healthy(draw)


def healthy(draw: random.Random) -> Case:
    """An ordinary export."""
    return _stored(draw, _two(draw, draw.choice(KINDS), heavy=draw.random() < 0.5), whole=0)


# --- pairs -----------------------------------------------------------------------------------------------------------

_Prepared = Callable[[Any, torch.Generator], None]


def _two(
    draw: random.Random, kind: str, *, prepared: _Prepared | None = None, heavy: bool = False, **settings: Any
) -> tuple[LM, LM]:
    seed = draw.randrange(10**6)
    pair = []
    for _ in range(2):
        model = built(kind, seed=seed, **settings)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            if prepared is not None:
                prepared(model, generator)
            if heavy:  # weights of trained models have heavier tails, and rows of unequal size
                for parameter in model.parameters():
                    if parameter.dim() == 2 and min(parameter.shape) > 1 and len(parameter) < 250:
                        parameter.mul_(1 + 0.5 * torch.randn(len(parameter), 1, generator=generator).abs())
                        parameter.mul_(1 + 0.3 * torch.randn(parameter.shape, generator=generator).square())
        pair.append(replace(load(model), tokenizer=tokenizer()))
    return pair[0], pair[1]


def _export(draw: random.Random, schemes: Sequence[str], kind: str) -> Any:
    """How a checkpoint is rounded: a method with a scheme."""
    scheme = scheme_named(draw.choice(schemes))
    method = draw.choice((RTN, RTN, GPTQ, AWQ)) if scheme.integer else RTN
    if scheme.block == "tensor":
        method = RTN
    if scheme.integer and scheme.bits == 8 and draw.random() < 0.3 and kind != "olmo2":  # has no norm in front
        method = SmoothQuant
    return method(scheme=scheme)


def _stored(
    draw: random.Random, pair: tuple[LM, LM], schemes: Sequence[str] = (*FOUR, *EIGHT), *, whole: float = 0.2
) -> Case:
    """A pair whose second is rounded; in a share of all cases it is left as it is."""
    kind = pair[0].model.config.model_type
    return _rounded(*pair, None if draw.random() < whole else _export(draw, schemes, kind))


def _rounded(original: LM, made: LM, method: Any = None) -> Case:
    if method is not None:
        with quantized(made, method, windows=token_ids(16, 32).tolist()):
            state = {name: tensor.clone() for name, tensor in made.model.state_dict().items()}
        made.model.load_state_dict(state)
    return Case(original, made)


def _exported(draw: random.Random, kinds: Sequence[str] = KINDS, schemes: Sequence[str] = (*FOUR, *EIGHT)) -> Case:
    """A rounded one, or one that is stored as it was."""
    pair = _two(draw, draw.choice(kinds), heavy=draw.random() < 0.5)
    return _stored(draw, pair, schemes)


# --- weights ---------------------------------------------------------------------------------------------------------


def _in_a_matrix(
    cause: str | set[str],
    change: Callable[[torch.Tensor, random.Random], torch.Tensor],
    *,
    schemes: Sequence[str] = (*FOUR, *EIGHT),
    least: int = 1,
) -> Callable[[random.Random], Case]:
    def made(draw: random.Random) -> Case:
        found = _exported(draw, schemes=schemes)
        target = draw.choice([one for one in targets(found.made) if min(one.weight(found.made).shape) >= least])
        _write(found, target, change(target.weight(found.made).clone(), draw))
        return replace(found, cause={cause} if isinstance(cause, str) else cause)

    return made


def _write(found: Case, target: Target, value: torch.Tensor) -> None:
    with torch.no_grad():
        target.weight(found.made).copy_(value)
    found.culprit.add(target.fused)


def _doubled(w: torch.Tensor, draw: random.Random) -> torch.Tensor:
    return w * draw.choice((0.25, 0.5, 1.5, 2, 3, -1))


def _permuted(w: torch.Tensor, draw: random.Random) -> torch.Tensor:
    """All rows in another order, or some of them."""
    count = draw.randrange(max(2, len(w) // 4), len(w) + 1)
    some = torch.tensor(draw.sample(range(len(w)), count))
    made = w.clone()
    made[some] = w[some.roll(1)]
    return made


def _two_bits(w: torch.Tensor, dim: int) -> torch.Tensor:
    step = w.abs().amax(dim, keepdim=True) / 1.5
    return ((w / step - 0.5).round() + 0.5) * step


def _coarse_columns(w: torch.Tensor, draw: random.Random) -> torch.Tensor:
    made = w.clone()
    for col in draw.sample(range(w.shape[1]), draw.choice((1, 1, 2, 3))):
        made[:, col : col + 1] = _two_bits(w[:, col : col + 1], 0)
    return made


def _zero_points(w: torch.Tensor, draw: random.Random) -> torch.Tensor:
    """Off by one step of 4 bits, in each block of a row."""
    size = draw.choice((32, w.shape[1]))
    parts = w.split(size, dim=1)
    steps = [(part.amax(1, keepdim=True) - part.amin(1, keepdim=True)) / 15 for part in parts]
    sign = draw.choice((-1, 1))
    return torch.cat([part + sign * step for part, step in zip(parts, steps, strict=True)], dim=1)


def _lost_super_weight(draw: random.Random) -> Case:
    """A number many times larger than the rest, of the original too, that is gone or clipped."""
    kind, times, place = draw.choice(KINDS), draw.choice((6, 10, 20)), draw.random()
    layer = draw.random()

    def prepared(model: Any, _generator: torch.Generator) -> None:
        live = load(model)
        writer = _down(live, layer)
        weight = writer.weight(live)
        weight.view(-1)[int(place * weight.numel())] = times * weight.abs().max()

    found = _stored(draw, _two(draw, kind, prepared=prepared), EIGHT)
    target = _down(found.made, layer)
    weight = target.weight(found.original)
    at = divmod(int(weight.abs().argmax()), weight.shape[1])
    made = target.weight(found.made).clone()
    made[at] = draw.choice((0.0, float(weight.abs().median())))
    _write(found, target, made)
    return replace(found, cause={"numbers"})


def _down(lm: LM, share: float) -> Target:
    """A matrix that writes from a feed-forward network, the last of a layer."""
    by_layer: dict[int, Target] = {}
    for target in targets(lm):
        if target.weight(lm).is_contiguous():
            by_layer[target.layer] = target
    return by_layer[int(share * len(by_layer))]


def _zeroed_expert(draw: random.Random) -> Case:
    found = _exported(draw, EXPERTS)
    layer = draw.choice(sorted({one.layer for one in targets(found.made) if one.part is not None}))
    own = [one for one in targets(found.made) if one.part is not None and one.layer == layer]
    expert = draw.choice(sorted({one.part.expert for one in own if one.part is not None}))
    for target in own:
        if target.part is not None and target.part.expert == expert:
            _write(found, target, torch.zeros_like(target.weight(found.made)))
    return replace(found, cause={"zeroed"})


def _coarse_gate(draw: random.Random) -> Case:
    """Some rows of a gate in 4 bits, where the others are in 8 or 16."""
    found = _exported(draw, ("llama", "gemma3_text", "phi3", "qwen2", "mistral", "olmo2"), EIGHT)
    layer = draw.choice(found.made.anatomy.layers)
    rows = layer.writers[0].gate
    assert rows is not None
    target = next(one for one in targets(found.made) if one.ref == rows.ref)
    inner = found.made.model.get_parameter(layer.writers[0].parameter).shape[1]
    every = [rows.first + rows.step * n for n in range(inner)]
    first = draw.randrange(len(every) // 2)
    some = every[first : first + draw.randrange(1, len(every) // 4)]
    weight = target.weight(found.made).clone()
    step = weight[some].abs().amax(1, keepdim=True) / 7
    weight[some] = (weight[some] / step).round() * step
    _write(found, target, weight)
    return replace(found, cause={"rows"})


def _key_bias(draw: random.Random) -> Case:
    """K's bias, multiplied in some of the pairs that turn fast."""

    def prepared(model: Any, generator: torch.Generator) -> None:
        for name, parameter in model.named_parameters():
            if name.endswith("k_proj.bias"):
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 3)

    kind = draw.choice(("qwen2", "qwen2_moe"))
    pair = _two(draw, kind, prepared=prepared)
    found = _stored(draw, pair)
    name = draw.choice([name for name, _ in found.made.model.named_parameters() if name.endswith("k_proj.bias")])
    width = found.made.anatomy.head_dim
    pairs = draw.randrange(1, width // 4 + 1)
    with torch.no_grad():
        heads = found.made.model.get_parameter(name).view(-1, 2, width // 2)
        heads[:, :, :pairs] *= draw.choice((1.5, 2, 3))
    return replace(found, cause={"row scales"}, culprit={name})


def _shard(draw: random.Random) -> Case:
    """A run of matrices of another model."""
    kind = draw.choice(KINDS)
    found = _exported_kind(draw, kind)
    other = replace(load(built(kind, seed=10**7 + draw.randrange(10**6))), tokenizer=None)
    every = targets(found.made)
    first = draw.randrange(len(every))
    for target in every[first : first + draw.choice((1, 3, 7))]:
        _write(found, target, target.weight(other))
    return replace(found, cause={"unrelated"})


def _exported_kind(draw: random.Random, kind: str) -> Case:
    return _exported(draw, (kind,))


def _other_scale(draw: random.Random) -> Case:
    """A matrix in fp8 with the scale of another one, for all of it or a row each: matrices differ in size."""

    def prepared(model: Any, generator: torch.Generator) -> None:
        for parameter in model.parameters():
            if parameter.dim() >= 2:
                parameter.mul_(float(torch.rand((), generator=generator)) * 1.5 + 0.5)

    pair = _two(draw, draw.choice(KINDS), prepared=prepared)
    found = _rounded(*pair, RTN(scheme=scheme_named(draw.choice(("fp8", "fp8-tensor")))))
    rows = draw.random() < 0.5
    target, factor = draw.choice(list(_factors(found, rows)))
    _write(found, target, target.weight(found.made) * factor)
    return replace(found, cause={"scaled", "row scales"})


def _factors(found: Case, rows: bool) -> Iterator[tuple[Target, torch.Tensor]]:
    """Every matrix, and another one's scale over its own, where that is more than a fifth off."""
    every = targets(found.original)
    for target in every:
        own = target.weight(found.original).abs()
        for other in every:
            one = other.weight(found.original).abs()
            if other is target or one.shape != own.shape:
                continue
            factor = one.amax(1, keepdim=True) / own.amax(1, keepdim=True) if rows else one.max() / own.max()
            if float((factor.log().abs()).median()) > 0.2:
                yield target, factor


# --- settings, words, engines ----------------------------------------------------------------------------------------


def _setting(kinds: Sequence[str], change: Callable[[Any, random.Random], set[str]]) -> Callable[[random.Random], Case]:
    """A checkpoint whose config says something else than the original's."""

    def made(draw: random.Random) -> Case:
        kind = draw.choice(kinds)
        seed, found = draw.randrange(10**6), _exported_kind(draw, kind)
        model = built(kind, seed=seed)
        culprit = change(model.config, draw)
        other = type(model)._from_config(model.config).eval()
        other.load_state_dict(found.made.model.state_dict())
        return replace(found, made=replace(load(other), tokenizer=tokenizer()), cause={"setting"}, culprit=culprit)

    return made


def _theta(config: Any, draw: random.Random) -> set[str]:
    """Another base of the rotation, of one kind of layers where there are several."""
    times = draw.choice((0.01, 0.1, 10, 100))
    rope = dict(config.rope_parameters)
    names = [name for name, own in rope.items() if isinstance(own, dict)]
    if not names:
        rope["rope_theta"] *= times
        config.rope_parameters = rope
        return {"rope_parameters.rope_theta"}
    name = "sliding_attention"
    rope[name] = {**rope[name], "rope_theta": rope[name]["rope_theta"] * times}
    config.rope_parameters = rope
    return {f"rope_parameters.{name}.rope_theta"}


def _epsilon(config: Any, draw: random.Random) -> set[str]:
    name = "rms_norm_eps" if hasattr(config, "rms_norm_eps") else "layer_norm_eps"
    setattr(config, name, draw.choice((1e-3, 1e-2, 0.1, 0.5)))
    return {name}


def _untied(draw: random.Random) -> Case:
    """A head of its own, not the embedding that it was: another one's, of zeros, or of too few bits."""
    kind = draw.choice(("gemma3_text", "llama", "qwen2", "mistral"))
    pair = _two(draw, kind, tie_word_embeddings=True)
    found = _stored(draw, pair)
    own = built(kind, seed=draw.randrange(10**6), tie_word_embeddings=False)
    state = found.made.model.state_dict()
    head = state["model.embed_tokens.weight"]
    broken = draw.choice((own.lm_head.weight.detach(), torch.zeros_like(head), head.roll(1, 0), head * 3))
    own.load_state_dict({**state, "lm_head.weight": broken})
    made = replace(load(own), tokenizer=tokenizer())
    return replace(found, made=made, cause={"setting"}, culprit={"output matrix"})


def _no_bos(draw: random.Random) -> Case:
    found = _exported(draw, ("gemma3_text", "llama"))
    bare = tokenizer()
    bare.backend_tokenizer.post_processor = _added_nothing()
    return replace(found, made=replace(found.made, tokenizer=bare), cause={"setting"}, culprit={"BOS"})


def _added_nothing() -> Any:
    from tokenizers import processors

    return processors.TemplateProcessing(single="$A", special_tokens=[])


def _template(draw: random.Random) -> Case:
    found = _exported(draw)
    was, now = tokenizer(), tokenizer()
    was.chat_template = _CHAT
    changed = draw.choice((None, _CHAT.replace("<", "<s><"), _CHAT.replace("{{ one.role }}", "w5"), _CHAT + "</s>"))
    if changed is not None:
        now.chat_template = changed
    original, made = replace(found.original, tokenizer=was), replace(found.made, tokenizer=now)
    return replace(found, original=original, made=made, cause={"setting"}, culprit={"chat template"})


def _engine(draw: random.Random) -> Case:
    """Right weights; an engine's cache holds K, with a large bias, in fp8."""
    size = draw.choice((30, 60, 120))

    def prepared(model: Any, generator: torch.Generator) -> None:
        for name, parameter in model.named_parameters():
            if name.endswith("k_proj.bias"):
                half = torch.zeros_like(parameter).view(-1, 2, 8)
                half[:, :, 5:] = torch.randn(half[:, :, 5:].shape, generator=generator) * size
                parameter.copy_(half.view(-1))
            if name.endswith(("q_proj.weight", "k_proj.weight")):
                parameter.mul_(6)

    found = _stored(draw, _two(draw, "qwen2", prepared=prepared))
    ids = token_ids(3, 40, seed=draw.randrange(1000))
    with torch.no_grad(), quantized_cache(found.made, KVCache(element="fp8", zero="none")):
        logs_BTV = found.made.model(input_ids=ids, use_cache=False).logits.float().log_softmax(-1)
    said_BT = logs_BTV[:, :-1].gather(-1, ids[:, 1:, None])[..., 0]
    lines = [
        {"token_ids": row, "logprobs": [None, *logs]} for row, logs in zip(ids.tolist(), said_BT.tolist(), strict=True)
    ]
    return replace(found, outputs=lines, cause={"engine"}, culprit={"engine"})


_ROPE = ("llama", "gemma3_text", "qwen2", "mistral", "mixtral")

FAULTS: dict[str, Callable[[random.Random], Case]] = {
    "doubled scales": _in_a_matrix("scaled", _doubled),
    "permuted rows": _in_a_matrix("permuted rows", _permuted, least=8),
    "a lost super weight": _lost_super_weight,
    "a column in 2 bits": _in_a_matrix("columns", _coarse_columns),
    "one expert zeroed": _zeroed_expert,
    "gate rows in 4 bits": _coarse_gate,
    "K's bias multiplied in fast pairs": _key_bias,
    "a shard of another model": _shard,
    "an fp8 scale of another tensor": _other_scale,
    "zero points off by one": _in_a_matrix("shifted", _zero_points, least=32),
    "another rope theta": _setting(_ROPE, _theta),
    "an untied head": _untied,
    "BOS dropped": _no_bos,
    "another epsilon": _setting(KINDS, _epsilon),
    "another chat template": _template,
    "a cache in fp8": _engine,
}
"""By name, what draws one."""
