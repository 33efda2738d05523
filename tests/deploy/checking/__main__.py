"""`make deploy-check`: exit code 1 and a line for each problem; `fetch` only gets the tools. Other
words are files of settings that somebody filled in."""

from __future__ import annotations

import sys
from pathlib import Path

from deploy.checking import ROOT, ToolError, Tools, check


def main() -> int:
    tools = Tools()
    try:
        if sys.argv[1:] == ["fetch"]:
            tools.fetch()
            return 0
        built, problems = check(ROOT, tools, [Path(word) for word in sys.argv[1:]])
    except ToolError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
    for one in built:
        print(f"{one.folder}: {len(one.manifests)} manifests")
    print(f"{len(problems)} problems")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
