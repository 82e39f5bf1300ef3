"""studfinder finds the load-bearing numbers of a language model before anyone cuts into it.

The public names are loaded when first used, so that `import studfinder` stays fast and does not import torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from studfinder.attention import ALiBi as ALiBi
    from studfinder.attention import AttentionBias as AttentionBias
    from studfinder.attention import ClippedSoftmax as ClippedSoftmax
    from studfinder.attention import Differential as Differential
    from studfinder.attention import Gated as Gated
    from studfinder.attention import KVShift as KVShift
    from studfinder.attention import NoPE as NoPE
    from studfinder.attention import RoPE as RoPE
    from studfinder.attention import SinkLogit as SinkLogit
    from studfinder.attention import SoftmaxOne as SoftmaxOne
    from studfinder.attention import Softpick as Softpick
    from studfinder.attention import convert as convert
    from studfinder.attention import import_kernels as import_kernels
    from studfinder.attention import parameter_groups as parameter_groups
    from studfinder.attention import shift_cache as shift_cache
    from studfinder.edits import AboveLambda as AboveLambda
    from studfinder.edits import Activations as Activations
    from studfinder.edits import Coordinates as Coordinates
    from studfinder.edits import EditList as EditList
    from studfinder.edits import Everything as Everything
    from studfinder.edits import LargestEntry as LargestEntry
    from studfinder.edits import MatchedDims as MatchedDims
    from studfinder.edits import RandomDims as RandomDims
    from studfinder.edits import TopDims as TopDims
    from studfinder.edits import constant_only as constant_only
    from studfinder.edits import deviation_only as deviation_only
    from studfinder.edits import dims as dims
    from studfinder.edits import edited as edited
    from studfinder.edits import massive_value_disruption as massive_value_disruption
    from studfinder.edits import mean as mean
    from studfinder.edits import noise as noise
    from studfinder.edits import restore as restore
    from studfinder.edits import restore_output as restore_output
    from studfinder.edits import scale as scale
    from studfinder.edits import set_to as set_to
    from studfinder.edits import shuffle as shuffle
    from studfinder.edits import zero as zero
    from studfinder.edits.spec import parse_edits as parse_edits
    from studfinder.errors import StudfinderError as StudfinderError
    from studfinder.measures import Scores as Scores
    from studfinder.measures import calibrate_facts as calibrate_facts
    from studfinder.measures import compare as compare
    from studfinder.measures import contrast as contrast
    from studfinder.measures import damage_matched as damage_matched
    from studfinder.measures import facts_in_context as facts_in_context
    from studfinder.measures import facts_parametric_matched as facts_parametric_matched
    from studfinder.measures import log_likelihoods as log_likelihoods
    from studfinder.measures import next_token as next_token
    from studfinder.measures.perplexity import perplexity as perplexity
    from studfinder.measures.sweep import sweep as sweep
    from studfinder.measures.tasks import tasks as tasks
    from studfinder.models import LM as LM
    from studfinder.quantizers import AWQ as AWQ
    from studfinder.quantizers import GPTQ as GPTQ
    from studfinder.quantizers import RTN as RTN
    from studfinder.quantizers import Auto as Auto
    from studfinder.quantizers import Clip as Clip
    from studfinder.quantizers import ClipRestore as ClipRestore
    from studfinder.quantizers import KVCache as KVCache
    from studfinder.quantizers import Scheme as Scheme
    from studfinder.quantizers import SmoothQuant as SmoothQuant
    from studfinder.quantizers import WithActivations as WithActivations
    from studfinder.quantizers import calibration_windows as calibration_windows
    from studfinder.quantizers import hold_out as hold_out
    from studfinder.quantizers import quantized as quantized
    from studfinder.quantizers import quantized_cache as quantized_cache
    from studfinder.quantizers import skip as skip
    from studfinder.records import Findings as Findings
    from studfinder.records import Interval as Interval
    from studfinder.records import Scorecard as Scorecard
    from studfinder.sites import capture as capture
    from studfinder.verbs.load import load as load
    from studfinder.verbs.measure import measure as measure
    from studfinder.verbs.quantize import quantize as quantize
    from studfinder.verbs.scan import scan as scan
    from studfinder.verbs.train import train as train

__version__ = "0.1.0"

_PUBLIC = {
    "ALiBi": "studfinder.attention",
    "AttentionBias": "studfinder.attention",
    "ClippedSoftmax": "studfinder.attention",
    "Differential": "studfinder.attention",
    "Findings": "studfinder.records",
    "Gated": "studfinder.attention",
    "Interval": "studfinder.records",
    "KVShift": "studfinder.attention",
    "LM": "studfinder.models",
    "NoPE": "studfinder.attention",
    "RoPE": "studfinder.attention",
    "Scorecard": "studfinder.records",
    "Scores": "studfinder.measures",
    "SinkLogit": "studfinder.attention",
    "SoftmaxOne": "studfinder.attention",
    "Softpick": "studfinder.attention",
    "StudfinderError": "studfinder.errors",
    "compare": "studfinder.measures",
    "log_likelihoods": "studfinder.measures",
    "facts_parametric_matched": "studfinder.measures",
    "facts_in_context": "studfinder.measures",
    "contrast": "studfinder.measures",
    "calibrate_facts": "studfinder.measures",
    "constant_only": "studfinder.edits",
    "convert": "studfinder.attention",
    "damage_matched": "studfinder.measures",
    "deviation_only": "studfinder.edits",
    "dims": "studfinder.edits",
    "edited": "studfinder.edits",
    "import_kernels": "studfinder.attention",
    "load": "studfinder.verbs.load",
    "massive_value_disruption": "studfinder.edits",
    "mean": "studfinder.edits",
    "measure": "studfinder.verbs.measure",
    "next_token": "studfinder.measures",
    "noise": "studfinder.edits",
    "parameter_groups": "studfinder.attention",
    "parse_edits": "studfinder.edits.spec",
    "perplexity": "studfinder.measures.perplexity",
    "restore": "studfinder.edits",
    "restore_output": "studfinder.edits",
    "scale": "studfinder.edits",
    "scan": "studfinder.verbs.scan",
    "set_to": "studfinder.edits",
    "shift_cache": "studfinder.attention",
    "shuffle": "studfinder.edits",
    "sweep": "studfinder.measures.sweep",
    "tasks": "studfinder.measures.tasks",
    "Activations": "studfinder.edits",
    "AboveLambda": "studfinder.edits",
    "Coordinates": "studfinder.edits",
    "EditList": "studfinder.edits",
    "Everything": "studfinder.edits",
    "LargestEntry": "studfinder.edits",
    "MatchedDims": "studfinder.edits",
    "RandomDims": "studfinder.edits",
    "TopDims": "studfinder.edits",
    "capture": "studfinder.sites",
    "quantized": "studfinder.quantizers",
    "RTN": "studfinder.quantizers",
    "ClipRestore": "studfinder.quantizers",
    "Scheme": "studfinder.quantizers",
    "Clip": "studfinder.quantizers",
    "hold_out": "studfinder.quantizers",
    "skip": "studfinder.quantizers",
    "Auto": "studfinder.quantizers",
    "calibration_windows": "studfinder.quantizers",
    "quantize": "studfinder.verbs.quantize",
    "train": "studfinder.verbs.train",
    "GPTQ": "studfinder.quantizers",
    "AWQ": "studfinder.quantizers",
    "SmoothQuant": "studfinder.quantizers",
    "WithActivations": "studfinder.quantizers",
    "KVCache": "studfinder.quantizers",
    "quantized_cache": "studfinder.quantizers",
    "zero": "studfinder.edits",
}

__all__ = ["LM", "Findings", "StudfinderError", "__version__", "load", "scan"]


def __getattr__(name: str) -> object:
    if name in _PUBLIC:
        return getattr(import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'studfinder' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_PUBLIC])
