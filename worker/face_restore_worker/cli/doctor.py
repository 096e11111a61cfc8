"""``face-restore doctor``: look at everything a user could have wrong, and say how to mend it."""

from __future__ import annotations

import argparse
import json
from typing import Any

from face_restore_worker.cli.exits import Exit

_EPILOG = """\
Each line is ok, warn (it works, but not as well as it could) or FAIL (it does not work),
with what to do about it. Ends with status 0 when nothing fails, else with 3.

examples:
  face-restore doctor
  face-restore doctor --full             also start the worker and look for faces once
  face-restore doctor --format json      for a bug report (it holds no token and no picture)
"""


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    """Add the ``doctor`` command to argparse's subparsers; ``run`` carries it out."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "doctor",
        help="check the installation and say how to mend it",
        description="Check everything that restoring needs.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--format", choices=("text", "json"), default="text")
    parser.add_argument(
        "--full", action="store_true", help="also start the worker and let it do a small job"
    )
    parser.set_defaults(run=run)
    return parser


def run(args: argparse.Namespace) -> int:
    """Carry out ``face-restore doctor``; returns the exit status."""
    from face_restore_worker.cli import checks

    findings: list[checks.Finding] = []
    for check in checks.all_checks(full=args.full):
        for finding in checks.carry_out(check):
            findings.append(finding)
            if args.format == "text":
                _show(finding)
    failed = sum(f.level == "fail" for f in findings)
    warned = sum(f.level == "warn" for f in findings)
    if args.format == "json":
        print(json.dumps({"checks": [f.as_json() for f in findings], "failed": failed}, indent=2))
    elif failed:
        print(f"\n{failed} of {len(findings)} checks failed; mend them from the top down.")
    else:
        good = "All is well" if not warned else f"It works; {warned} things could be better"
        print(f"\n{good} ({len(findings)} checks).")
    return Exit.CANNOT_WORK if failed else Exit.OK


def _show(finding: Any) -> None:
    mark = {"ok": " ok ", "warn": "warn", "fail": "FAIL"}[finding.level]
    print(f"[{mark}] {finding.topic}: {finding.text}", flush=True)
    if finding.mend and finding.level != "ok":
        print(f"       -> {finding.mend}", flush=True)
