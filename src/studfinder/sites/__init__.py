"""Read, replace and patch a running model: the only place that hooks or writes, and undoes it."""

from studfinder.patches import Journal
from studfinder.sites.active import Replacement, Tap, entering, quiet, replacing, watched
from studfinder.sites.capture import capture
from studfinder.sites.causal import bidirectional, check_causal
from studfinder.sites.events import AttentionCall, BlockOutput, ModelCall, WriterCall
from studfinder.sites.modules import module_inputs
from studfinder.sites.parts import PartOutput
from studfinder.sites.site import KINDS, Site
from studfinder.sites.tap import tapped, uncompiled

__all__ = [
    "KINDS",
    "AttentionCall",
    "BlockOutput",
    "Journal",
    "ModelCall",
    "PartOutput",
    "Replacement",
    "Site",
    "Tap",
    "WriterCall",
    "bidirectional",
    "capture",
    "check_causal",
    "entering",
    "module_inputs",
    "quiet",
    "replacing",
    "tapped",
    "uncompiled",
    "watched",
]
