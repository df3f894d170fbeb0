"""Read by Python when it starts: gives a Ray worker the moments that the torture has drawn."""

from __future__ import annotations

import json
import os
import sys
from functools import partial
from pathlib import Path

FAULT = Path(os.environ.get("ROBUQ_TORTURE_FAULT", ""))

if FAULT.is_file() and any("default_worker" in word for word in sys.orig_argv):
    sys.path.append(str(Path(__file__).parents[1]))
    from moments import announce, arm

    sys.path.pop()
    for fault in json.loads(FAULT.read_text()):
        arm(fault["name"], fault["nth"], fault["delay"], partial(announce, fault["gate"], fault["kill"]))
