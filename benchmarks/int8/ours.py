"""joulec's command line, followed by what it cost: seconds, and the peak memory of its largest process."""

from __future__ import annotations

import json
import resource
import sys
import time

from joulec.cli import main

if __name__ == "__main__":
    start = time.monotonic()
    code = main(sys.argv[1:])
    peak = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)) / 1024
    print("RESULT " + json.dumps({"seconds": time.monotonic() - start, "peak_mib": peak}))
    raise SystemExit(code)
