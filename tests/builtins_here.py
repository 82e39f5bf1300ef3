"""The built-in models as they are tested on this machine."""

from __future__ import annotations

from studfinder.models.load import fast_bfloat16

REAL_DTYPE = "auto" if fast_bfloat16() else "float32"
"""bf16, their own; or fp32, where the processor has no bf16 arithmetic and a scan would take an hour."""
