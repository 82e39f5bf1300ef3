"""One method a file; what all of them share: schemes, grids, keeping findings, the bench they work on."""

from studfinder.quantizers.activations import ActivationScheme, Restore, WithActivations, super_channels
from studfinder.quantizers.apply import quantized
from studfinder.quantizers.awq import AWQ
from studfinder.quantizers.bench import Workbench
from studfinder.quantizers.calibration import calibration_windows
from studfinder.quantizers.clip import Clip
from studfinder.quantizers.clip_restore import ClipRestore
from studfinder.quantizers.gptq import GPTQ
from studfinder.quantizers.grid import Quantized, RoundingGrid, codes, dequantized, fit_grid, quantize_weight
from studfinder.quantizers.keep import HoldOut, Keep, Skip, hold_out, skip
from studfinder.quantizers.kv_cache import KVCache, quantized_cache
from studfinder.quantizers.massive_rows import MassiveRows
from studfinder.quantizers.method import METHODS, Method, method_class
from studfinder.quantizers.residual import rounded_stream
from studfinder.quantizers.rotary_pairs import RotaryPairs
from studfinder.quantizers.rotation import Rotate
from studfinder.quantizers.rtn import RTN
from studfinder.quantizers.scheme import SCHEMES, Scheme, bits_per_weight
from studfinder.quantizers.seen import Seen, seen, seen_in_words
from studfinder.quantizers.smoothquant import SmoothQuant
from studfinder.quantizers.targets import Target, targets
from studfinder.quantizers.transforms import Permute, Rebalance, Split, neurons_of
from studfinder.records.public import public

__all__ = [
    "AWQ",
    "GPTQ",
    "METHODS",
    "RTN",
    "SCHEMES",
    "ActivationScheme",
    "Clip",
    "ClipRestore",
    "HoldOut",
    "KVCache",
    "Keep",
    "MassiveRows",
    "Method",
    "Permute",
    "Quantized",
    "Rebalance",
    "Restore",
    "RotaryPairs",
    "Rotate",
    "RoundingGrid",
    "Scheme",
    "Seen",
    "Skip",
    "SmoothQuant",
    "Split",
    "Target",
    "WithActivations",
    "Workbench",
    "bits_per_weight",
    "calibration_windows",
    "codes",
    "dequantized",
    "fit_grid",
    "hold_out",
    "method_class",
    "neurons_of",
    "quantize_weight",
    "quantized",
    "quantized_cache",
    "rounded_stream",
    "seen",
    "seen_in_words",
    "skip",
    "super_channels",
    "targets",
]

public(globals())
