"""`convoy synth`: arguments and output; what does the work is imported only when it runs."""

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

DESCRIPTION = """\
Write a synthetic data set in NAVSIM's cache format (OUT/<log>/<token>/<builder>.gz): camera panorama, LiDAR
histogram, ego status, trajectory, boxes and semantic map, for TransFuser, EgoStatusMLP and Convoy's own
agent. The same seed gives the same bytes. A run that was interrupted is completed by running it again."""

_SECONDS_BETWEEN_LINES = 5.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = DESCRIPTION
    parser.add_argument("out", metavar="OUT", type=Path, help="directory to write, new or empty")
    parser.add_argument("--samples", metavar="N", type=int, required=True, help="number of samples in all")
    parser.add_argument("--logs", metavar="L", type=int, required=True, help="number of logs")
    parser.add_argument("--seed", metavar="S", type=int, default=0, help="seed of the data set (default: 0)")
    parser.add_argument("--workers", metavar="W", type=int, help="processes (default: one per available CPU)")
    parser.add_argument("--json", action="store_true", help="print the summary as JSON")


def run(args: argparse.Namespace) -> int:
    from convoy.data.synthetic import write_cache

    with _progress(args.samples) as progress:
        summary = write_cache(args.out, args.samples, args.logs, args.seed, args.workers, progress)
    megabytes, seconds = round(summary.bytes / 1e6, 1), round(summary.seconds, 1)
    if args.json:
        record = {
            "path": str(summary.path),
            "samples": summary.samples,
            "logs": summary.logs,
            "megabytes": megabytes,
            "seconds": seconds,
        }
        print(json.dumps(record))
    else:
        counts = f"{summary.samples} samples in {summary.logs} logs"
        print(f"{summary.path}: {counts}, {megabytes} MB, {seconds} s")
    return 0


@contextmanager
def _progress(total: int) -> Iterator[Callable[[int], None]]:
    """A bar on a terminal, else a line every few seconds; both on stderr."""
    if not sys.stderr.isatty():
        yield _lines(total)
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("Writing samples"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("", total=total)
        yield lambda count: bar.advance(task, count)


def _lines(total: int) -> Callable[[int], None]:
    done, started = 0, time.monotonic()
    printed = started

    def advance(count: int) -> None:
        nonlocal done, printed
        done += count
        now = time.monotonic()
        if now - printed >= _SECONDS_BETWEEN_LINES and done < total:
            printed = now
            remaining = (now - started) / done * (total - done)
            print(f"{done} of {total} samples, about {remaining:.0f} s left", file=sys.stderr, flush=True)

    return advance
