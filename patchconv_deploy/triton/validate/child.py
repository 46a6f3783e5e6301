"""The process that models of a repository are checked in.

It answers (`engines.process.child`); what ends it is a finding of the one model it was at:

    {"do": "check", "model": FOLDER, "gpu": true | false | null, "config_name": ""}
        -> {"findings": [{"model": ..., "file": ..., "reason": ...}]}
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from patchconv_deploy.engines.ort.signature import runtime
from patchconv_deploy.engines.process.child import serve
from patchconv_deploy.triton.validate.check import check_model

__all__ = ["main"]


def main() -> int:
    """Serve until standard input ends."""
    logging.basicConfig(level=logging.ERROR)
    with runtime() as opener:

        def check(job: Mapping[str, Any]) -> dict[str, Any]:
            found = check_model(
                Path(job["model"]), opener, gpu=job["gpu"], config_name=job["config_name"]
            )
            return {"findings": [asdict(finding) for finding in found]}

        serve({"check": check})
    return 0


if __name__ == "__main__":
    sys.exit(main())
