"""Live models that are not as transformers makes them: compiled, pruned, without a head, with attention by a rule."""

from __future__ import annotations

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

import studfinder as sf
from checkpoints import PROMPT
from outside import quick_and_deep
from studfinder.errors import StudfinderError
from tiny import CONFIGS, tiny, tokenizer

EAGER = {"backend": "eager"}


def whole(model):
    return torch.compile(model, **EAGER)


def method(model):
    model.compile(**EAGER)
    return model


def forward(model):
    model.forward = torch.compile(model.forward, **EAGER)
    return model


def block(model):
    model.model.layers[0] = torch.compile(model.model.layers[0], **EAGER)
    return model


def feed_forward(model):
    model.model.layers[1].mlp.forward = torch.compile(model.model.layers[1].mlp.forward, **EAGER)
    return model


def attention(model):
    model.model.layers[2].self_attn = torch.compile(model.model.layers[2].self_attn, **EAGER)
    return model


@pytest.mark.parametrize("used", quick_and_deep([False, True], True))
@pytest.mark.parametrize("compiled", quick_and_deep([whole, method, forward, block, feed_forward, attention], block))
@pytest.mark.parametrize("architecture", quick_and_deep(["llama", "qwen3", "gemma3_text"], "llama"))
def test_a_compiled_model_is_read_as_it_was_written(architecture, compiled, used):
    torch._dynamo.reset()
    wanted = sf.scan(sf.load(tiny(architecture).model, tokenizer()), prompts=[PROMPT], prove=False)
    model = compiled(tiny(architecture).model)
    if used:
        with torch.no_grad():
            model(input_ids=torch.tensor([[1, 3, 4, 5]]))
    lm = sf.load(model, tokenizer())
    if compiled is attention:  # its wrapper hides where attention is called
        with pytest.raises(StudfinderError, match="OptimizedModule does not use transformers' attention interface"):
            sf.scan(lm, prompts=[PROMPT], prove=False)
        return
    found = sf.scan(lm, prompts=[PROMPT], prove=False)
    assert found.summary == wanted.summary
    assert found.attention_sinks == wanted.attention_sinks


@pytest.mark.parametrize("kind", [AutoModelForSequenceClassification, AutoModelForTokenClassification, AutoModel])
@pytest.mark.parametrize("architecture", ["llama", "gpt2", "falcon", "qwen2", "qwen3", "gemma", "mistral", "gpt_neox"])
def test_a_model_without_a_head_is_refused_by_name(architecture, kind):
    model = kind.from_config(AutoConfig.for_model(architecture, **CONFIGS[architecture]))
    with pytest.raises(StudfinderError, match=f"a {type(model).__name__} has no language-model head"):
        sf.load(model, tokenizer())


@pytest.mark.parametrize("layer", quick_and_deep([0, 1, 2], 1))
@pytest.mark.parametrize("heads", quick_and_deep([2, 1], 1))
def test_heads_that_were_pruned_in_one_layer(tmp_path, layer, heads):
    lm = tiny("llama")
    part = lm.model.model.layers[layer].self_attn
    part.q_proj = torch.nn.Linear(32, 8 * heads, bias=False)
    part.o_proj = torch.nn.Linear(8 * heads, 32, bias=False)
    if heads == 1:
        part.k_proj = torch.nn.Linear(32, 8, bias=False)
        part.v_proj = torch.nn.Linear(32, 8, bias=False)
    part.num_key_value_groups = 1
    lm = sf.load(lm.model, tokenizer())
    found = sf.scan(lm, prompts=[PROMPT], out=tmp_path / "s")
    assert found.summary.sink_heads == 4 + 4 + heads
    assert (tmp_path / "s" / "figure-maps.png").is_file()
    sf.measure(lm, ["perplexity"], limit=2, out=tmp_path / "m")
    with pytest.raises(StudfinderError, match="plain transformers cannot load"):  # its config does not say so
        sf.quantize(lm, out=tmp_path / "q")
    assert not (tmp_path / "q").exists()


@pytest.mark.parametrize("architecture", quick_and_deep(["llama", "qwen3", "gemma3_text"], "llama"))
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile", "ignore::DeprecationWarning")
def test_attention_whose_mask_is_a_rule(architecture):
    plain, flex = (tiny(architecture, attention=name) for name in ("eager", "flex_attention"))
    found, wanted = (
        sf.scan(sf.load(lm.model, tokenizer()), prompts=[PROMPT, PROMPT + " w9"], prove=False, batch_size=2)
        for lm in (flex, plain)
    )
    assert [(s.layer, s.head) for s in found.attention_sinks] == [(s.layer, s.head) for s in wanted.attention_sinks]
    for one, other in zip(found.attention_sinks, wanted.attention_sinks, strict=True):
        assert one.strength == pytest.approx(other.strength, rel=1e-3)


@pytest.mark.parametrize("token", [-1, -2, -96, 0, 95])
def test_any_padding_token(tmp_path, token):
    lm = tiny("llama")
    lm.model.config.pad_token_id = token
    lm = sf.load(lm.model, tokenizer())
    sf.scan(lm, prompts=[PROMPT, PROMPT + " w9"], batch_size=2)
    sf.measure(lm, ["perplexity"], limit=2)


class Wrapped(torch.nn.Module):
    def __init__(self, model) -> None:
        super().__init__()
        self.module = model


@pytest.mark.parametrize(
    "wrap",
    [Wrapped, torch.nn.DataParallel, torch.nn.Sequential, lambda m: [m], lambda m: None, lambda m: m.state_dict()],
)
def test_other_objects_are_refused_by_name(wrap, tmp_path):
    with pytest.raises(StudfinderError, match="cannot load a "):
        sf.load(wrap(tiny("llama").model), tokenizer())


ENDS = r"expected a causal language model, or an image-text or omni model, which contains one\."
KINDS = {
    "t5": (AutoModelForSeq2SeqLM, r"a T5ForConditionalGeneration \(t5\) is an encoder-decoder; " + ENDS),
    "bert": (AutoModelForMaskedLM, r"a BertForMaskedLM \(bert\) is an encoder, which fills in masked tokens; " + ENDS),
}


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_decoder_is_refused_by_name(kind):
    auto, line = KINDS[kind]
    sizes = {"vocab_size": 96, "num_layers": 1, "num_hidden_layers": 1, "d_model": 32, "hidden_size": 32}
    model = auto.from_config(AutoConfig.for_model(kind, **sizes, num_attention_heads=2, num_heads=2, d_kv=16, d_ff=48))
    with pytest.raises(StudfinderError, match=line):
        sf.load(model, tokenizer())


@pytest.mark.parametrize("used", ["as peft gives it", "its model", "compiled", "added by transformers"])
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
def test_an_adapter_on_a_live_model_is_refused_until_it_is_merged(used):
    peft = pytest.importorskip("peft")
    model, config = tiny("llama").model, peft.LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    if used == "added by transformers":
        model.add_adapter(config)
        given = model
    else:
        wrapped = peft.get_peft_model(model, config)
        ways = {"its model": lambda: wrapped.base_model.model, "compiled": lambda: whole(wrapped)}
        given = ways.get(used, lambda: wrapped)()
    with pytest.raises(
        StudfinderError, match=r"carries an adapter \(peft\).*Give model\.merge_and_unload\(\), or load"
    ):
        sf.load(given, tokenizer())
    if used == "as peft gives it":
        assert sf.load(given.merge_and_unload(), tokenizer()).anatomy.architecture == "llama"


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_a_model_that_torch_quantised_is_refused_by_name():
    model = torch.ao.quantization.quantize_dynamic(tiny("llama").model, {torch.nn.Linear}, dtype=torch.qint8)
    with pytest.raises(StudfinderError, match=r"this LlamaForCausalLM is quantised by torch\.ao"):
        sf.load(model, tokenizer())
