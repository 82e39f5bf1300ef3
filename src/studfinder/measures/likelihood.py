"""How likely a model finds given continuations of given contexts: what every multiple choice here is scored by.

Three savings, none of which changes a score beyond rounding: what requests have in common (a few-shot prompt, a
question with several answers) runs once; passes are full; and the vocabulary is multiplied out only where a token is
scored.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any

import torch

from studfinder import sites
from studfinder.errors import StudfinderError
from studfinder.measures.asked import Advance
from studfinder.measures.packs import packed
from studfinder.measures.scorer import Likelihood, Scored, ScoredRow, scoring
from studfinder.models import LM
from studfinder.models.carried import is_carried
from studfinder.texts import check_ids
from studfinder.texts.pairs import common

Request = tuple[list[int], list[int]]
"""Token ids of a context and of its continuation."""

_FITS = 512
"""Tokens in a pass on a CPU: with more, a small model's activations leave the core's cache; with fewer, what every pass
costs by itself counts."""

_PACK = 1024
"""Tokens in one row elsewhere: attention in it costs the square."""

_WORTH = 16
"""Shortest beginning common to all requests that is run by itself."""

_WORKERS = 4
"""Passes side by side on a CPU, at most: Python, which starts every operation, does one thing at a time."""

_SIZE: ContextVar[int | None] = ContextVar("tokens of a pass", default=None)


@contextmanager
def batch_size(tokens: int | None) -> Iterator[None]:
    """Read at most so many tokens in a forward pass while inside (one sequence if that is longer); None is automatic.

    Raises:
        StudfinderError: fewer than one.
    """
    if tokens is not None and tokens < 1:
        raise StudfinderError(f"a batch of {tokens} tokens", expected="1 or more, or auto")
    outer = _SIZE.set(tokens)
    try:
        yield
    finally:
        _SIZE.reset(outer)


def tokens_a_pass() -> int | None:
    """What `batch_size` says here; None is automatic."""
    return _SIZE.get()


def log_likelihoods(
    lm: LM,
    requests: Sequence[Request],
    *,
    batch_tokens: int | None = None,
    truncate: bool = False,
    progress: Advance | None = None,
) -> list[Likelihood]:
    """Log-probability of each continuation after its context, in the order of the requests.

    As in lm-evaluation-harness the model reads context and continuation without the last token. Results do not depend
    on batch size or order beyond rounding. In bf16 that is about a hundredth of a nat a token (a sum over a long
    continuation moves by a nat now and then), as much between two full passes of different batches as between shared
    contexts and full passes; in fp32 it cannot be seen.

    Every request is read by itself while a site is being replaced (an edit of activations may depend on all tokens it
    sees), and by models that cannot share: those that do not take a mask and positions as given, that look at
    neighbouring tokens outside attention, or whose sliding window is shorter than a request.

    Args:
        requests: (context ids, continuation ids), neither empty.
        batch_tokens: tokens in one forward pass; the default is that of `batch_size` around the call, or else 512 on a
            CPU, where several passes run side by side, 16,384 elsewhere, and as many as memory holds where each pass
            reads the weights from their files. Where memory does not hold a pass it is read in halves.
        truncate: cut what is longer than the model's window from the left, as lm-evaluation-harness does.
        progress: called with the number of requests done.

    Raises:
        StudfinderError: a model that is not causal, an empty or too long request, or ids beyond the embedding.
    """
    sites.check_causal(lm, "likelihoods")
    limit = lm.anatomy.max_positions
    cut = [_checked(lm, number, request, limit, truncate) for number, request in enumerate(requests)]
    results: list[Likelihood | None] = [None] * len(requests)
    size = batch_tokens or _SIZE.get() or _tokens_at_once(lm)
    for scored in _passes(lm, _rows(cut), size) if requests else ():
        for number, likelihood in scored:
            results[number] = likelihood
        if progress is not None:
            progress(len(scored))
    return results  # type: ignore[return-value]


def _tokens_at_once(lm: LM) -> int:
    usual = _FITS if lm.device.type == "cpu" else 16384
    if lm.memory is None or not lm.memory.streamed:
        return usual
    # Every pass reads all weights: as few of them as memory allows.
    a_token = (6 * lm.anatomy.hidden + 3 * lm.anatomy.intermediate) * lm.dtype.itemsize
    return max(usual, lm.memory.states // a_token)


# --- what is asked ------------------------------------------------------------------------------------------------


def _checked(lm: LM, number: int, request: Request, limit: int | None, truncate: bool) -> Request:
    context, continuation = list(request[0]), list(request[1])
    if not context or not continuation:
        raise StudfinderError(
            f"request {number} has no {'continuation' if context else 'context'}",
            expected="at least one token of each",
            do="" if context else "Begin with BOS or another token",
        )
    check_ids(lm, [context, continuation], f"request {number}")
    over = len(context) + len(continuation) - 1 - (limit or len(context) + len(continuation))
    if over <= 0:
        return context, continuation
    if truncate and over < len(context):
        return context[over:], continuation
    raise StudfinderError(
        f"request {number} has {len(context)} + {len(continuation)} tokens", expected=f"no more than {limit} to read"
    )


def _rows(requests: Sequence[Request]) -> list[ScoredRow]:
    """Distinct rows, the longest first: what does not fit into memory shows at once."""
    found: dict[tuple[tuple[int, ...], int], ScoredRow] = {}
    for number, (context, continuation) in enumerate(requests):
        ids = (*context, *continuation[:-1])
        row = found.setdefault((ids, len(context)), ScoredRow(ids, len(context)))
        row.asked.append((number, continuation))
    return sorted(found.values(), key=lambda row: (-len(row.ids), row.ids, row.context))


# --- what is run together ------------------------------------------------------------------------------------------


def _passes(lm: LM, rows: list[ScoredRow], size: int) -> Iterator[Scored]:
    """The results of one pass after the other."""
    with torch.no_grad(), scoring(lm) as scorer:
        sharing = _can_share(lm, rows) and scorer.takes_packs()
        if sharing:
            start = _beginning(rows)
            cache = scorer.read(rows[0].ids[:start]) if start else None
            row = size if lm.device.type == "cpu" else min(size, _PACK)
            packs = sorted(packed([one.ids for one in rows], start, row), key=lambda pack: -len(pack.ids))
            read_packs = partial(scorer.packs, rows, cache=cache, start=start)
            work = [partial(_fitted, read_packs, group) for group in _alike(packs, size)]
        else:
            work = [partial(_fitted, scorer.whole, group) for group in _alike(rows, size)]
        # A block whose weights are carried in runs once at a time.
        alone = sites.replacing(lm) or is_carried(lm.model) or lm.device.type != "cpu"
        yield from _side_by_side(work, 1 if alone else torch.get_num_threads())


def _fitted(read: Callable[[Sequence[Any]], Scored], group: Sequence[Any]) -> Scored:
    """What a pass over a group says, in as many parts as memory asks for."""
    try:
        return read(group)
    except torch.OutOfMemoryError as error:
        if len(group) == 1:
            raise StudfinderError(
                f"a sequence of {len(group[0].ids)} tokens does not fit into memory",
                do="Use a smaller --batch-size or a shorter window",
            ) from error
    # Behind the handler, which holds on to the tensors of the pass that failed.
    middle = len(group) // 2
    return _fitted(read, group[:middle]) + _fitted(read, group[middle:])


def _side_by_side(work: Sequence[Callable[[], Scored]], threads: int) -> Iterator[Scored]:
    """Do the work, some of it at the same time: two threads with an operation each do more than two for one."""
    workers = min(threads, _WORKERS, len(work))
    if workers < 2:
        yield from (one() for one in work)
        return
    pool = ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(threads // workers,))
    try:
        yield from pool.map(lambda one: one(), work)
    finally:
        pool.shutdown(cancel_futures=True)


def _alike(rows: Sequence[Any], size: int) -> Iterator[list[Any]]:
    """Groups of alike lengths, of at most `size` tokens with their padding; the rows are sorted, the longest first."""
    group: list[Any] = []
    for row in rows:
        longest = len(group[0].ids) if group else 0
        short = len(row.ids) < 0.7 * longest
        if group and ((short and longest * len(group) >= 128) or longest * (len(group) + 1) > size):
            yield group
            group = []
        group.append(row)
    if group:
        yield group


def _can_share(lm: LM, rows: Sequence[ScoredRow]) -> bool:
    """Whether a token's states depend on nothing but the tokens that a mask lets it see.

    Not so where something replaces activations, in models with states other than keys and values (convolutions, linear
    attention) and in our own variants (one shifts keys along the row); a sliding window counts places in the row.
    """
    config = lm.model.config.get_text_config(decoder=True)
    window = getattr(config, "sliding_window", None) or getattr(config, "window_size", None)
    narrow = isinstance(window, int) and window < len(rows[0].ids)
    states = any(layer.attention is None for layer in lm.anatomy.layers)
    return not (sites.replacing(lm) or states or narrow or hasattr(lm.model.config, "studfinder"))


def _beginning(rows: Sequence[ScoredRow]) -> int:
    """How many tokens all rows have in common, before any that is scored from; 0 if not worth a pass of its own."""
    if len(rows) < 2:
        return 0
    low, high = (choose(row.ids for row in rows) for choose in (min, max))
    length = min(common(low, high), min(row.context for row in rows) - 1)
    return length if length >= _WORTH else 0
