"""Sites: reading changes nothing, replacing changes what it says, and neither leaves a trace."""

from __future__ import annotations

import hashlib
import inspect
from contextlib import ExitStack

import pytest
import torch

from studfinder.errors import StudfinderError
from studfinder.models import LM, rotary_of
from studfinder.sites import AttentionCall, BlockOutput, ModelCall, Site, WriterCall, capture, replacing, tapped
from tiny import ARCHITECTURES, H, tiny, token_ids

EVENTS = (BlockOutput, AttentionCall, WriterCall)
ROTARY = [a for a in ARCHITECTURES if a not in ("bloom", "gpt2", "gpt_neo", "opt", "falcon")]
PADDED = torch.ones(3, 12, dtype=torch.long)
PADDED[1, :4] = 0
PADDED[2, :7] = 0


def bits(tensor: torch.Tensor) -> bytes:
    """Numbers by their bit patterns, so that equality is exact and NaN equals itself."""
    return hashlib.sha256(tensor.contiguous().view(torch.uint8).numpy().data).digest()


def logits(lm: LM, ids: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    with torch.no_grad():
        return lm.model(input_ids=ids, attention_mask=mask).logits


def reading(lm: LM, seen: list | None = None, **options):
    """A tap with a reader of every kind."""
    return tapped(lm, read={event: [(seen if seen is not None else []).append] for event in EVENTS}, **options)


def attention_layer(lm: LM) -> int:
    return next(i for i, layer in enumerate(lm.anatomy.layers) if layer.attention is not None)


def replaceable(lm: LM) -> list[Site]:
    """One site of every kind that this model has and that can be replaced."""
    layer = attention_layer(lm)
    stages = {"pre-RoPE": [".pre_rope"], "post-RoPE": ["", ".pre_rope"], "no RoPE": [""]}[lm.anatomy.stage]
    sites = [Site("embedding"), Site("residual", layer), Site("value", layer)]
    sites += [Site(name + stage, layer) for name in ("query", "key") for stage in stages]
    writers = lm.anatomy.layers[layer].writers
    plain = next((w for w, ref in enumerate(writers) if ref.expert is None), None)
    if plain is not None:
        sites += [Site(f"down_proj.{end}", layer, plain) for end in ("input", "output")]
    return sites


def traces(lm: LM) -> dict:
    """Everything that a tap could leave behind: hooks, attributes, registries, module globals."""
    found: dict = {}
    for name, module in lm.model.named_modules():
        found[name] = (
            list(module._forward_hooks),
            list(module._forward_pre_hooks),
            sorted(vars(module)),
        )
    for layer in lm.anatomy.layers:
        if layer.attention is not None:
            names = inspect.unwrap(type(lm.model.get_submodule(layer.attention)).forward).__globals__
            registry = names.get("ALL_ATTENTION_FUNCTIONS")
            found["registry"] = dict(registry._global_mapping) if registry else None
            found["local registry"] = dict(registry._local_mapping) if registry else None
            found["rotate"] = names.get("apply_rotary_pos_emb")
            found["eager"] = names.get("eager_attention_forward")
    found["implementation"] = lm.model.config._attn_implementation
    return found


# --- reading changes nothing --------------------------------------------------------------------------------------


@pytest.mark.parametrize("attention", ["eager", None])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_logits_are_bit_equal_with_every_reader_on(architecture, attention):
    """Law 1: reading changes nothing."""
    lm = tiny(architecture, attention=attention)
    ids = token_ids(3, 12)
    for mask in (None, PADDED, PADDED.flip(1)):
        for pre_rope in (False, True):
            clean, seen = logits(lm, ids, mask), []
            with reading(lm, seen, pre_rope=pre_rope):
                read = logits(lm, ids, mask)
            assert bits(read) == bits(clean)
            layers = range(len(lm.anatomy.layers))
            assert [e.layer for e in seen if isinstance(e, BlockOutput)] == [-1, *layers]
            assert {e.layer for e in seen if isinstance(e, WriterCall)} == set(layers)
            attending = [i for i in layers if lm.anatomy.layers[i].attention is not None]
            assert [e.layer for e in seen if isinstance(e, AttentionCall)] == attending


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_generation_with_a_cache_is_the_same_with_every_reader_on(architecture):
    """Law 1 with a cache."""
    lm = tiny(architecture)
    options = {
        "attention_mask": PADDED,
        "max_new_tokens": 4,
        "do_sample": False,
        "pad_token_id": 0,
        "output_logits": True,
        "return_dict_in_generate": True,
    }
    clean = lm.model.generate(token_ids(3, 12), **options)
    with reading(lm, pre_rope=True):
        read = lm.model.generate(token_ids(3, 12), **options)
    assert read.sequences.tolist() == clean.sequences.tolist()
    assert bits(torch.stack(read.logits)) == bits(torch.stack(clean.logits))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_reading_inside_a_replacement_changes_nothing_and_the_replacement_does(architecture):
    """Law 1 inside an edit."""
    lm = tiny(architecture)
    ids = token_ids(3, 12)
    clean = logits(lm, ids)
    for site in replaceable(lm):
        with tapped(lm, replace={site: lambda tensor: tensor.roll(1, dims=-1) * 3}):
            replaced = logits(lm, ids)
            with reading(lm, pre_rope=True):
                assert bits(logits(lm, ids)) == bits(replaced), site
        assert not torch.allclose(replaced, clean, atol=1e-6), site
    assert bits(logits(lm, ids)) == bits(clean)


def test_a_keys_history_is_shown_whole_and_only_new_keys_before_rope():
    lm = tiny("llama")
    seen: list = []
    first = lm.model(input_ids=token_ids(2, 6), use_cache=True)
    with reading(lm, seen, pre_rope=True), torch.no_grad():
        lm.model(input_ids=token_ids(2, 2, seed=1), past_key_values=first.past_key_values)
    call = next(event for event in seen if isinstance(event, AttentionCall))
    assert (call.query_BHTD.shape[2], call.key_BGSD.shape[2], call.key_pre_BGTD.shape[2]) == (2, 8, 2)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_call_is_shown_first_with_its_past_and_its_padding(architecture):
    lm = tiny(architecture)
    seen: list = []
    with tapped(lm, read={ModelCall: [seen.append], BlockOutput: [seen.append]}):
        lm.model.generate(
            token_ids(3, 12), attention_mask=PADDED, max_new_tokens=3, do_sample=False, pad_token_id=0, eos_token_id=-1
        )
        with torch.no_grad():
            lm.model(token_ids(2, 5), None, use_cache=False)
            lm.model.get_submodule(lm.anatomy.decoder)(token_ids(3, 12), attention_mask=PADDED, use_cache=False)
    calls = [event for event in seen if isinstance(event, ModelCall)]
    assert [seen.index(call) % (len(lm.anatomy.layers) + 2) for call in calls] == [0, 0, 0, 0, 0]
    assert [(call.batch, call.tokens, call.past) for call in calls] == [
        (3, 12, 0),
        (3, 1, 12),
        (3, 1, 13),
        (2, 5, 0),
        (3, 12, 0),
    ]
    assert [call.caching for call in calls] == [True, True, True, False, False]
    assert torch.equal(calls[0].real_BT, PADDED.bool())
    assert torch.equal(calls[4].real_BT, PADDED.bool())
    assert calls[0].position_BT[:, -1].tolist() == [11, 7, 4]
    assert calls[2].real_BT.tolist() == [[True]] * 3
    assert calls[2].position_BT.tolist() == [[13], [9], [6]]
    assert calls[3].real_BT.all()
    assert calls[3].position_BT.tolist() == [[0, 1, 2, 3, 4]] * 2


def test_a_call_that_fails_does_not_hide_the_next_call_of_the_decoder():
    lm = tiny("llama")
    seen: list = []
    with tapped(lm, read={ModelCall: [seen.append]}), torch.no_grad():
        with pytest.raises(IndexError):
            lm.model(token_ids(1, 4) + 10**6, use_cache=False)
        lm.model.model(token_ids(2, 4), use_cache=False)
    assert [call.batch for call in seen] == [1, 2]


def test_a_mask_that_does_not_say_what_padding_is_is_refused_when_asked():
    call = ModelCall(2, 3, 0, torch.zeros(2, 1, 3, 3), False)
    for ask in ("real_BT", "position_BT"):
        with pytest.raises(StudfinderError, match="which tokens are padding"):
            getattr(call, ask)


def test_whether_a_model_is_being_replaced_is_known():
    lm = tiny("llama")
    assert not replacing(lm)
    with reading(lm):
        assert not replacing(lm)
        with tapped(lm, replace={Site("residual", 1): lambda x: x}) as tap, reading(lm):
            assert replacing(lm)
            assert not replacing(tiny("llama", seed=1))
        assert not replacing(lm)
    assert tap


def test_readers_get_no_gradient_and_gradients_still_flow():
    lm = tiny("llama")
    seen: list = []
    with reading(lm, seen), tapped(lm, replace={Site("residual", 1): lambda hidden: hidden * 2}):
        lm.model(input_ids=token_ids(), labels=token_ids()).loss.backward()
    assert all(parameter.grad is not None for parameter in lm.model.parameters())


# --- no trace -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("error", [None, ValueError, KeyboardInterrupt])
def test_nothing_is_left_behind(architecture, error):
    """Law 2: a tap leaves nothing."""
    lm = tiny(architecture)
    before, clean = traces(lm), logits(lm, token_ids())

    def stop(event) -> None:
        if error is not None and event.layer == len(lm.anatomy.layers) - 1:
            raise error

    def run() -> None:
        replace = {site: lambda tensor: tensor * 2 for site in replaceable(lm)}
        with tapped(lm, replace=replace), tapped(lm, read={event: [stop] for event in EVENTS}, pre_rope=True):
            assert traces(lm) != before
            logits(lm, token_ids())

    if error is None:
        run()
    else:
        with pytest.raises(error):
            run()
    assert traces(lm) == before
    assert bits(logits(lm, token_ids())) == bits(clean)


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
@pytest.mark.parametrize("architecture", ["llama", "gpt_neo", "falcon"])
def test_a_failed_pass_does_not_disturb_the_next_one_under_the_same_tap(architecture, error):
    lm = tiny(architecture)
    fail = [True]

    def once(tensor: torch.Tensor) -> torch.Tensor:
        if fail.pop():
            raise error
        fail.append(False)
        return tensor

    fail[:] = [True]
    seen: list = []
    site = replaceable(lm)[2]  # value: after Q and K have been seen
    with reading(lm, seen, pre_rope=True), tapped(lm, replace={site: once}):
        with pytest.raises(error):
            logits(lm, token_ids())
        fail[:] = [False]
        seen.clear()
        logits(lm, token_ids())
    assert [e.layer for e in seen if isinstance(e, AttentionCall)] == [0, 1, 2]


def test_a_tap_that_cannot_be_installed_leaves_the_outer_one_working():
    lm = tiny("mixtral")
    before, seen = traces(lm), []
    with reading(lm, seen):
        with pytest.raises(StudfinderError), tapped(lm, replace={Site("down_proj.output", 1, 2): lambda y: y}):
            pass
        logits(lm, token_ids())
    assert {type(event) for event in seen} == set(EVENTS)
    assert traces(lm) == before


# --- nesting ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reader_first", [True, False])
@pytest.mark.parametrize("architecture", ["llama", "falcon", "gpt2", "gpt_neo", "bloom", "phi", "gpt_oss", "qwen2_moe"])
def test_readers_see_replaced_values_in_either_order(architecture, reader_first):
    lm = tiny(architecture)
    for site in replaceable(lm):
        shown: list = []

        def look(event, site=site, shown=shown) -> None:  # at once: some models write into a tensor later
            shown += [tensor.clone() for place, tensor in places(event) if place == site]

        with ExitStack() as stack:
            taps = [
                lambda look=look: tapped(lm, read={event: [look] for event in EVENTS}, pre_rope=True),
                lambda site=site: tapped(lm, replace={site: lambda tensor: torch.full_like(tensor, 0.75)}),
            ]
            for tap in taps if reader_first else reversed(taps):
                stack.enter_context(tap())
            logits(lm, token_ids())
        assert len(shown) == 1, site
        turned = 2 * len(rotary_of(lm, site.layer).inv_freq) if site.kind.endswith("pre_rope") else None
        assert (shown[0][..., :turned] == 0.75).all(), site


def places(event) -> list[tuple[Site, torch.Tensor | None]]:
    """The sites that an event shows."""
    if isinstance(event, BlockOutput):
        return [(Site("embedding") if event.layer < 0 else Site("residual", event.layer), event.hidden_BTC)]
    if isinstance(event, WriterCall):
        return [
            (Site("down_proj.input", event.layer, event.writer), event.input_NF),
            (Site("down_proj.output", event.layer, event.writer), event.output_NC),
        ]
    return [
        (Site("query", event.layer), event.query_BHTD),
        (Site("key", event.layer), event.key_BGSD),
        (Site("value", event.layer), event.value_BGSD),
        (Site("query.pre_rope", event.layer), event.query_pre_BHTD),
        (Site("key.pre_rope", event.layer), event.key_pre_BGTD),
    ]


def test_replacements_run_in_the_order_their_taps_were_entered():
    lm = tiny("llama")
    site = Site("residual", 0)
    with tapped(lm, replace={site: lambda x: x * 0 + 2}), tapped(lm, replace={site: lambda x: x * x + 1}):
        assert (capture(lm, token_ids(), [site])["residual[0]"] == 5).all()


@pytest.mark.parametrize("first_out", [0, 1])
@pytest.mark.parametrize("architecture", ["llama", "falcon", "gpt2"])
def test_two_tapped_models_do_not_meet(architecture, first_out):
    models = tiny(architecture), tiny(architecture, seed=1)
    before = [(traces(lm), logits(lm, token_ids())) for lm in models]
    stacks, seen = [ExitStack(), ExitStack()], ([], [])
    for stack, lm, events in zip(stacks, models, seen, strict=True):
        stack.enter_context(reading(lm, events, pre_rope=True))
    with reading(models[0], pre_rope=True):  # renews the hooks of one while the other's are in place
        assert [bits(logits(lm, token_ids())) for lm in models] == [bits(clean) for _, clean in before]
    assert [len(events) for events in seen] == [10, 10]  # the embedding and, for each of 3 layers, 3 events
    second_out = 1 - first_out
    stacks[first_out].close()
    assert [bits(logits(lm, token_ids())) for lm in models] == [bits(clean) for _, clean in before]
    assert (len(seen[first_out]), len(seen[second_out])) == (10, 20)
    stacks[second_out].close()
    assert [traces(lm) for lm in models] == [trace for trace, _ in before]
    assert [bits(logits(lm, token_ids())) for lm in models] == [bits(clean) for _, clean in before]


# --- before RoPE --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ROTARY)
def test_q_and_k_before_rope_rotated_by_hand_are_those_after(architecture):
    lm = tiny(architecture)
    for layer, part in enumerate(lm.anatomy.layers):
        if part.attention is None:
            continue
        names = [f"{tensor}{stage}[{layer}]" for tensor in ("query", "key") for stage in (".pre_rope", "")]
        seen = capture(lm, token_ids(2, 20), names)
        rotary = rotary_of(lm, layer)
        for tensor in ("query", "key"):
            before, after = seen[f"{tensor}.pre_rope[{layer}]"], seen[f"{tensor}[{layer}]"]
            scale = 1.0
            if architecture == "gpt_oss":  # YaRN scales the cosines
                scale = float(after[:, :, 0].norm() / before[:, :, 0].norm())
            torch.testing.assert_close(rotated(before, rotary) * scale, after, atol=1e-5, rtol=1e-4)
            assert not torch.allclose(before, after, atol=1e-4)


def rotated(tensor_BHTD: torch.Tensor, rotary) -> torch.Tensor:
    """Every pair turned by its frequency times the position; dims without a pair stay."""
    turned = tensor_BHTD.clone()
    positions = torch.arange(tensor_BHTD.shape[2])
    for pair, frequency in enumerate(rotary.inv_freq):
        i, j = (dim for dim in range(rotary.head_dim) if rotary.pair_of(dim) == pair)
        cos, sin = (positions * frequency).cos(), (positions * frequency).sin()
        x, y = tensor_BHTD[..., i], tensor_BHTD[..., j]
        turned[..., i], turned[..., j] = x * cos - y * sin, y * cos + x * sin
    return turned


@pytest.mark.parametrize(("architecture", "pairs"), [("phi", 2), ("stablelm", 2), ("gpt_neox", 2), ("llama", 4)])
def test_partial_rotary_is_known(architecture, pairs):
    assert len(rotary_of(tiny(architecture), 1).inv_freq) == pairs


# --- refusals -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("architecture", "site", "words"),
    [
        ("llama", "residual[3]", "a layer from 0 to 2"),
        ("llama", "residual", "not a site"),
        ("llama", "embedding[0]", "not a site"),
        ("llama", "attention[0]", "not a site"),
        ("llama", "down_proj.output[0,1]", "a writer from 0 to 0"),
        ("gpt2", "query.pre_rope[0]", "no RoPE"),
        ("falcon", "query[0]", "Use query.pre_rope"),
        ("lfm2", "value[2]", "layer 2 has no attention"),
    ],
)
def test_a_site_that_is_not_there_is_an_error(architecture, site, words):
    with pytest.raises(StudfinderError, match=words):
        capture(tiny(architecture), token_ids(), [site])


@pytest.mark.parametrize("architecture", ["mixtral", "qwen3_moe", "gpt_oss"])
@pytest.mark.parametrize("end", ["input", "output"])
def test_replacing_inside_a_fused_expert_is_refused(architecture, end):
    site = Site(f"down_proj.{end}", 1, 3)
    with pytest.raises(StudfinderError, match="fused expert"), tapped(tiny(architecture), replace={site: lambda x: x}):
        pass


def test_a_site_that_the_pass_does_not_reach_is_an_error():
    lm = tiny("mixtral")
    with pytest.raises(StudfinderError, match="did not reach"):  # one token goes to two of four experts
        capture(lm, token_ids(1, 1), [Site("down_proj.input", 0, w) for w in range(H)])


@pytest.mark.parametrize("name", ["embedding", "residual[0]", "key.pre_rope[12]", "down_proj.input[3,7]"])
def test_a_site_reads_its_own_name(name):
    assert str(Site.parse(name)) == name
