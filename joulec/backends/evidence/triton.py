"""What Triton's own definition of a model configuration makes of a config.pbtxt: triton.py CONFIG.

Prints JSON: tritonclient's version, and the configuration as JSON spells protobuf; or that tritonclient is `missing`.
No server is asked.
"""

from __future__ import annotations

import json
import sys
from importlib.metadata import version
from pathlib import Path

from google.protobuf import json_format, text_format  # type: ignore[import-untyped]


def main() -> None:
    try:
        from tritonclient.grpc import model_config_pb2
    except ImportError as why:
        sys.stdout.write(json.dumps({"missing": str(why)}) + "\n")
        return
    text = Path(sys.argv[1]).read_text(encoding="utf-8")
    message = text_format.Parse(text, model_config_pb2.ModelConfig())
    read = json_format.MessageToDict(message, preserving_proto_field_name=True)
    sys.stdout.write(json.dumps({"version": version("tritonclient"), "config": read}) + "\n")


if __name__ == "__main__":
    main()
