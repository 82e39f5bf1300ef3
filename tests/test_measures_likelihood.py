"""Fast likelihoods are the plain ones, in every architecture."""

from __future__ import annotations

import pytest
import torch

import studfinder.attention as sa
from studfinder import sites
from studfinder.edits import edited, massive_value_disruption
from studfinder.errors import StudfinderError
from studfinder.measures import likelihood, scorer
from studfinder.measures.likelihood import batch_size, log_likelihoods
from studfinder.passes import head
from tiny import ARCHITECTURES, V, tiny, token_ids


def plain(lm, requests):
    """One request at a time, the whole model, all logits."""
    found = []
    for context, continuation in requests:
        with torch.no_grad():
            logits = lm.model(input_ids=torch.tensor([context + continuation]), use_cache=False).logits[0].double()
        log_p = logits.log_softmax(-1)[len(context) - 1 : -1]
        targets = torch.tensor(continuation)
        found.append((float(log_p[range(len(targets)), targets].sum()), bool((log_p.argmax(-1) == targets).all())))
    return found


def choices(seed=0, head=0):
    """Questions of unequal lengths with answers of unequal lengths, after a common beginning."""
    ids = token_ids(1, 400, seed)[0].tolist()
    begin, requests = ids[:head], []
    for question, context in enumerate((9, 23, 12, 10, 22, 1)):
        for answer in range(4):
            at = 40 + 7 * question
            own = ids[at : at + context]
            requests.append((begin + own, ids[200 + 11 * answer + question :][: 1 + (question * answer + answer) % 7]))
    return requests


def agree(lm, requests, **options):
    fast = log_likelihoods(lm, requests, **options)
    for found, (logprob, greedy), (_, continuation) in zip(fast, plain(lm, requests), requests, strict=True):
        assert found.logprob == pytest.approx(logprob, abs=2e-4)
        assert (found.greedy, found.tokens) == (greedy, len(continuation))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("head", [0, 30])
def test_every_architecture_scores_as_plain_passes_do(architecture, head):
    lm = tiny(architecture)
    if architecture == "gemma2":  # logits so large that their soft cap shows
        lm.model.config.final_logit_softcapping = 0.5
    agree(lm, choices(head=head))


@pytest.mark.parametrize("architecture", ["llama", "mistral", "gpt2"])
def test_nothing_depends_on_batch_size_or_order(architecture):
    """Law 10 for likelihoods."""
    lm, requests = tiny(architecture, dtype=torch.float64), choices(head=20)
    one, all_at_once = (log_likelihoods(lm, requests, batch_tokens=size) for size in (1, 100_000))
    turned = log_likelihoods(lm, requests[::-1])[::-1]
    for a, b, c in zip(one, all_at_once, turned, strict=True):
        assert a.logprob == pytest.approx(b.logprob, abs=1e-5)
        assert a.logprob == pytest.approx(c.logprob, abs=1e-5)


def passes(lm):
    """What the decoder is called with from now on, and how to stop listening."""
    seen = []
    hook = lm.model.model.register_forward_pre_hook(lambda _m, _a, kwargs: seen.append(kwargs), with_kwargs=True)
    return seen, hook


def test_a_shared_context_is_read_once():
    lm = tiny("llama")
    requests = [(ids, [token]) for ids in token_ids(3, 40).tolist() for token in (5, 6, 7)]
    requests += [(ids, [5, token, 8]) for ids, _ in requests[::3] for token in (5, 6, 7)]
    agree(lm, requests)
    seen, hook = passes(lm)
    try:
        log_likelihoods(lm, requests)
    finally:
        hook.remove()
    # Two or three short passes try what the model can do; the rest is every token of the tree once.
    read = [(*context, *continuation[:-1]) for context, continuation in requests]
    assert seen[-1]["input_ids"].numel() == len({row[: end + 1] for row in read for end in range(len(row))})
    assert sum(kwargs["input_ids"].numel() for kwargs in seen[:-1]) < 50


def test_a_beginning_common_to_all_is_read_before():
    lm = tiny("llama")
    begin = token_ids(1, 30, 3)[0].tolist()
    requests = [(begin + own, [token]) for own in token_ids(3, 20).tolist() for token in (5, 6, 7)]
    agree(lm, requests)
    seen, hook = passes(lm)
    try:
        log_likelihoods(lm, requests, batch_tokens=20)
    finally:
        hook.remove()
    assert [kwargs["input_ids"].numel() for kwargs in seen[-4:]] == [30, 20, 20, 20]


@pytest.mark.parametrize("architecture", ["llama", "bloom", "gemma3_text"])
def test_passes_side_by_side_are_those_one_after_the_other(architecture, monkeypatch):
    """Law 10: nor on the number of workers."""
    lm = tiny(architecture)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    agree(lm, choices(head=20), batch_tokens=40)


def test_an_error_in_one_of_several_passes_ends_them_all(monkeypatch):
    lm, calls = tiny("llama"), []
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)

    def broken(*_):
        calls.append(1)
        raise StudfinderError("broken")

    monkeypatch.setattr(scorer, "at_targets", broken)
    with pytest.raises(StudfinderError, match="broken"):
        log_likelihoods(lm, choices(), batch_tokens=8)
    assert len(calls) < 24


def test_models_that_cannot_share_do_not():
    for architecture, shares in {"llama": True, "gpt2": True, "opt": True, "falcon": True, "bloom": False}.items():
        with torch.no_grad(), scorer.scoring(tiny(architecture)) as one:
            assert one.takes_packs() is shares


def test_variants_of_attention_that_keep_more_than_keys_and_values():
    lm = tiny("llama")
    sa.convert(lm, sa.KVShift(init="paper"))
    agree(lm, choices(head=20))


def test_while_a_site_is_replaced_every_request_is_one_full_masked_pass(monkeypatch):
    lm, seen = tiny("llama"), []
    sites.check_causal(lm, "likelihoods")  # kept: its passes are not among those that are counted
    monkeypatch.setattr(sites, "replacing", lambda _lm: True)
    hook = lm.model.model.register_forward_pre_hook(lambda _m, _a, kwargs: seen.append(kwargs), with_kwargs=True)
    try:
        log_likelihoods(lm, choices(head=20))
    finally:
        hook.remove()
    assert all(kwargs["past_key_values"] is None for kwargs in seen[1:])
    assert {tuple(row) for kwargs in seen[1:] for row in kwargs["attention_mask"].tolist()}
    assert sum(len(kwargs["input_ids"]) for kwargs in seen[1:]) == len({(*c, *a[:-1]) for c, a in choices(head=20)})
    agree(lm, choices(head=20))


def test_a_head_that_is_not_understood_is_left_to_the_model(monkeypatch):
    lm = tiny("llama")
    forward = lm.model.forward

    def scaled(*args, **kwargs):
        output = forward(*args, **kwargs)
        output.logits = output.logits * 3
        return output

    monkeypatch.setattr(lm.model, "forward", scaled)
    assert head.head_of(lm) is None
    agree(lm, choices(head=20))


def test_scales_and_caps_of_the_config_are_applied(monkeypatch):
    lm = tiny("gemma2")
    assert lm.model.config.final_logit_softcapping
    assert head.head_of(lm) is not None
    monkeypatch.setattr(lm.model.config, "logit_scale", 0.5, raising=False)
    assert head.head_of(lm) is None


def test_too_long_is_an_error_or_cut_from_the_left():
    lm = tiny("llama")
    ids = token_ids(1, 200)[0].tolist()
    with pytest.raises(StudfinderError, match="no more than 128 to read"):
        log_likelihoods(lm, [(ids[:150], ids[150:160])])
    cut = log_likelihoods(lm, [(ids[:150], ids[150:160])], truncate=True)
    assert cut == log_likelihoods(lm, [(ids[31:150], ids[150:160])])
    assert log_likelihoods(lm, [(ids[:120], ids[120:129])])[0].tokens == 9
    with pytest.raises(StudfinderError, match="no more than 128"):
        log_likelihoods(lm, [(ids[:2], ids[:130])], truncate=True)


@pytest.mark.parametrize(
    ("request_", "says"), [(([], [5]), "no context"), (([5], []), "no continuation"), (([V], [5]), "embedding")]
)
def test_a_bad_request_is_named(request_, says):
    with pytest.raises(StudfinderError, match=f"request 1.*{says}"):
        log_likelihoods(tiny("llama"), [([5], [6]), request_])


def test_no_requests_is_no_work():
    assert log_likelihoods(tiny("llama"), []) == []


def test_progress_counts_requests():
    done = []
    log_likelihoods(tiny("llama"), choices(), progress=done.append)
    assert sum(done) == len(choices())


def test_the_common_beginning_stops_before_a_contexts_last_token():
    rows = likelihood._rows([(list(range(20)), [1]), (list(range(20)), [2, 3]), (list(range(25)), [4])])
    assert likelihood._beginning(rows) == 19


@pytest.mark.parametrize("architecture", ["llama", "gemma2", "gpt2"])
def test_an_edit_that_depends_on_all_tokens_sees_those_of_its_request_alone(architecture):
    lm, requests = tiny(architecture), choices(head=20)
    with edited(lm, massive_value_disruption(lm, 2)):
        found = log_likelihoods(lm, requests)
        for likelihood_, (context, continuation) in zip(found, requests, strict=True):
            with torch.no_grad():
                logits = lm.model(torch.tensor([(context + continuation)[:-1]]), use_cache=False).logits[0].double()
            log_p = logits.log_softmax(-1)[len(context) - 1 :]
            plain_ = float(log_p[range(len(continuation)), continuation].sum())
            assert likelihood_.logprob == pytest.approx(plain_, abs=2e-4)
    assert found != log_likelihoods(lm, requests)


def test_where_memory_does_not_hold_a_pass_it_is_read_in_halves(monkeypatch):
    lm, requests = tiny("gpt2", dtype=torch.float64), choices()
    whole = log_likelihoods(lm, requests, batch_tokens=100_000)
    sizes = []

    def read(self, rows, *rest, own=scorer.Scorer.whole):
        sizes.append(len(rows))
        if len(rows) > 5:
            raise torch.OutOfMemoryError("too much")
        return own(self, rows)

    monkeypatch.setattr(likelihood, "_can_share", lambda *_: False)
    monkeypatch.setattr(scorer.Scorer, "whole", read)
    for a, b in zip(whole, log_likelihoods(lm, requests, batch_tokens=100_000), strict=True):
        assert a.logprob == pytest.approx(b.logprob, abs=1e-9)
    assert max(sizes) > 5 >= min(sizes)


def test_one_sequence_that_memory_does_not_hold_is_an_error(monkeypatch):
    def read(self, rows):
        raise torch.OutOfMemoryError("too much")

    monkeypatch.setattr(likelihood, "_can_share", lambda *_: False)
    monkeypatch.setattr(scorer.Scorer, "whole", read)
    with pytest.raises(StudfinderError, match="a sequence of 3 tokens does not fit into memory"):
        log_likelihoods(tiny("gpt2"), [([1, 2, 3], [4])])


def test_a_batch_size_holds_for_all_that_is_read_inside():
    lm, requests = tiny("llama"), choices()
    shapes = []
    for size in (1, 100_000):
        seen, hook = passes(lm)
        with batch_size(size):
            log_likelihoods(lm, requests)
        hook.remove()
        shapes.append(len(seen))
    assert shapes[0] > 2 * shapes[1]
    with pytest.raises(StudfinderError, match="a batch of 0 tokens"), batch_size(0):
        pass
