"""The check of a rollout: PERCENT reads of a board, of the candidate's own pods.

Run by `leaderboard rollout --check` with REVISION and PERCENT, and KUBECONFIG, NAMESPACE, BOARD (a
path) and TOKEN of the trial. Ends with 1 where a read does not give the board.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping

import httpx


def check(environ: Mapping[str, str]) -> str:
    """What is wrong; empty if all is well."""
    name = f"{environ['REVISION']}-private"
    words = ["kubectl", "get", "service", name, "-n", environ["NAMESPACE"], "-o", "json"]
    found = json.loads(subprocess.run(words, capture_output=True, check=True).stdout)
    url = f"http://{found['spec']['clusterIP']}{environ['BOARD']}"
    count, failed = int(environ["PERCENT"]), []
    with httpx.Client(headers={"Authorization": f"Bearer {environ['TOKEN']}"}) as client:
        for _ in range(count):
            status = client.get(url, timeout=10).status_code
            if status != 200:
                failed.append(status)
    return f"{len(failed)} of {count} reads failed, with {sorted(set(failed))}" if failed else ""


if __name__ == "__main__":
    sys.exit(check(os.environ) or 0)
