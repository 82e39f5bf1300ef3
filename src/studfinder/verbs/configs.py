"""The settings of each verb, as one record: its keywords in Python, its options on the command line (`records.config`).

What a field is stands in its help, once. No torch here: `studfinder --help` reads this file.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from studfinder.records.config import Config, option
from studfinder.records.loading import LoadConfig, ReadConfig, SourceConfig
from studfinder.records.outside import whole_number
from studfinder.runs import Progress
from studfinder.runs.progress import in_notebook

if TYPE_CHECKING:
    from studfinder.quantizers import Method, Scheme
    from studfinder.quantizers.transforms import Transform
    from studfinder.records import Thresholds
    from studfinder.texts import Text
    from studfinder.training import ToyTask

_Given = str | os.PathLike[str]
_FAIL_IF = 'End with 1 if this holds, e.g. "kl>0.1", "kl.high>0.1" or {} (repeatable).'


@dataclass(frozen=True, kw_only=True)
class OutConfig(Config):
    """Where a run goes."""

    out: _Given | None = option(
        None, line=Path, help="Run folder.", otherwise="runs/<model>/<verb>-<key>", identity=False
    )
    overwrite: bool = option(False, help="Make it anew, and replace what is there.", identity=False)
    progress: Progress = option(
        in_notebook, line=False, identity=False, help="Told what is being done.", otherwise="a bar in notebooks"
    )

    @property
    def folder(self) -> Path | None:
        """`out` as a path."""
        return None if self.out is None else Path(self.out)


@dataclass(frozen=True, kw_only=True)
class BatchConfig(Config):
    """How many tokens are read in one pass."""

    batch_size: int | str = option(
        "auto",
        line=str,
        help="Tokens read in one pass, a number or auto (halved where memory does not hold it).",
        identity=False,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        _ = self.tokens

    @property
    def tokens(self) -> int | None:
        """The number; None for auto."""
        tokens = None if self.batch_size == "auto" else whole_number(self.batch_size)
        if tokens is None and self.batch_size != "auto":
            from studfinder.errors import StudfinderError

            raise StudfinderError(f"--batch-size {str(self.batch_size)[:40]}", expected="a number of tokens, or auto")
        return tokens


@dataclass(frozen=True, kw_only=True)
class SpreadConfig(Config):
    """Who does the work of a grid."""

    on: str | None = option(
        None,
        help="Workers that share the work, each with a model of its own: processes:4, ray:4 or ray://HOST:PORT.",
        otherwise="this process",
        identity=False,
    )
    mixed: bool = option(False, help="With --on: workers may differ in versions and processors.", identity=False)


@dataclass(frozen=True, kw_only=True)
class ScanConfig(OutConfig, ReadConfig):
    """What `scan` looks at, and when a number stands out."""

    prompt: Sequence[str] = option((), help="A prompt to observe (repeatable).", identity=False)
    prompts: Sequence[Text | str] | Path | str | None = option(
        None, line=Path, help='Prompts: plain text, or .jsonl with "text".', identity=False
    )
    bos: bool | None = option(None, help="Force BOS on or off.", otherwise="as the tokenizer does")
    batch_size: int = option(1, least=1, help="Prompts a forward pass.", identity=False)
    lam: float | None = option(
        None, least=0, help="Massive values exceed this times their head's mean.", otherwise="5", identity=False
    )
    thresholds: Thresholds | None = option(
        None, line=False, identity=False, help="All thresholds from which a number stands out."
    )
    train_length: int | None = option(None, least=1, help="Training context.", otherwise="the config's")
    prove: bool = option(True, help="Test the candidates (minutes).")
    census: bool | None = option(
        None,
        help="Rank every number of the model, gains and biases too, by what one backward pass predicts of it.",
        otherwise="with the proof",
    )
    most: int = option(24, least=0, help="Candidates tested, the likeliest first.")
    pools: int = option(
        64, least=0, help="Pools of all numbers that were not tested, measured to bound what was missed; 0 for none."
    )
    iterative: bool = option(False, help="Candidates from the paper's own loop.")


@dataclass(frozen=True)
class MeasureConfig(OutConfig, ReadConfig, BatchConfig, SpreadConfig):
    """What `measure` measures, before and after what."""

    measures: Sequence[str] | None = option(
        None,
        commas=True,
        help="Names with commas between.",
        otherwise="nine of our own texts and items; one of them needs the extra `evaluate`",
    )
    _: KW_ONLY
    tasks: Sequence[str] = option(
        (), commas=True, help="Public tasks, with commas between, instead or beside.", identity=False
    )
    edits: Any = option(
        (),
        flag="--edit",
        line=list[str],
        help="What to change, KIND:TARGET (repeatable), e.g. zero:RUN; see the examples.",
    )
    against: Any = option(None, line=str, help="Another model as the baseline.")
    limit: int | None = option(None, least=1, help="At most so many items of each measure.")
    seed: int = option(0, help="For what is drawn at random.")
    fail_if: Sequence[str] = option((), help=_FAIL_IF.format("worse"), identity=False)


@dataclass(frozen=True, kw_only=True)
class DiagnoseConfig(OutConfig, ReadConfig):
    """What `diagnose` holds a checkpoint against, and on which text."""

    against: Any = option(
        None, line=str, help="What it was made from.", otherwise="what its card or config names", identity=False
    )
    text: str | Path = option(
        "proof", line=str, help="The text that is read: proof, wikitext2, c4, a file or a data set of the hub."
    )
    window: int = option(256, least=8, help="Tokens of a window.")
    limit: int = option(8, least=1, help="Windows.")
    most: int = option(
        32, least=1, help="Parts that are put back, each alone: broken ones first, then those of the worst blocks."
    )
    outputs: _Given | None = option(
        None,
        line=Path,
        help='An engine\'s log-probabilities of prompts: JSON lines {"token_ids": [...], "logprobs": [...]}.',
        identity=False,
    )
    fail_if: Sequence[str] = option((), help=_FAIL_IF.format("ill"), identity=False)


@dataclass(frozen=True)
class QuantizeConfig(LoadConfig):
    """How `quantize` rounds, and what survives."""

    method: Method | str = option("rtn", line=str, help="How to round: rtn, gptq, awq, smoothquant or clip-restore.")
    _: KW_ONLY
    out: _Given = option(line=Path, help="Folder of the new checkpoint.", identity=False)
    overwrite: bool = option(False, help="Replace a checkpoint in --out.", identity=False)
    push_to_hub: str | None = option(
        None, help="Upload it to this repository, owner/name; one that is new is private.", identity=False
    )
    scheme: Scheme | str | None = option(
        None,
        line=str,
        help="A scheme by name, e.g. fp8, mxfp4, int4-g64-zero; with rounded inputs: fp8+fp8, int8-channel+int8.",
    )
    plan: Any = option(
        None, line=Path, help="A recipe or a plan that says the scheme of each fused group: its file or run folder."
    )
    bits: int | None = option(None, help="Bits of an integer, 2 to 8.", otherwise="4")
    group: int | str | None = option(
        None,
        line=str,
        help="Inputs that share a scale, or channel, or tensor.",
        otherwise="128, 64 or 32, what divides, or channel",
    )
    zero: Literal["integer", "none", "float"] | None = option(
        None, help="Zero point: integer, none or float.", otherwise="integer"
    )
    clip: bool = option(
        False,
        help="Search the range of each block (rtn): helps nvfp4 and fp8, may help or hurt elsewhere; see docs.",
    )
    keep: Any = option(
        (),
        line=list[Path],
        help="Findings whose proven numbers are kept, RUN#tested or RUN#all are more; or one number by its name, "
        "'layers.9 down_proj[260, 200]' (repeatable).",
    )
    keep_columns: Any = option((), line=list[Path], help="The same, with their whole columns (repeatable).")
    keep_massive: Any = option(
        (),
        line=list[Path],
        help="Findings whose massive values of Q and K are kept, by the rows that make them; RUN#key are those of K "
        "alone (repeatable).",
    )
    rebalance: Any = option(
        (),
        line=list[Path],
        help="Findings whose proven super weights' columns are multiplied by 8 and their inputs divided by it: exact, "
        "and costs no bits (repeatable).",
    )
    transforms: Sequence[Transform] | Transform = option(
        (), line=False, help="Changes before rounding, in order: Rebalance(...), Rotate(...) and so on."
    )
    hold_fraction: float = option(
        0.0, least=0, most=0.5, help="Hold out this share of each matrix, the largest by magnitude."
    )
    auto: Any = option(None, line=str, gone=True)
    skip: Sequence[str] = option((), help="A matrix to leave alone; * matches (repeatable).")
    format: str = option("auto", help="auto, dense, or the name of a compressed-tensors format.")
    calibration: str | Path = option(
        "wikipedia", line=str, help="Calibration text: wikipedia, c4, a file, a folder or a data set of the hub."
    )
    samples: int = option(128, least=1, help="Calibration windows.")
    length: int = option(512, least=2, help="Tokens of a calibration window.")
    score: bool = option(
        False, help="Put KL against the original and perplexities into the card, measured on the written files."
    )
    verify: bool = option(
        True, help="Load what was written in a fresh process and compare it with what was meant before it appears."
    )
    progress: Progress = option(
        in_notebook, line=False, identity=False, help="Told what is being done.", otherwise="a bar in notebooks"
    )


@dataclass(frozen=True, kw_only=True)
class TrainConfig(OutConfig, SourceConfig):
    """What `train` trains, on what, and how. Sizes and the recipe are the preset's where they are None."""

    task: ToyTask | str | None = option(
        None, line=str, help="Toy task: induction, n-gram, hop-k, recall, backcopy; settings after a colon."
    )
    text: str | None = option(
        None, help='A file, a folder, a name below STUDFINDER_DATA, or a hub data set; several: "A + B".'
    )
    test_text: str | None = option(None, help="Another text to test on.", otherwise="the last 5 % of the text")
    repeat: int | None = option(
        None,
        least=1,
        help="Windows begin with the end-of-text token and hold a span of so many to twice as many twice.",
    )
    preset: str | None = option(
        None, help="toy, 1m, 10m, vehicle-span, opt-125m or kv-shift-1.5b: model, recipe, tokens."
    )
    base: str | None = option(None, flag="--from", help="Go on with a trained model instead.")
    attention: Sequence[str] | None = option(
        None, help="A variant, e.g. kv_shift or gated:kind=linear,pi_init=0.25 (repeatable); vanilla is none."
    )
    steps: int | None = option(None, least=1, help="Optimizer steps.")
    batch: int | None = option(None, least=1, help="Sequences a step, over all devices.")
    micro: int | None = option(None, least=1, help="Sequences a forward pass on one device.")
    lr: float | None = option(None, help="Learning rate.")
    schedule: Literal["constant", "cosine", "linear", "cool-down"] | None = option(
        None, help="constant, cosine, linear or cool-down (linear in the last quarter), after the warm-up."
    )
    warmup: int | None = option(None, least=0, help="Steps of warm-up.")
    weight_decay: float | None = option(None, least=0, help="AdamW's.")
    seed: int | None = option(None, help="Of the weights and of the order of the data.")
    precision: Literal["auto", "fp32", "bf16"] | None = option(
        None, help="fp32, bf16 (autocast), or auto: whichever is faster."
    )
    look_every: int | None = option(None, least=1, help="Steps between evaluations.")
    test: int | None = option(None, least=1, help="Sequences of each evaluation.")
    layers: int | None = option(None, least=1, help="Blocks.")
    hidden: int | None = option(None, least=1, help="Width.")
    heads: int | None = option(None, least=1, help="Query heads.")
    length: int | None = option(None, least=4, help="Tokens of a window of text.")
    vocabulary: int | None = option(None, least=257, help="Of the BPE that is trained on the text.")
    apart: bool = option(False, help="Packed documents do not see each other (not opt).")
    dequantize: bool = option(False, help="With --from a quantised checkpoint: train a dequantised copy.")
    beta1: float | None = option(None, line=False, help="AdamW's.")
    beta2: float | None = option(None, line=False, help="AdamW's.")
    clip: float | None = option(None, line=False, help="The largest gradient norm.")
    decay_norms: bool | None = option(None, line=False, help="Decay the norms' gains too.")
    keep_every: int | None = option(None, line=False, help="Steps between checkpoints.")
    architecture: Literal["llama", "opt"] | None = option(None, line=False, help="llama or opt.")
    kv_heads: int | None = option(None, line=False, help="Key/value heads.")
    intermediate: int | None = option(None, line=False, help="Feed-forward width.")
    tied: bool | None = option(None, line=False, help="Whether the head is the embedding.")
    rope_base: float | None = option(None, line=False, help="Of the rotary angles.")
    init_std: float | None = option(None, line=False, help="Of every matrix at the start.")
    dropout: float | None = option(None, line=False, help="On hidden states (opt only).")
    scaled_init: bool | None = option(None, line=False, help="What writes to the stream starts 1/sqrt(2 layers).")
    tensorboard: bool | None = option(None, help="Write its files.", otherwise="if it is installed", identity=False)
    quiet: bool = option(False, line=False, identity=False, help="No line on the terminal.")


@dataclass(frozen=True, kw_only=True)
class ExperimentConfig(OutConfig, LoadConfig, BatchConfig, SpreadConfig):
    """Which models an experiment is made on, and how. Its own settings are a config of its own."""

    model: Sequence[str] = option((), help="A model (repeatable).", otherwise="smollm2")
    preset: str = option("cpu", help="cpu: minutes on two cores; paper: the paper's own sizes.")
    limit: int | None = option(None, least=1, help="At most so many items of each measure.")
    seed: int | None = option(None, help="For everything that is drawn at random.")
    change: Sequence[str] = option((), flag="--set", help="NAME=VALUE of the preset (repeatable).")
    every: bool = option(
        False, flag="--all", help="A whole set, in the order of a file: the papers' claims, or --from's."
    )
    listing: Path | None = option(None, flag="--from", help="With --all: a .toml that lists other runs.")


_TOOLS = "llm-compressor, gptqmodel, auto-round, torchao, modelopt, llama.cpp, mlx, bitsandbytes"


@dataclass(frozen=True, kw_only=True)
class RecipeConfig(SourceConfig):
    """Which format, what is spared, and for which tools."""

    tools: Sequence[str] = option((), flag="--for", help=f"A tool to write for (repeatable): {_TOOLS}.")
    bits: int | None = option(None, least=2, most=8, help="Bits of an integer.", otherwise="4")
    group: str | None = option(
        None, help="Inputs that share a scale, or channel.", otherwise="128, 64 or 32, what divides, or channel"
    )
    zero: str | None = option(None, help="Zero point: integer, none or float.", otherwise="integer")
    format: str | None = option(
        None, help="The format by its name instead, e.g. int4-g64-zero, fp8+fp8, nvfp4 (studfinder ls schemes)."
    )
    spare: str | None = option(
        None,
        help="Which groups are spared: of a scan those that hold its proven, tested or all numbers, of "
        "quantize/which-layer the worst:N; or none.",
        otherwise="proven, or worst",
    )
    spare_as: str = option("16", help="The format of what is spared, e.g. int8-channel; 16 leaves it alone.")
    model: str | None = option(None, help="Where the model is now.", otherwise="where the run had it")
    out: _Given | None = option(None, line=Path, help="Folder.", otherwise="runs/<model>/recipe-<key>")
    overwrite: bool = option(False, help="Replace what is there.")


@dataclass(frozen=True, kw_only=True)
class ImatrixConfig(LoadConfig):
    """Which text, where to, and what of it counts."""

    out: _Given = option(line=Path, help="The file, e.g. my-model.imatrix.gguf.")
    overwrite: bool = option(False, help="Replace what is there.")
    first_token_apart: bool = option(False, help="Leave each window's first token, whose spike is most of a sum, out.")
    calibration: str | Path = option(
        "wikipedia", line=str, help="Calibration text: wikipedia, c4, a file, a folder or a data set of the hub."
    )
    samples: int = option(128, least=1, help="Calibration windows.")
    length: int = option(512, least=2, help="Tokens of a calibration window.")
    progress: Progress = option(
        in_notebook, line=False, identity=False, help="Told what is being done.", otherwise="a bar in notebooks"
    )


@dataclass(frozen=True, kw_only=True)
class PlanConfig(OutConfig, LoadConfig):
    """What a plan may cost, what it may be made of, and on which text it is chosen and judged."""

    dtype: Any = option(
        "float32",
        line=str,
        help="float32 (in 16 bits, small costs are noise), auto (the checkpoint's own), bfloat16, float16 or float64.",
        identity=False,
    )
    bits: float | None = option(
        None, above=0, most=16, help="Bits a weight over the planned matrices, scales and kept numbers included."
    )
    size: str | None = option(None, help="Bytes of the whole file, e.g. 4GB, everything else in 16 bits.")
    kl: float | None = option(None, above=0, help="The cheapest plan within this KL, nats per token.")
    formats: Sequence[str] = option(
        (), commas=True, help="Formats to choose from, with commas between.", otherwise="all that the tool takes"
    )
    skip: Sequence[str] = option((), help="A matrix that is left out of the plan; * matches (repeatable).")
    tools: Sequence[str] = option(
        (), flag="--for", help="A tool that is to read it, which restricts the formats: one solution each (repeatable)."
    )
    method: Literal["rtn", "gptq", "awq"] = option(
        "rtn",
        help="What you will quantise with: rtn, gptq or awq. All is predicted for rtn; the plan and its rivals are "
        "judged with the method, calibrated on Wikipedia.",
    )
    score: Literal["auto", "gradient", "measured"] = option(
        "auto",
        help="What decides: gradient, one backward pass; measured, the KL of every group in every format; auto, the "
        "first, corrected by the second where it is not to be trusted.",
    )
    text: str | Path | None = option(
        None,
        line=str,
        help="Text that chooses, and another part of it judges.",
        otherwise="our prompts, and our proof text",
    )
    windows: int = option(24, least=1, help="Windows of --text that choose.")
    judges: int = option(16, least=0, help="Windows of --text, or pieces of our proof text, that judge; 0 for none.")
    length: int = option(256, least=2, help="Tokens of a window of --text.")
    chat_template: bool = option(False, help="Put each text into the model's chat template, as what a user says.")
    draws: int = option(1, least=1, help="Labels drawn at each token; each is a backward pass.")
    findings: str | Path | None = option(
        None, line=Path, help="A scan of this model, which tells why a matrix hurts.", identity=False
    )
    earlier: str | Path | None = option(
        None, line=Path, flag="--from", help="An earlier plan's run: its costs, so that nothing is predicted anew."
    )
    seed: int = option(0, help="For what is drawn at random.")
