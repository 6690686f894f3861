"""`convoy diff`: what differs between two runs."""

import argparse
import json
from dataclasses import asdict

from convoy.commands.console import console
from convoy.errors import ConvoyError, ExitCode
from convoy.host import locate, site
from convoy.run import comparison, story


def add_arguments(parser: argparse.ArgumentParser) -> None:
    for name in ("first", "second"):
        parser.add_argument(name, metavar="RUN", help="run directory or job id")
    parser.add_argument("--json", action="store_true", help="as JSON")


def run(args: argparse.Namespace) -> int:
    experiments = site.load(site.find_checkout()).experiments
    pair = []
    for target in (args.first, args.second):
        root = locate.find(target, experiments).root
        if root is None:
            raise ConvoyError(f"Job {target} has not started: it has no run to compare.")
        pair.append(story.read(root))
    found = comparison.differences(*pair)
    if args.json:
        print(json.dumps([asdict(difference) for difference in found], indent=1))
        return ExitCode.FINISHED
    out = console()
    if not found:
        out.print("Same configuration, software, nodes and results.", highlight=False)
        return ExitCode.FINISHED
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table("", "", box=box.SIMPLE_HEAD, pad_edge=False)
    for one in pair:
        table.add_column(Text(one.name), overflow="fold")
    for row in found:
        table.add_row(*map(Text, (row.part, row.name, row.first, row.second)))
    out.print(table)
    return ExitCode.FINISHED
