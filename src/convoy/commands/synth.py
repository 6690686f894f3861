"""`convoy synth`: arguments and output; what does the work is imported only when it runs."""

import argparse
import json
from pathlib import Path

from convoy.commands.console import progress

DESCRIPTION = """\
Write a synthetic data set in NAVSIM's cache format (OUT/<log>/<token>/<builder>.gz): camera
panorama, LiDAR histogram, ego status, trajectory, boxes and semantic map, for TransFuser,
EgoStatusMLP and Convoy's own agent. With --raw, write what such a cache is made from instead: logs,
camera pictures, point clouds and nuPlan maps, on which NAVSIM's own scripts run with
OPENSCENE_DATA_ROOT=OUT and NUPLAN_MAPS_ROOT=OUT/maps. The same seed gives the same bytes. The same
command completes a run that was interrupted."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = DESCRIPTION
    parser.add_argument("out", metavar="OUT", type=Path, help="directory to write, new or empty")
    parser.add_argument(
        "--samples", metavar="N", type=int, required=True, help="number of samples in all"
    )
    parser.add_argument("--logs", metavar="L", type=int, required=True, help="number of logs")
    parser.add_argument(
        "--seed", metavar="S", type=int, default=0, help="seed of the data set (default: 0)"
    )
    parser.add_argument(
        "--workers", metavar="W", type=int, help="processes (default: one per available CPU)"
    )
    raw = parser.add_argument_group("raw data")
    raw.add_argument(
        "--raw", action="store_true", help="write logs, sensor data and maps instead of a cache"
    )
    raw.add_argument(
        "--split", metavar="NAME", default="mini", help="NAVSIM's data_split (default: mini)"
    )
    raw.add_argument(
        "--cameras",
        choices=("all", "front"),
        default="all",
        help="pictures of all eight cameras, or of F0, L0 and R0, which TransFuser sees "
        "(default: all)",
    )
    parser.add_argument("--json", action="store_true", help="print the summary as JSON")


def run(args: argparse.Namespace) -> int:
    if args.raw:
        return _run_raw(args)
    from convoy.synthetic import write_cache

    with progress("samples", args.samples) as shown:
        summary = write_cache(
            args.out, args.samples, args.logs, args.seed, args.workers, shown.advance
        )
    _report(
        args,
        summary.path,
        summary.bytes,
        summary.seconds,
        samples=summary.samples,
        logs=summary.logs,
    )
    return 0


def _run_raw(args: argparse.Namespace) -> int:
    from convoy.synthetic.raw import frame_count, write_raw

    with progress("frames", frame_count(args.samples, args.logs)) as shown:
        summary = write_raw(
            args.out,
            args.samples,
            args.logs,
            args.seed,
            args.split,
            args.cameras == "all",
            args.workers,
            shown.advance,
        )
    counts = {"samples": summary.samples, "frames": summary.frames, "logs": summary.logs}
    _report(args, summary.path, summary.bytes, summary.seconds, **counts)
    return 0


def _report(args: argparse.Namespace, path: Path, size: int, seconds: float, **counts: int) -> None:
    megabytes, seconds = round(size / 1e6, 1), round(seconds, 1)
    if args.json:
        print(
            json.dumps({"path": str(path)} | counts | {"megabytes": megabytes, "seconds": seconds})
        )
    else:
        *others, logs = (f"{count} {what}" for what, count in counts.items())
        print(f"{path}: {', '.join(others)} in {logs}, {megabytes} MB, {seconds} s")
