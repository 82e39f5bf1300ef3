"""The command line with accelerate's FSDP on processes without an accelerator: run by `accelerate launch`.

torch shards over gloo as well as over NCCL, but accelerate looks at its FSDP settings only where it finds an
accelerator. This says that it found one; everything else is what happens on a cluster.
"""

from __future__ import annotations

import sys

from accelerate import state
from accelerate.utils import DistributedType

_own = state.PartialState.__init__


def _found(self, *arguments, **options):
    _own(self, *arguments, **options)
    if self.distributed_type == DistributedType.MULTI_CPU:
        self.distributed_type = DistributedType.MULTI_GPU


if __name__ == "__main__":
    state.PartialState.__init__ = _found
    from studfinder.cli.app import run_cli

    code = run_cli(sys.argv[1:])
    assert state.AcceleratorState().distributed_type == DistributedType.FSDP
    sys.exit(code)
