"""studfinder env"""

from __future__ import annotations

import json

from studfinder.cli import options as o
from studfinder.visible import say, say_json


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
        say_json(json.dumps(facts, indent=1))
    else:
        for name, value in facts.items():
            say(f"{name:16}{value}")
