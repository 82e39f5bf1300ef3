"""Random nestings of everything that changes a model for a while, and signals in the middle of them."""

from __future__ import annotations

import hashlib
import inspect
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

import studfinder
from studfinder.edits import (
    Activations,
    Everything,
    LargestEntry,
    channel,
    edited,
    entry,
    mean,
    neuron,
    noise,
    scale,
    top_fraction,
    zero,
)
from studfinder.errors import StudfinderError
from studfinder.models import LM
from studfinder.quantizers import RTN, KVCache, RotaryPairs, Rotate, Scheme, Split, quantized, quantized_cache
from studfinder.quantizers.activations import ActivationScheme as Rounded
from studfinder.quantizers.activations import round_inputs
from studfinder.quantizers.apply import bench_for
from studfinder.quantizers.folds import swapped
from studfinder.quantizers.streams import quantized_stream
from studfinder.quantizers.targets import targets
from studfinder.sites import (
    AttentionCall,
    BlockOutput,
    Journal,
    Site,
    WriterCall,
    module_inputs,
    tapped,
)
from tiny import tiny, token_ids

IDS = token_ids(1, 6)
DOWN = "model.layers.1.mlp.down_proj.weight"
W4 = RTN(scheme=Scheme(block="channel", zero="integer", scale="float32"))
HOME = os.path.dirname(studfinder.__file__)


def logits(lm: LM) -> torch.Tensor:
    return lm.model(IDS, use_cache=False).logits.detach()


# --- everything that could be left behind ----------------------------------------------------------------------------


def digest(tensor: torch.Tensor) -> Any:
    if tensor.is_meta:
        return "meta"
    return hashlib.sha256(tensor.detach().contiguous().view(-1).view(torch.uint8).numpy().data).digest()


def traces(lm: LM) -> dict[str, Any]:
    """Bits and identities of tensors, attributes and hooks of modules, the config, registries, globals, handlers."""
    found: dict[str, Any] = {"config": lm.model.config.to_dict(), "handlers": handlers()}
    found["gradients"] = torch.is_grad_enabled()
    for name, module in lm.model.named_modules():
        for table in ("_parameters", "_buffers"):
            for leaf, tensor in vars(module)[table].items():
                # accelerate makes a new tensor on the meta device after each use
                place = None if tensor is None or tensor.is_meta else id(tensor)
                found[f"{name} {table} {leaf}"] = tensor is not None and (place, tensor.shape, digest(tensor))
        plain = {key: value for key, value in vars(module).items() if not isinstance(value, dict)}
        found[f"{name} attributes"] = {
            key: value if isinstance(value, int | str) else id(value) for key, value in plain.items()
        }
        found[f"{name} tables"] = {key: list(value) for key, value in vars(module).items() if isinstance(value, dict)}
    for layer in lm.anatomy.layers:
        if layer.attention is not None:
            names = inspect.unwrap(type(lm.model.get_submodule(layer.attention)).forward).__globals__
            registry = names.get("ALL_ATTENTION_FUNCTIONS")
            found["registry"] = dict(registry._local_mapping) if registry else None
            found["globals"] = {key: id(value) for key, value in names.items()}
    found["logits"] = digest(logits(lm))
    return found


def handlers() -> dict[int, Any]:
    return {int(number): signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)}


def difference(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    return [key for key in one.keys() | other.keys() if one.get(key) != other.get(key)]


# --- what can be nested ----------------------------------------------------------------------------------------------


RUN = ("rotated",)
"""Kinds that run the model as they begin and hold what it gives against itself: they come before others change it."""


def chosen(kinds: dict[str, Callable[[], Any]], chance: random.Random, before: list[str]) -> str:
    """One of the kinds that fit into those that were entered before, to which it is added."""
    before.append(chance.choice(sorted(name for name in kinds if name not in RUN or not before)))
    return before[-1]


def contexts(lm: LM, chance: random.Random) -> dict[str, Callable[[], Any]]:
    """Every kind of change that this model takes, each drawn at random."""
    layer = chance.randrange(len(lm.anatomy.layers))
    row, col = chance.randrange(32), chance.randrange(48)
    writer = chance.randrange(len(lm.anatomy.layers[layer].writers))
    weights = chance.choice(
        [
            lambda: entry(lm, layer, row, col, writer),
            lambda: neuron(lm, layer, col, writer),
            lambda: channel(lm, layer, row, writer),
            lambda: top_fraction(lm, chance.choice([0.01, 0.1])),
            lambda: [entry(lm, layer, row, col, writer), neuron(lm, layer, col, writer)],
        ]
    )
    number = chance.choice([0.0, 0.5, -3.0, 1e30])
    site = chance.choice(["embedding", f"residual[{layer}]", f"key.pre_rope[{layer}]", f"value[{layer}]"])
    if lm.anatomy.stage != "post-RoPE":
        site = site.replace(".pre_rope", "")
    change = chance.choice([lambda t: noise(t, 0.5), mean, zero])
    read = {event: [lambda _event: None] for event in (BlockOutput, AttentionCall, WriterCall)}
    rope = lm.anatomy.stage == "post-RoPE"
    found: dict[str, Callable[[], Any]] = {
        "weights edited": lambda: edited(lm, scale(weights(), number)),
        "sites edited": lambda: edited(lm, change(Activations(site, chance.choice([Everything(), LargestEntry()])))),
        "both edited": lambda: edited(lm, [scale(weights(), number), zero(Activations("residual[1]", Everything()))]),
        "read before RoPE": lambda: tapped(lm, read=read, pre_rope=rope),
        "replaced": lambda: tapped(lm, replace={Site("residual", layer): lambda x: x * 1.5}),
        "module inputs": lambda: module_inputs(lm, [lm.anatomy.layers[layer].block]),
        "another head": lambda: swapped(lm, {head_name(lm): torch.zeros(96, 32)}),
    }
    if lm.anatomy.layers[0].writers[0].expert is None:
        found["quantized"] = lambda: quantized(lm, W4)
        found["a block of a stream"] = lambda: quantized_stream(bench_for(lm, W4), W4).at(layer)
        found["inputs rounded"] = lambda: rounded_inputs(lm, Rounded(element="int4"), targets(lm))
    if lm.anatomy.interface:
        found["cache rounded"] = lambda: quantized_cache(lm, KVCache(rope="pre" if rope else "post"))
    if lm.anatomy.architecture in ("llama", "qwen2"):
        found["rotary pairs"] = lambda: quantized(lm, W4, transforms=RotaryPairs())
        found["rotated"] = lambda: quantized(lm, W4, transforms=Rotate())
        found["split"] = lambda: quantized(lm, W4, transforms=Split(neurons=((layer, col),), multiple=16))
    return found


def head_name(lm: LM) -> str:
    head = lm.model.get_output_embeddings()
    return next(name for name, module in lm.model.named_modules() if module is head) + ".weight"


@contextmanager
def rounded_inputs(lm: LM, config: Rounded, chosen: Any) -> Iterator[None]:
    with Journal(lm.model) as journal:
        round_inputs(journal, lm, config, chosen)
        yield


def nest(lm: LM, seed: int) -> None:
    """Enter some changes, run the model, leave them; every draw follows from the seed."""
    chance = random.Random(seed)
    with ExitStack() as stack:
        names: list[str] = []
        for _ in range(chance.randint(1, 4)):
            kinds = contexts(lm, chance)
            stack.enter_context(kinds[chosen(kinds, chance, names)]())
            if chance.random() < 0.3:
                logits(lm)
        logits(lm)
        if chance.random() < 0.2:
            raise ZeroDivisionError
    # The same with the statement itself, whose end lies between two steps of this file.
    kinds = contexts(lm, chance)
    first, second = chance.sample(sorted(kinds), 2)
    if second in RUN:
        first, second = second, first
    with kinds[first](), contexts(lm, chance)[second]():
        logits(lm)


# --- signals ---------------------------------------------------------------------------------------------------------


class Alarm(BaseException):
    """What the handlers of SIGTERM and SIGALRM raise here."""


def alarmed(_number: int, _frame: Any) -> None:
    raise Alarm


@contextmanager
def ready() -> Iterator[None]:
    """Python handlers for three signals, and threads that take turns often."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)}
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, alarmed)
    signal.signal(signal.SIGALRM, alarmed)
    try:
        yield
    finally:
        sys.setswitchinterval(interval)
        for number, handler in before.items():
            signal.signal(number, handler)


def interrupted(run: Callable[[], None], send: Callable[[], Callable[[], None]]) -> BaseException | None:
    """What a signal that `send` brings about ended the run with; it has come by the time that this returns. Whoever
    keeps it keeps the run's frames alive, as an interactive session does: nothing is put back by their end."""
    cancel: Callable[[], None] = lambda: None  # noqa: E731
    try:
        try:
            cancel = send()
            run()
        except (ZeroDivisionError, StudfinderError):
            pass  # an edit of what an outer change passes by says so on leaving
        cancel()
    except (KeyboardInterrupt, Alarm) as error:
        return error
    finally:
        sys.settrace(None)
        signal.setitimer(signal.ITIMER_REAL, 0)
    return None


def by_thread(number: int, delay: float) -> Callable[[], Callable[[], None]]:
    """A real signal from another thread after so many seconds."""

    def send() -> Callable[[], None]:
        thread = threading.Thread(target=lambda: (time.sleep(delay), os.kill(os.getpid(), number)))
        thread.start()
        return lambda: (thread.join(), time.sleep(0.002))  # type: ignore[return-value]

    return send


def by_timer(delay: float) -> Callable[[], Callable[[], None]]:
    """SIGALRM from the system after so many seconds."""

    def send() -> Callable[[], None]:
        signal.setitimer(signal.ITIMER_REAL, delay)
        return lambda: signal.setitimer(signal.ITIMER_REAL, 0)  # type: ignore[return-value]

    return send


def at_step(number: int, step: int) -> tuple[Callable[[], Callable[[], None]], list[int]]:
    """A real signal just before step number `step` (an instruction of Python) of the code that changes and undoes:
    ours and this file's. What is counted comes back in the list, also where no step is that late."""
    count = [0]

    def local(frame: Any, event: str, _argument: Any) -> Any:
        if event == "opcode":
            count[0] += 1
            if count[0] == step:
                sys.settrace(None)
                signal.raise_signal(number)
        return local

    def start(frame: Any, _event: str, _argument: Any) -> Any:
        name = frame.f_code.co_filename
        watched = name == __file__ or name.endswith("contextlib.py") or name.startswith(WATCHED)
        if not watched or frame.f_code.co_name in ("interrupted", "send", "local", "start"):
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        return local

    def send() -> Callable[[], None]:
        sys.settrace(start)
        return lambda: sys.settrace(None)

    return send, count


WATCHED = tuple(
    os.path.join(HOME, *part)
    for part in (
        ("patches", "journal.py"),
        ("patches", "interrupts.py"),
        ("sites", "tap.py"),
        ("sites", "resume.py"),
        ("edits", "apply.py"),
        ("quantizers", "apply.py"),
        ("quantizers", "bench.py"),
        ("quantizers", "folds.py"),
    )
)


def models() -> list[LM]:
    tied = tiny("llama")
    tied.model.lm_head.weight = tied.model.model.embed_tokens.weight
    return [
        tiny("llama"),
        tied,
        tiny("gpt2", dtype=torch.bfloat16),
        tiny("mixtral", dtype=torch.float16),
        tiny("gemma3_text"),
    ]
