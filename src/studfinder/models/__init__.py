"""LM, load, anatomy (where the parts of each architecture are), built-in models, fingerprint."""

from studfinder.models.anatomy import Anatomy, HeadRows, Layer, MatrixRef, Mixer, Norm, Rows, Writer
from studfinder.models.believed import check_findings, check_same_weights
from studfinder.models.builtin import BUILTINS, builtin_folder
from studfinder.models.cache import cache_folder, keep_private, private_folder
from studfinder.models.card import model_card
from studfinder.models.checkpoint import CheckpointFiles, FilePlace
from studfinder.models.converted import in_own_names
from studfinder.models.fingerprint import cached_content_hash, config_hash, content_hash
from studfinder.models.lm import LM, Source
from studfinder.models.load import check_finite, load
from studfinder.models.measured import anatomy_of
from studfinder.models.pretrained import check_checkpoint
from studfinder.models.rotary import Rotary, rotary_of, train_length
from studfinder.models.weights import matrix

__all__ = [
    "BUILTINS",
    "LM",
    "Anatomy",
    "CheckpointFiles",
    "FilePlace",
    "HeadRows",
    "Layer",
    "MatrixRef",
    "Mixer",
    "Norm",
    "Rotary",
    "Rows",
    "Source",
    "Writer",
    "anatomy_of",
    "builtin_folder",
    "cache_folder",
    "cached_content_hash",
    "check_checkpoint",
    "check_findings",
    "check_finite",
    "check_same_weights",
    "config_hash",
    "content_hash",
    "in_own_names",
    "keep_private",
    "load",
    "matrix",
    "model_card",
    "private_folder",
    "rotary_of",
    "train_length",
]
