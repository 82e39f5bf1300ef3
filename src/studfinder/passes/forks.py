"""Fork inside a block: what ran before the first module that a change touches is not run again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from studfinder.patches import Journal


@dataclass
class BlockRecord:
    """What the modules inside one block gave in one run of it.

    Attributes:
        events: in order, (name within the block, what it gave); None when it began.
    """

    events: list[tuple[str, Any]] = field(default_factory=list)
    versions: list[tuple[tuple[torch.Tensor, int], ...]] = field(default_factory=list)

    def before(self, touched: Sequence[str]) -> dict[str, Any]:
        """The outermost modules that had run before any of the touched ones began, with what they gave.

        A module whose output something wrote into afterwards, or that ran more than once, is not among them.
        """
        began = [name for name, output in self.events if output is _BEGAN]
        starts = {_that_ran(name, began) for name in touched}
        if "" in starts:
            return {}
        end = next((i for i, (name, output) in enumerate(self.events) if output is _BEGAN and name in starts), None)
        assert end is not None
        once = {name for name, times in Counter(began).items() if times == 1}
        done = {
            name: output
            for (name, output), kept in zip(self.events[:end], self.versions, strict=False)
            if output is not _BEGAN and name in once and all(tensor._version == version for tensor, version in kept)
        }
        return {name: output for name, output in done.items() if not any(_inside(name, outer) for outer in done)}


class _Began:
    pass


_BEGAN = _Began()


@contextmanager
def recorded(block: nn.Module) -> Iterator[BlockRecord]:
    """Keep what every module inside a block gives while the context lasts."""
    record = BlockRecord()
    with Journal() as journal:
        # Hooks of others are to run as ever, and once: what has any is not replayed.
        plain = [(name, one) for name, one in block.named_modules() if name and not is_hooked(one)]
        for name, module in plain:
            journal.hook(module, _beginning(record, name), before=True)
            journal.hook(module, _ending(record, name))
        yield record


@contextmanager
def replayed(model: nn.Module, block: nn.Module, record: BlockRecord, touched: Sequence[str]) -> Iterator[None]:
    """While the context lasts, modules of a block that ran before any of the touched ones give what they gave then."""
    with Journal(model) as journal:
        for name, output in record.before(touched).items():
            journal.set(block.get_submodule(name), "forward", _giving(output))
        yield


def part_run(block: nn.Module, record: BlockRecord, touched: Sequence[str]) -> float:
    """How much of a block's matrices run when it forks there: 1 if all of them."""
    sizes = {name: sum(p.numel() for p in module.parameters()) for name, module in block.named_modules()}
    return 1 - sum(sizes[name] for name in record.before(touched)) / max(1, sizes[""])


def _giving(output: Any) -> Any:
    return lambda *_args, **_kwargs: output


def _beginning(record: BlockRecord, name: str) -> Any:
    def before(_module: nn.Module, _args: tuple) -> None:
        record.events.append((name, _BEGAN))
        record.versions.append(())

    return before


def _ending(record: BlockRecord, name: str) -> Any:
    def after(_module: nn.Module, _args: tuple, output: Any) -> None:
        if _is_plain(output):
            record.events.append((name, output))
            record.versions.append(tuple((one, one._version) for one in tree_leaves(output) if one is not None))

    return after


def is_hooked(module: nn.Module) -> bool:
    """Whether anybody has hooked a module or what is in it."""
    return any(one._forward_hooks or one._forward_pre_hooks for one in module.modules())


def _is_plain(output: Any) -> bool:
    """Whether nothing but tensors can be written into in it: an object may be changed and nobody sees it."""
    if type(output) is tuple:
        return all(map(_is_plain, output))
    return output is None or isinstance(output, torch.Tensor)


def _that_ran(name: str, began: Sequence[str]) -> str:
    """The innermost module around a name, itself included, that was called: others may use its numbers without."""
    while name and name not in began:
        name = name.rpartition(".")[0]
    return name


def _inside(name: str, outer: str) -> bool:
    return name.startswith(outer + ".")
