"""The weights of the blocks at hand: where they compute and in what they compute in, one block at a time.

Most lie in memory, and nothing is to be done. Those that are mapped from files of a model larger than memory are read
before their block runs and dropped after it; those that accelerate keeps elsewhere are brought in; either for the next
block in a thread while this one runs. So each is touched once a pass, however many streams there are, and an edit of
it is made where it stands.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager

from torch import nn

from studfinder.models import LM
from studfinder.models.carried import at_hand
from studfinder.models.offloaded import Brought, brought, in_place, offloading
from studfinder.models.paging import Span, bring, let_go, mapped_spans


class BlockWeights:
    """Of the blocks of one model.

    Args:
        modules: in the order they run.
    """

    def __init__(self, lm: LM, modules: Sequence[nn.Module]) -> None:
        self._lm, self._modules = lm, modules
        self._pages = lm.memory is not None and lm.memory.streamed
        self._away = self._pages or any(offloading(part) is not None for part in lm.model.modules())
        self._spans: dict[nn.Module, list[Span]] = {}
        self._fetching: tuple[int, Future[Brought]] | None = None
        self._last = -1

    @contextmanager
    def at_hand(self, step: int) -> Iterator[None]:
        """A block's weights where and in the dtype that it computes in, once for many runs of it without gradients."""
        with self.near(step), self.cast(step):
            yield

    def cast(self, step: int) -> AbstractContextManager[None]:
        """A block's weights in the dtype that it computes in; what is written there meanwhile is lost afterwards."""
        return at_hand(self._modules[step])

    @contextmanager
    def near(self, step: int) -> Iterator[None]:
        """A block's weights where it computes; the next one's, in the direction of this walk, are being brought."""
        if not self._away:
            yield
            return
        number, fetching = self._fetching or (-1, None)
        module = self._modules[step]
        weights = fetching.result() if fetching is not None and number == step else self._fetch(module)
        ahead, self._last, self._fetching = step + (1 if step > self._last else -1), step, None
        with ThreadPoolExecutor(1, "studfinder-fetch") as pool:  # leaving it waits for the thread
            if 0 <= ahead < len(self._modules):
                self._fetching = ahead, pool.submit(self._fetch, self._modules[ahead])
            with in_place(self._lm.model, weights):
                yield
        if self._pages and (not 0 <= ahead < len(self._modules) or self._modules[ahead] is not module):
            let_go(self._spans[module])

    @contextmanager
    def outside(self) -> Iterator[None]:
        """What is not of the blocks where it computes: embeddings, the last norm, the output matrix."""
        if not self._away:
            yield
            return
        inside = {part for module in self._modules for part in module.modules()}
        with in_place(self._lm.model, brought(self._lm.model, inside)):
            yield

    def _fetch(self, module: nn.Module) -> Brought:
        if self._pages:
            if module not in self._spans:
                self._spans[module] = mapped_spans(module)
            bring(self._spans[module])
        return brought(module)
