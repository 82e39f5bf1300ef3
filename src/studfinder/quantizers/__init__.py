"""One method a file; what all of them share: schemes, grids, keeping findings, the bench they work on."""

from studfinder.quantizers.apply import quantized
from studfinder.quantizers.auto import Auto
from studfinder.quantizers.bench import Bench
from studfinder.quantizers.calibration import calibration_windows
from studfinder.quantizers.card import Quantization
from studfinder.quantizers.clip import Clip
from studfinder.quantizers.clip_restore import ClipRestore
from studfinder.quantizers.grid import Grid, Quantized, codes, dequantized, fit, quantize_weight
from studfinder.quantizers.keep import HoldOut, Keep, Skip, hold_out, skip
from studfinder.quantizers.method import METHODS, Method, method_class
from studfinder.quantizers.rotary_pairs import RotaryPairs
from studfinder.quantizers.rotation import Rotate
from studfinder.quantizers.rtn import RTN
from studfinder.quantizers.scheme import SCHEMES, Scheme, bits_per_weight, kernel
from studfinder.quantizers.targets import Target, targets
from studfinder.quantizers.transforms import Permute, Rebalance, Split, neurons_of

__all__ = [
    "METHODS",
    "RTN",
    "SCHEMES",
    "Auto",
    "Bench",
    "Clip",
    "ClipRestore",
    "Grid",
    "HoldOut",
    "Keep",
    "Method",
    "Permute",
    "Quantization",
    "Quantized",
    "Rebalance",
    "RotaryPairs",
    "Rotate",
    "Scheme",
    "Skip",
    "Split",
    "Target",
    "bits_per_weight",
    "calibration_windows",
    "codes",
    "dequantized",
    "fit",
    "hold_out",
    "kernel",
    "method_class",
    "neurons_of",
    "quantize_weight",
    "quantized",
    "skip",
    "targets",
]
