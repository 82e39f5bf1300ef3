"""What the matrices of one block do, from one look at it (trace.py): who writes to the stream, mixes tokens, gates."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn

from studfinder.models.anatomy import HeadRows, Layer, MatrixRef, Mixer, Norm, Rows, Stage, Writer
from studfinder.models.trace import TOKENS, Attended, Call, Product

_TRIED = 4
"""How many channels are asked; all must answer."""
_CLEAR = 4.0
"""How many times as loud as the next one, in squares, a channel must answer."""
_NARROW = 8
"""A matrix narrower than the hidden size by this factor is a side path, not a feed-forward network's output."""


def parts_of(model: nn.Module, block: Call, level: Call, output: torch.Tensor) -> Layer:
    """The parts of one block.

    Args:
        block: the call, with what ran inside it.
        level: the same where every matrix gave the same for all tokens.
        output: the hidden states that the block handed on, (B,T,C) or with several streams.
    """
    return _Block(model, block, level, output).layer()


class _Block:
    def __init__(self, model: Any, block: Call, level: Call, output: torch.Tensor) -> None:
        self.model, self.call, self.level, self.output = model, block, level, output
        self.products = block.products
        self.leaves = [product.y for product in self.products]
        self.hidden = next(value for value in block.given if value.requires_grad and value.dim() > 2)
        self.width = output.shape[-1]
        axes = [size for size in output.shape[:-1] if size >= TOKENS]  # a prefix of the model's own may stand in front
        self.tokens = TOKENS if TOKENS in axes else axes[0]
        self.late = self.tokens - 2
        self.early = self.late - 2  # what depends on it at the late token has seen it through a mixer; in any window
        self.generator = torch.Generator().manual_seed(0)

    def layer(self) -> Layer:
        direct = self.written(self.output)
        embedded = self.model.get_input_embeddings().weight.shape[-1]
        if not direct and self.width % embedded == 0:  # several streams side by side
            self.width = embedded
            direct = self.written(self.output.unflatten(-1, (-1, embedded)))
        mixing = [product for product in self.products if self.mixes(product)]
        mixers = self.mixers(mixing, [product for product in direct if product in mixing])
        inside = tuple(f"{mixer.module}." for mixer in mixers if mixer.module != self.call.name)
        mixing += [p for p in self.products if p.parameter.startswith(inside) and p not in mixing]
        writers = [product for product in direct if product not in mixing]
        if not writers:  # what a network gives may go through another matrix first, to a recurrence
            writers = [product for product in self.written_inside() if product not in mixing]
            writers = [one for one in writers if not any(feeds in writers for feeds in self.written(one.x))]
        writers = self.without_gates([product for product in writers if product.width * _NARROW > self.width])
        writers += [  # experts may write to a latent that one matrix maps to the stream
            product
            for writer in list(writers)
            if not writer.experts
            for product in self.written(writer.x)
            if product.experts
        ]
        counts = (product.experts or len(self.beside(product.parameter)) for product in writers if self.routed(product))
        experts = max(counts, default=0)
        routers = self.routers(experts, mixers) if experts else ()
        around = next((self.around(product.parameter) for product in writers if self.routed(product)), None)
        mixers += self.convolutions([mixer.module for mixer in mixers])
        return Layer(self.call.name, mixers, self.refs(writers), self.norms(), routers, self.fused(routers), around)

    # --- what depends on what ----------------------------------------------------------------------------------------

    def slopes(self, target: torch.Tensor, places: Sequence[torch.Tensor]) -> list[torch.Tensor | None]:
        """The gradient of a weighted sum of `target` at every place; None where nothing arrives."""
        if not target.requires_grad or not places:
            return [None] * len(places)
        weights = torch.randn(target.shape, generator=self.generator).to(target)
        return list(torch.autograd.grad((target * weights).sum(), places, retain_graph=True, allow_unused=True))

    def answering(self, target: torch.Tensor, product: Product, slope: torch.Tensor | None) -> int | None:
        """The one output channel of a product that moves `target`; None if there is none, or several."""
        if slope is None:
            return None
        energy_O = slope.flatten(0, -2).double().square().sum(0)
        top = energy_O.topk(min(2, len(energy_O))).values
        clear = top[0] > 0 and (len(top) == 1 or top[0] > _CLEAR * top[1])
        return int(energy_O.argmax()) if clear else None

    def written(self, target: torch.Tensor) -> list[Product]:
        """The products whose every output channel is the target's channel of the same number."""
        width = target.shape[-1]
        channels = torch.randperm(width, generator=self.generator)[:_TRIED].tolist()
        found = [product for product in self.products if product.rows == width]
        for channel in channels:
            slopes = self.slopes(target[..., channel], [product.y for product in found])
            answers = [self.answering(target, *pair) for pair in zip(found, slopes, strict=True)]
            found = [product for product, answer in zip(found, answers, strict=True) if answer == channel]
        return found

    def written_inside(self) -> list[Product]:
        """The same for what any module inside gives, as wide as the stream, but for the matrices' own."""
        found: list[Product] = []
        for name, (_, gave) in self.call.modules.items():
            if gave and gave[0].dim() >= 2 and gave[0].shape[-1] == self.width:
                own = [product for product in self.written(gave[0]) if _owner(product) != name]
                found += [product for product in own if product not in found]
        return found

    def without_gates(self, writers: list[Product]) -> list[Product]:
        """Without those that others are multiplied with on their way: their slope depends on themselves, the others'
        does not. (A norm behind all of them bends every slope.)"""
        target = self.output[..., 0]
        bent = []
        for product in writers:
            (slope,) = torch.autograd.grad(
                target.sum(), product.y, retain_graph=True, create_graph=True, allow_unused=True
            )
            more = None
            if slope is not None and slope.requires_grad:
                (more,) = torch.autograd.grad(slope[..., 0].sum(), product.y, retain_graph=True, allow_unused=True)
            bent.append(more is not None and bool(more[..., 0].any()))
        return (
            writers if all(bent) else [product for product, is_bent in zip(writers, bent, strict=True) if not is_bent]
        )

    def convolutions(self, known: Sequence[str]) -> tuple[Mixer, ...]:
        """Mixers without a matrix, beside the others."""
        inside = tuple(f"{name}." for name in known)
        found = []
        for name, (given, gave) in self.call.modules.items():
            if given and gave and given[0].shape == gave[0].shape and given[0].shape[-2] == self.tokens:
                parts = list(self.model.get_submodule(name).children())
                if not name.startswith(inside) and name not in known and len(parts) <= 1:
                    (slope,) = self.slopes(gave[0].flatten(0, -2)[self.late], [given[0]])
                    if slope is not None and bool(slope.flatten(0, -2)[: self.late - 1].any()):
                        found.append(name)
        outer = [name for name in found if not any(name.startswith(f"{other}.") for other in found)]
        return tuple(Mixer(name, "linear") for name in outer if not any(one.startswith(f"{name}.") for one in known))

    def mixes(self, product: Product) -> bool:
        """Whether what it reads at a late token depends on tokens before the one before it (a shift reads that)."""
        if product.x.shape[:-1].numel() % self.tokens:
            return False
        row = self.late_row(product)
        for slope in self.slopes(row, [self.hidden, *self.leaves]):
            by_token = None if slope is None else self.by_token(slope)
            if by_token is not None and bool(by_token[: self.late - 1].any()):
                return True
        return False

    def late_row(self, product: Product) -> torch.Tensor:
        """What a product reads at a late token, (F,) or several where it reads several things at each."""
        x = self.by_token(product.x)
        return (product.x.reshape(self.tokens, -1) if x is None else x)[self.late]

    def by_token(self, slope: torch.Tensor) -> torch.Tensor | None:
        """With the tokens first; None if it has no axis of tokens."""
        axis = next((axis for axis, size in enumerate(slope.shape[:-1]) if size == self.tokens), None)
        return None if axis is None else slope.movedim(axis, 0)

    def at_token(self, slope: torch.Tensor | None, token: int, rows: int, signed: bool = False) -> torch.Tensor:
        """The slope by each of a product's rows at one token: its sum, or the sum of its squares."""
        by_token = None if slope is None else self.by_token(slope)
        if by_token is None:
            return torch.zeros(rows, dtype=torch.float64)
        found = by_token[token].reshape(-1, rows).double().cpu()
        return found.sum(0) if signed else found.square().sum(0)

    # --- attention ---------------------------------------------------------------------------------------------------

    def mixers(self, mixing: Sequence[Product], outputs: Sequence[Product]) -> tuple[Mixer, ...]:
        named = list({one.module: one for one in reversed(self.call.attended) if one.module is not None}.values())[::-1]
        own = [one for one in self.call.attended if one.module is None][:1]
        softmax = [self.attention(one, mixing) for one in named or own]
        known = {mixer.output.parameter for mixer in softmax if mixer.output is not None}
        linear = [self.linear(product) for product in outputs if product.parameter not in known]
        return (*softmax, *linear)

    def linear(self, output: Product) -> Mixer:
        """A mixer that is no softmax: around its output projection and what that reads of other tokens."""
        row = self.late_row(output)
        slopes = self.slopes(row, self.leaves)
        feeding = [p.parameter for p, slope in zip(self.products, slopes, strict=True) if slope is not None]
        return Mixer(_common([output.parameter, *feeding]), "linear", output=_ref(output))

    def attention(self, seen: Attended, mixing: Sequence[Product]) -> Mixer:
        score = seen.query is None
        anchor = seen.scores if score else seen.value
        assert anchor is not None
        output = next((p for p in mixing if self.slopes(p.x, [anchor])[0] is not None), None)
        if score:
            query, key = self.score_rows(seen.scores.reshape(-1, self.tokens, self.tokens))
            value = self.value_rows(output, query, key)
            heads = len(query.first) if query else 0
            sizes = (heads, len(key.first) if key else 0, query.width if query else 0, value.width if value else 0)
        else:
            query, key, value = (self.head_rows(one) for one in (seen.query, seen.key, seen.value))
            sizes = (seen.query.shape[1], seen.key.shape[1], seen.query.shape[-1], seen.value.shape[-1])
        if seen.module is None:  # one that repeats keys for the heads that share them
            query, key, value = (
                rows and HeadRows(rows.ref, tuple(dict.fromkeys(rows.first)), rows.width)
                for rows in (query, key, value)
            )
            sizes = (sizes[0], len(key.first) if key else sizes[1], *sizes[2:])
        parts = [rows.ref.parameter for rows in (query, key, value) if rows is not None]
        module = seen.module or _common(parts + ([output.parameter] if output else []))
        gate = self.gate_rows(output, sizes[0], [query, key, value])
        stage, turned = self.stage(seen)
        ref = None if output is None else _ref(output)
        return Mixer(module, "softmax", seen.module is not None, stage, *sizes, query, key, value, ref, gate, turned)

    def head_rows(self, tensor_BHTD: torch.Tensor) -> HeadRows | None:
        """Which output channels make each head of a tensor at the interface."""
        energies: list[list[torch.Tensor]] = []
        for head in range(tensor_BHTD.shape[1]):
            slopes = self.slopes(tensor_BHTD[:, head], self.leaves)
            energies.append(
                [
                    torch.zeros(product.rows, dtype=torch.float64)
                    if slope is None
                    else slope.flatten(0, -2).double().square().sum(0).cpu()
                    for product, slope in zip(self.products, slopes, strict=True)
                ]
            )
        best = None
        for number, product in enumerate(self.products):
            energy_HO = torch.stack([of_head[number] for of_head in energies])
            rows = _heads_of(energy_HO)
            if rows is not None and (best is None or rows[1] * len(set(rows[0])) > best.width * len(set(best.first))):
                best = HeadRows(_ref(product), *rows)
        return best

    def score_rows(self, scores_HTS: torch.Tensor) -> tuple[HeadRows | None, HeadRows | None]:
        """The same for attention that only its softmax shows: queries move a row of scores from their own token, keys
        from theirs."""
        found: list[HeadRows | None] = []
        slopes = [self.slopes(one[self.late, self.early], self.leaves) for one in scores_HTS]
        for token in (self.late, self.early):
            best = None
            for number, product in enumerate(self.products):
                energy_HO = torch.stack([self.at_token(of_head[number], token, product.rows) for of_head in slopes])
                rows = _heads_of(energy_HO, shared=True)
                if rows is not None and (best is None or rows[1] > best.width):
                    best = HeadRows(_ref(product), *rows)
            found.append(best)
        return found[0], found[1]

    def value_rows(self, output: Product | None, query: HeadRows | None, key: HeadRows | None) -> HeadRows | None:
        if (
            output is None
            or query is None
            or output.width % len(query.first)
            or output.x.numel() != self.tokens * output.width
        ):
            return None
        heads = len(query.first)
        x_THD = output.x.reshape(self.tokens, heads, -1)
        slopes = [self.slopes(x_THD[self.late, head], self.leaves) for head in range(heads)]
        best = None
        for number, product in enumerate(self.products):
            energy_HO = torch.stack([self.at_token(of_head[number], self.early, product.rows) for of_head in slopes])
            for known in (query, key):
                if known is not None and known.ref == _ref(product):
                    energy_HO[:, _channels(known)] = 0
            rows = _heads_of(energy_HO, shared=True)
            if rows is not None and (best is None or rows[1] > best.width):
                best = HeadRows(_ref(product), *rows)
        return best

    def gate_rows(self, output: Product | None, heads: int, known: Iterable[HeadRows | None]) -> HeadRows | None:
        """The channels that multiply what attention gives, at the same token."""
        if output is None or not heads or output.width % heads or output.x.numel() != self.tokens * output.width:
            return None
        x_THD = output.x.reshape(self.tokens, heads, -1)
        made = [rows for rows in known if rows is not None]
        slopes = [self.slopes(x_THD[self.late, head], self.leaves) for head in range(heads)]
        for number, product in enumerate(self.products):
            energy_HO = torch.stack([self.at_token(of_head[number], self.late, product.rows) for of_head in slopes])
            own = [rows for rows in made if rows.ref == _ref(product)]
            for rows in own:
                energy_HO[:, _channels(rows)] = 0
            away_HO = torch.stack([self.at_token(of_head[number], self.early, product.rows) for of_head in slopes])
            energy_HO[away_HO > 0] = 0
            found = _heads_of(energy_HO)
            if found is not None and len(set(found[0])) == heads:
                return HeadRows(_ref(product), *found)
        return None

    def stage(self, seen: Attended) -> tuple[Stage, int]:
        """Whether positions turn queries and keys: of one vector at every token, are the queries alike? And the first
        dim that turns, which is the fastest."""
        if seen.query is not None:
            flat = next(one for one in self.level.attended if one.module == seen.module)
            query_THD = flat.query[0].transpose(0, 1).detach().float()
            apart_D = (query_THD - query_THD[:1]).abs().amax(dim=(0, 1)) > 1e-3 * query_THD.abs().max()
            if not bool(apart_D.any()):
                return "no RoPE", 0
            return "post-RoPE" if seen.module is not None else "pre-RoPE", int(apart_D.nonzero()[0])
        flat = next(one for one in self.level.attended if one.module is None)
        scores_TS = flat.scores.reshape(-1, self.tokens, self.tokens)[0]
        leaves = [product.y for product in self.level.products]
        of_key = []
        for source in (self.early, self.early + 1):
            slopes = torch.autograd.grad(scores_TS[self.late, source], leaves, retain_graph=True, allow_unused=True)
            of_key.append(
                [
                    self.at_token(slope, self.late, p.rows, signed=True)
                    for slope, p in zip(slopes, self.level.products, strict=True)
                ]
            )
        apart = max(float((a - b).abs().max()) for a, b in zip(*of_key, strict=True))
        size = max(float(a.abs().max()) for a in of_key[0])
        return ("pre-RoPE" if apart > 1e-3 * size else "no RoPE"), 0

    # --- the feed-forward network ------------------------------------------------------------------------------------

    def refs(self, writers: Sequence[Product]) -> tuple[Writer, ...]:
        """Every matrix that writes: of experts all, whether these tokens reached them or not."""
        found: dict[str, list[Writer]] = {}
        for product in writers:
            if product.parameter in found:
                continue
            up, gate = self.inner(product)
            shape = self.model.get_parameter(product.parameter).shape
            stacked = shape[0] // product.experts if len(shape) == 2 and product.experts else 0
            routed = self.routed(product)
            of_experts: Sequence[int | None] = range(product.experts) if product.experts else [None]
            for name in self.beside(product.parameter) if routed and not product.experts else [product.parameter]:
                found[name] = [
                    Writer(name, expert, product.transposed, stacked, _of(up, expert), _of(gate, expert), routed)
                    for expert in of_experts
                ]
        return tuple(writer for group in found.values() for writer in group)

    def routed(self, product: Product) -> bool:
        """Whether only some tokens reach a matrix."""
        return bool(product.experts) or bool(product.x.shape[:-1].numel() % self.tokens)

    def beside(self, parameter: str) -> list[str]:
        """The same parameter of every member of the list that an expert kept apart stands in."""
        parts = parameter.split(".")
        for at in range(len(parts) - 1, len(self.call.name.split(".")), -1):
            home = self.model.get_submodule(".".join(parts[: at - 1]))
            if isinstance(home, nn.ModuleList):
                return [".".join([*parts[: at - 1], child, *parts[at:]]) for child, _ in home.named_children()]
        return [parameter]

    def inner(self, writer: Product) -> tuple[Rows | None, Rows | None]:
        """Which rows make its input: those that enter as a factor, and those that go through the activation first."""
        tried = sorted(torch.randperm(writer.width, generator=self.generator)[:_TRIED].tolist())
        answers: list[dict[int, int]] = []
        for neuron in tried:
            slopes = self.slopes(writer.x[..., neuron], self.leaves)
            of_neuron = {}
            for number, (product, slope) in enumerate(zip(self.products, slopes, strict=True)):
                for row in _rows_answering(slope):
                    of_neuron.setdefault(number, []).append(row)
            answers.append(of_neuron)
        lines = []
        for number in answers[0]:
            for place in range(len(answers[0][number])):
                rows = [of.get(number, []) for of in answers]
                if any(len(one) != len(rows[0]) for one in rows):
                    continue
                line = _line(tried, [one[place] for one in rows])
                if line is not None:
                    lines.append((self.products[number], line))
        if len(lines) == 1:
            return Rows(_ref(lines[0][0]), *lines[0][1]), None
        if len(lines) != 2:
            return None, None
        factors = [self.enters_as_factor(writer, *line, tried[0]) for line in lines]
        if sum(factors) != 1:
            return None, None
        up, gate = lines if factors[0] else lines[::-1]
        return Rows(_ref(up[0]), *up[1]), Rows(_ref(gate[0]), *gate[1])

    def enters_as_factor(self, writer: Product, product: Product, line: tuple[int, int], neuron: int) -> bool:
        """Whether a neuron is a factor of the writer's input: its slope does not depend on it, and below zero it still
        counts, which what went through a ReLU does not."""
        first, step = line
        row = first + step * neuron
        target = writer.x[..., neuron]
        (slope,) = torch.autograd.grad(target.sum(), product.y, retain_graph=True, create_graph=True)
        own = slope[..., row]
        if own.requires_grad:
            (bent,) = torch.autograd.grad(own.sum(), product.y, retain_graph=True, allow_unused=True)
            if bent is not None and bool(bent[..., row].any()):
                return False
        below = product.y[..., row] < 0
        return not bool(below.any()) or bool(own[below].any())

    def routers(self, experts: int, mixers: Iterable[Mixer]) -> tuple[str, ...]:
        """Matrices with a row for each expert, or with one; in a recurrence a row may be a head's."""
        apart = tuple(f"{mixer.module}." for mixer in mixers if mixer.kind == "linear")
        asked = [product for product in self.products if not product.parameter.startswith(apart)]
        found = [product.parameter for product in asked if product.rows in (1, experts) and product.rows != self.width]
        return tuple(dict.fromkeys(found))

    def around(self, parameter: str) -> str | None:
        """The innermost module around the experts that all tokens enter and leave as hidden states."""
        size, name = self.tokens * self.width, parameter.rpartition(".")[0]
        while name.startswith(self.call.name):
            given, gave = self.call.modules.get(name, ([], []))
            if given and gave and given[0].numel() == size and gave[0].numel() == size:
                return name
            name = name.rpartition(".")[0]
        return None

    # --- the rest ----------------------------------------------------------------------------------------------------

    def norms(self) -> tuple[Norm, ...]:
        found = []
        for name, (given, gave) in self.call.modules.items():
            module = self.model.get_submodule(name)
            if given and gave and not list(module.children()) and given[0].shape == gave[0].shape:
                offset = norm_offset(module, given[0].detach())
                if offset is not None:
                    found.append(Norm(name, offset))
        return tuple(found)

    def fused(self, routers: Sequence[str]) -> tuple[tuple[str, ...], ...]:
        """Modules beside each other that read the same tensor."""
        groups: dict[Any, dict[str, None]] = {}
        for product in self.products:
            owner, _, leaf = product.parameter.rpartition(".")
            if leaf == "weight" and not product.experts and product.parameter not in routers:
                place = owner.rpartition(".")[0], product.x.data_ptr(), product.x.numel()
                groups.setdefault(place, {})[owner] = None
        return tuple(tuple(members) for members in groups.values() if len(members) > 1)


@torch.no_grad()
def norm_offset(module: nn.Module, x: torch.Tensor) -> float | None:
    """Of a norm: 1 if it multiplies by 1 + weight, else 0. None for any other module.

    A norm's output does not change with the size of its input, and changes with its direction.
    """
    parameters = dict(module.named_parameters(recurse=False))
    if any(parameter.dim() > 1 for parameter in parameters.values()):
        return None
    try:
        probe = torch.randn(x.shape, generator=torch.Generator().manual_seed(0)).to(x)
        once, louder, turned = module(probe), module(probe * 4), module(probe.flip(-1))
        zero = torch.func.functional_call(module, {n: torch.zeros_like(p) for n, p in parameters.items()}, (probe,))
    except Exception:  # it takes more than one tensor
        return None
    if not all(isinstance(one, torch.Tensor) and one.shape == x.shape for one in (once, louder, turned)):
        return None
    size = once.abs().max()
    if not size > 0 or (louder - once).abs().max() > 0.02 * size or (turned - once).abs().max() < 0.1 * size:
        return None
    return float(bool(parameters) and bool(zero.abs().max() > 0))


def _owner(product: Product) -> str:
    return product.parameter.rpartition(".")[0]


def _ref(product: Product, expert: int | None = None) -> MatrixRef:
    return MatrixRef(product.parameter, expert, product.transposed)


def _of(rows: Rows | None, expert: int | None) -> Rows | None:
    if rows is None or expert is None:
        return rows
    return Rows(MatrixRef(rows.ref.parameter, expert, rows.ref.transposed), rows.first, rows.step)


def _heads_of(energy_HO: torch.Tensor, shared: bool = False) -> tuple[tuple[int, ...], int] | None:
    """The first row of each head and how many it has; None unless each head has as many in one piece.

    Args:
        shared: whether heads may have the same rows; else each row is of the head that it moves most.
    """
    heads = len(energy_HO)
    if not bool(energy_HO.any()):
        return None
    if not shared:
        same = heads > 1 and bool((energy_HO > 0).all(0).logical_or((energy_HO == 0).all(0)).all())
        # rows that every head depends on alike are shared; through a norm over all heads its own stands out
        owner_O = energy_HO.argmax(0)
        second = energy_HO.topk(2, dim=0).values[1] if heads > 1 else torch.zeros_like(energy_HO[0])
        if same and not bool((energy_HO.max(0).values >= _CLEAR * second)[energy_HO.any(0)].all()):
            rows = energy_HO[0].nonzero()[:, 0].tolist()
            return _pieces([rows] * heads)
        return _pieces([((owner_O == head) & (energy_HO[head] > 0)).nonzero()[:, 0].tolist() for head in range(heads)])
    return _pieces([energy_HO[head].nonzero()[:, 0].tolist() for head in range(heads)])


def _pieces(rows: Sequence[list[int]]) -> tuple[tuple[int, ...], int] | None:
    width = len(rows[0])
    if not width or any(len(one) != width or one[-1] - one[0] != width - 1 for one in rows):
        return None
    return tuple(one[0] for one in rows), width


def _channels(rows: HeadRows) -> list[int]:
    return [channel for first in rows.first for channel in range(first, first + rows.width)]


def _rows_answering(slope: torch.Tensor | None) -> list[int]:
    """One or two rows that stand out."""
    if slope is None:
        return []
    energy_O = slope.flatten(0, -2).double().square().sum(0)
    top = energy_O.topk(min(3, len(energy_O)))
    if not top.values[0] > 0:
        return []
    rest = top.values[2] if len(top.values) > 2 else 0
    if len(top.values) < 2 or (top.values[0] > _CLEAR * top.values[1] and top.values[1] <= _CLEAR * rest):
        return [int(top.indices[0])]
    return sorted(top.indices[:2].tolist()) if top.values[1] > _CLEAR * rest else []


def _line(neurons: Sequence[int], rows: Sequence[int]) -> tuple[int, int] | None:
    """first and step such that row = first + step * neuron for all."""
    if len(neurons) < 2:
        return None
    step, left = divmod(rows[1] - rows[0], neurons[1] - neurons[0])
    first = rows[0] - step * neurons[0]
    fits = all(row == first + step * neuron for neuron, row in zip(neurons, rows, strict=True))
    return (first, step) if fits and not left and step > 0 else None


def _common(parameters: Sequence[str]) -> str:
    """The innermost module that holds all of them."""
    owners = [name.split(".")[:-1] for name in parameters]
    shared = []
    for level in zip(*owners, strict=False):
        if len(set(level)) > 1:
            break
        shared.append(level[0])
    if len(shared) == len(min(owners, key=len)) and len(parameters) == 1:
        shared = shared[:-1]
    return ".".join(shared)
