"""Streaming statistics whose memory does not grow with tokens, and which merge: stats(A) + stats(B) = stats(A + B)."""

from studfinder.stats.bits import INF, magnitude_bits, to_bits
from studfinder.stats.histogram import AbsHistogram
from studfinder.stats.paired import averaged, crossed, mcnemar, mean_interval, ratio_interval, student_interval
from studfinder.stats.resampling import bootstrap
from studfinder.stats.sums import SumOfSquares
from studfinder.stats.topk import TopK
from studfinder.stats.unseen import most_unseen, share_interval

__all__ = [
    "INF",
    "AbsHistogram",
    "SumOfSquares",
    "TopK",
    "averaged",
    "bootstrap",
    "crossed",
    "magnitude_bits",
    "mcnemar",
    "mean_interval",
    "most_unseen",
    "ratio_interval",
    "share_interval",
    "student_interval",
    "to_bits",
]
