"""studfinder env"""

from __future__ import annotations

import json

from studfinder.cli import options as o


def command(as_json: o.Json = False) -> None:
    """Print versions and settings, for a bug report."""
    import os

    import torch

    from studfinder.models import cache_folder
    from studfinder.runs import versions

    facts = {
        **versions(),
        "cpu threads": str(torch.get_num_threads()),
        "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        "cache": str(cache_folder()),
        "STUDFINDER_DATA": os.environ.get("STUDFINDER_DATA", "not set"),
    }
    if as_json:
        print(json.dumps(facts, indent=1))
    else:
        for name, value in facts.items():
            print(f"{name:16}{value}")
