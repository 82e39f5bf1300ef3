"""A learned sink per head: a logit that takes weight and gives nothing."""

from studfinder.attention.sink_logit.layer import SinkLogit

__all__ = ["SinkLogit"]
