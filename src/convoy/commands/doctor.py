"""`convoy doctor`: what a training run can count on here."""

import argparse
import json
import os
import sys
from dataclasses import asdict

from rich.table import Table
from rich.text import Text

from convoy.commands.console import console
from convoy.errors import ExitCode
from convoy.health.checks import machine_checks
from convoy.health.finding import Status, examine
from convoy.topology import gpus_of_node

MARKS = {
    Status.OK: Text("ok", "green"),
    Status.WARN: Text("warn", "yellow"),
    Status.FAIL: Text("FAIL", "bold red"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--gpus",
        type=int,
        help="GPUs that must be here (default: what SLURM gave this node, if it says)",
    )
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")


def run(args: argparse.Namespace) -> int:
    """Print all findings; exit code 3 if one of them is a failure."""
    expected = args.gpus if args.gpus is not None else gpus_of_node(os.environ)
    findings = list(examine(machine_checks(expected)))
    failed = [finding for finding in findings if finding.status is Status.FAIL]
    if args.json:
        print(
            json.dumps(
                {"ok": not failed, "findings": [asdict(finding) for finding in findings]}, indent=1
            )
        )
    else:
        table = Table("", "", "found", title="convoy doctor")
        for finding in findings:
            table.add_row(finding.name, MARKS[finding.status], finding.found)
        console().print(table)
        for finding in failed:
            print(f"convoy doctor: {finding.name}: {finding.found}", file=sys.stderr)
    return ExitCode.PREFLIGHT if failed else ExitCode.FINISHED
