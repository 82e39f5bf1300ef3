"""Streaming statistics whose memory does not grow with tokens, and which merge: stats(A) + stats(B) = stats(A + B)."""

from studfinder.stats.bits import INF, magnitude_bits, to_bits
from studfinder.stats.histogram import AbsHistogram
from studfinder.stats.paired import mcnemar, mean_interval, ratio_interval
from studfinder.stats.student import student_t
from studfinder.stats.sums import SumOfSquares
from studfinder.stats.topk import TopK

__all__ = [
    "INF",
    "AbsHistogram",
    "SumOfSquares",
    "TopK",
    "magnitude_bits",
    "mcnemar",
    "mean_interval",
    "ratio_interval",
    "student_t",
    "to_bits",
]
