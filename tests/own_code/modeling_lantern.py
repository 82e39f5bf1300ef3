"""A decoder in a file of its own: transformers does not know it, and none of its parts has a usual name."""

import torch
from torch import nn
from transformers import GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput


class LanternConfig(PretrainedConfig):
    model_type = "lantern"

    def __init__(self, vocab_size=96, width=32, inner=48, depth=3, parts=4, max_position_embeddings=128, **more):
        self.vocab_size, self.width, self.inner, self.depth, self.parts = vocab_size, width, inner, depth, parts
        self.max_position_embeddings = max_position_embeddings
        super().__init__(**more)


class Look(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.parts = config.parts
        self.all = nn.Linear(config.width, 3 * config.width, bias=False)
        self.back = nn.Linear(config.width, config.width, bias=False)

    def forward(self, x):
        shape = (*x.shape[:2], self.parts, -1)
        query, key, value = (one.view(shape).transpose(1, 2) for one in self.all(x).chunk(3, dim=-1))
        scores = query @ key.transpose(2, 3) / query.shape[-1] ** 0.5
        ahead = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device).triu(1)
        weights = scores.masked_fill(ahead, float("-inf")).softmax(dim=-1)
        return self.back((weights @ value).transpose(1, 2).flatten(2))


class Floor(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.before, self.between = nn.LayerNorm(config.width), nn.LayerNorm(config.width)
        self.look = Look(config)
        self.wide = nn.Linear(config.width, config.inner, bias=False)
        self.narrow = nn.Linear(config.inner, config.width, bias=False)

    def forward(self, x):
        x = x + self.look(self.before(x))
        return x + self.narrow(nn.functional.silu(self.wide(self.between(x))))


class LanternForCausalLM(PreTrainedModel, GenerationMixin):
    config_class = LanternConfig
    base_model_prefix = "lantern"
    _no_split_modules = ("Floor",)

    def __init__(self, config):
        super().__init__(config)
        self.words = nn.Embedding(config.vocab_size, config.width)
        self.floors = nn.ModuleList(Floor(config) for _ in range(config.depth))
        self.last = nn.LayerNorm(config.width)
        self.out = nn.Linear(config.width, config.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self):
        return self.words

    def get_output_embeddings(self):
        return self.out

    def forward(self, input_ids=None, attention_mask=None, **_):
        x = self.words(input_ids)
        for floor in self.floors:
            x = floor(x)
        return CausalLMOutput(logits=self.out(self.last(x)))
