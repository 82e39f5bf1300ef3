"""One look at a running model: which matrix gave what, in a graph that is cut at every matrix.

Every product with a weight is seen as torch's function is called, and its result is handed on as a leaf of the autograd
graph. So a gradient between two places follows only what lies directly between them (sums, norms, activations, the
mixing of tokens), never another matrix; and what does not depend on a channel or a token has a gradient of exactly zero
there, whatever is loud beside it.
"""

from __future__ import annotations

from bisect import bisect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from studfinder.models.interface import uses_interface, watch_attention
from studfinder.patches import Journal

TOKENS = 13
"""How many are run through a model: no likely number of experts or heads, so that axes can be told apart."""


@dataclass(eq=False)
class Product:
    """One product with a weight.

    Attributes:
        parameter: its name.
        expert: which slice of it, None if it is whole or all slices were used at once.
        experts: how many slices it has; 0 for a matrix that is no stack of experts.
        transposed: whether the parameter is stored (in, out).
        width: input channels of the slice, F.
        rows: output channels, O.
        x: what was multiplied, (..., F).
        y: the result, a leaf, (..., O).
    """

    parameter: str
    expert: int | None
    experts: int
    transposed: bool
    width: int
    rows: int
    x: torch.Tensor
    y: torch.Tensor


@dataclass(eq=False)
class Attended:
    """One attention: at the interface (with the module that called it), or a square softmax of another's.

    Attributes:
        query, key, value: (B,H,T,D), (B,G,S,D), (B,G,S,D) at the interface or of torch's own attention; else None.
        scores: (..., T, S), what entered a softmax; None elsewhere.
    """

    module: str | None
    query: torch.Tensor | None = None
    key: torch.Tensor | None = None
    value: torch.Tensor | None = None
    scores: torch.Tensor | None = None


@dataclass(eq=False)
class Call:
    """One call of a child of a list of modules: perhaps a block.

    Attributes:
        name, parent: of the module and of its list.
        depth: how many such calls were running around it.
        given, gave: every tensor that went in and came out.
        products, attended: what happened inside, in order.
        modules: every other module inside that was called: what went in and came out the first time.
    """

    name: str
    parent: str
    depth: int
    given: list[torch.Tensor]
    gave: list[torch.Tensor] = field(default_factory=list)
    products: list[Product] = field(default_factory=list)
    attended: list[Attended] = field(default_factory=list)
    modules: dict[str, tuple[list[torch.Tensor], list[torch.Tensor]]] = field(default_factory=dict)


@contextmanager
def traced(model: nn.Module, *, level: bool = False) -> Iterator[list[Call]]:
    """Watch every call of a child of a list of modules while the context lasts; leave no trace.

    Args:
        level: hand on the first token's result of every product for all tokens: then whatever still differs between
            tokens comes from their positions.
    """
    calls: list[Call] = []
    running: list[Call] = []
    names = {module: name for name, module in model.named_modules()}

    def enter(homes: list[tuple[str, str]], _module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        homes.append(homes.pop(0))  # a module may stand in several places, and runs for each in turn
        hidden = next((value for value in tensors_in((args, kwargs)) if value.dim() >= 3), None)
        if hidden is not None and not hidden.requires_grad:  # a place that gradients can be asked of
            new = hidden.detach().requires_grad_().clone()
            args, kwargs = (_exchanged(value, hidden, new) for value in (args, kwargs))
        running.append(Call(*homes[-1], len(running), tensors_in((args, kwargs))))
        calls.append(running[-1])
        return args, kwargs

    def leave(_module: nn.Module, _args: tuple, output: Any) -> None:
        running.pop().gave += tensors_in(output)

    def inside(name: str, _module: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
        for call in running:
            call.modules.setdefault(name, (tensors_in((args, kwargs)), tensors_in(output)))

    def attention(module: nn.Module, query: Any, key: Any, value: Any, _mask: Any, _kwargs: dict) -> Any:
        for call in running:
            call.attended.append(Attended(names[module], query, key, value))
        return query, key, value

    with Journal(model) as journal, torch.enable_grad():
        experts_apart(model, journal)
        for config in configs_of(model):
            if str(getattr(config, "_attn_implementation", None)).startswith(("flash", "flex")):
                journal.set(config, "_attn_implementation_internal", "eager")
        members: dict[nn.Module, list[tuple[str, str]]] = {}
        for path, module in model.named_modules():
            if isinstance(module, nn.ModuleList | nn.Sequential):
                for child, member in module._modules.items():
                    members.setdefault(member, []).append((f"{path}.{child}", path))
        for module, path in names.items():
            if module in members:
                journal.hook(module, partial(enter, members[module]), before=True, with_kwargs=True)
                journal.hook(module, leave)
            if path:
                journal.hook(module, partial(inside, path), with_kwargs=True)
            if uses_interface(module):
                watch_attention(module, attention, journal)
        with _Cut(model, running, level):
            yield calls


class Products(TorchFunctionMode):
    """Sees every product with a parameter of a module, as torch's functions are called.

    Args:
        module: its parameters; names are relative to it.
        seen: is given each product, and may return what is handed on in place of its result.
    """

    def __init__(self, module: nn.Module, seen: Callable[[Product], torch.Tensor | None]) -> None:
        super().__init__()
        self.seen = seen
        self.known: list[tuple[int, str, torch.Tensor]] = []
        self.starts: list[int] = []
        for name, parameter in module.named_parameters():
            if parameter.dim() >= 2 and parameter.numel() and not parameter.is_meta:
                self._know(name, parameter)

    def __torch_function__(self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        result = function(*args, **kwargs)
        name = getattr(function, "__name__", "")
        if not isinstance(result, torch.Tensor):
            return result
        if name in _CASTS and result.dim() >= 2 and args and (found := self._weight(args[0])) is not None:
            if self._weight(result) is None:
                self._know(found[0], result)
        elif name in _PRODUCTS:
            product = self._product(name, tensors_in((args, kwargs)), result)
            handed = None if product is None else self.seen(product)
            return result if handed is None else handed
        self.other(name, args, kwargs, result)
        return result

    def other(self, name: str, args: tuple, kwargs: dict, result: torch.Tensor) -> None:
        """Any other function of torch was called."""

    def _know(self, name: str, weight: torch.Tensor) -> None:
        """Remember where the numbers of a weight lie; it is kept alive, so that no other tensor takes the place."""
        at = bisect(self.starts, weight.data_ptr())
        self.starts.insert(at, weight.data_ptr())
        self.known.insert(at, (weight.data_ptr() + weight.numel() * weight.element_size(), name, weight))

    def _weight(self, value: Any) -> tuple[str, torch.Tensor] | None:
        """The parameter that a tensor is, or is a view of."""
        if not isinstance(value, torch.Tensor) or value.dim() < 2 or value.is_meta:
            return None
        at = bisect(self.starts, value.data_ptr()) - 1
        if at < 0 or value.data_ptr() >= self.known[at][0]:
            return None
        return self.known[at][1], self.known[at][2]

    def _product(self, function: str, given: list[torch.Tensor], result: torch.Tensor) -> Product | None:
        found = [(value, known) for value in given if (known := self._weight(value)) is not None]
        others = [value for value in given if value.dim() >= 2 and self._weight(value) is None]
        if len(found) != 1 or not others:
            return None
        (weight, (name, parameter)), x = found[0], others[-1]
        rows, width = weight.shape[-2:] if function == "linear" else (weight.shape[-1], weight.shape[-2])
        if x.shape[-1] != width or result.shape[-1] != rows or not result.numel():
            return None  # weight @ x, tokens last; or an expert that no token reached
        inner = weight.stride(-1 if function == "linear" else -2)
        slices = parameter.numel() // (rows * width)
        experts = slices if slices > 1 or parameter.dim() > 2 else 0
        sliced = experts and weight.dim() == 2
        expert = (weight.storage_offset() - parameter.storage_offset()) // (rows * width) if sliced else None
        return Product(name, expert, experts, inner != 1, width, rows, x, result)


class _Cut(Products):
    """Hands every product on as a leaf of the graph, and sees softmaxes."""

    def __init__(self, model: nn.Module, running: list[Call], level: bool) -> None:
        super().__init__(model, self.cut)
        self.running, self.level = running, level

    def cut(self, product: Product) -> torch.Tensor | None:
        if not self.running:
            return None
        value = product.y.detach()
        if self.level:
            value = value.select(-2, 0).unsqueeze(-2).expand_as(value).clone()
        product.y = value.requires_grad_()
        for call in self.running:
            call.products.append(product)
        return product.y.clone()  # what comes next may write into it

    def other(self, name: str, args: tuple, kwargs: dict, result: torch.Tensor) -> None:
        seen = None
        if name in _SOFTMAX and result.dim() > 2 and TOKENS <= result.shape[-2] == result.shape[-1]:
            seen = Attended(None, scores=args[0] if args else kwargs["input"])
        elif name == "scaled_dot_product_attention":
            seen = Attended(None, *(args[:3] if args else (kwargs["query"], kwargs["key"], kwargs["value"])))
        if seen is not None:
            for call in self.running:
                call.attended.append(seen)


_SOFTMAX = ("softmax", "_softmax")
_PRODUCTS = ("linear", "matmul", "__matmul__", "__rmatmul__", "mm", "bmm", "addmm", "baddbmm")
_CASTS = ("to", "float", "half", "bfloat16", "type", "type_as", "contiguous")


def configs_of(module: nn.Module) -> list[Any]:
    """Every config that a module or a part of it holds."""
    held = (getattr(part, "config", None) for part in module.modules())
    return list({id(config): config for config in held if config is not None}.values())


def experts_apart(module: nn.Module, journal: Journal) -> None:
    """Have experts computed one by one, not by a kernel that takes all at once, until the journal ends."""
    for config in configs_of(module):
        if getattr(config, "_experts_implementation", None) not in (None, "eager"):
            journal.set(config, "_experts_implementation_internal", "eager")


def tensors_in(value: Any) -> list[torch.Tensor]:
    """Every floating-point tensor inside tuples, lists, dicts and transformers' outputs."""
    if isinstance(value, torch.Tensor):
        return [value] if value.is_floating_point() else []
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, tuple | list):
        return [one for part in value for one in tensors_in(part)]
    return []


def _exchanged(value: Any, old: torch.Tensor, new: torch.Tensor) -> Any:
    """The same with one tensor in another's place."""
    if value is old:
        return new
    if type(value) is tuple:
        return tuple(_exchanged(one, old, new) for one in value)
    if type(value) is dict:
        return {name: _exchanged(one, old, new) for name, one in value.items()}
    return value
