"""`convoy data info|verify|ls DIR`: what packed shards hold, and whether they are whole.

Imports no torch.
"""

import argparse
import json
from collections import Counter
from pathlib import Path
from typing import Any

from rich.table import Table

from convoy.commands.console import console, progress
from convoy.commands.prepare import print_failures
from convoy.data.shards import Manifest, load_manifest
from convoy.errors import ConvoyError, ExitCode

DESCRIPTION = """\
Look into a directory of packed shards: `info` shows what it holds (and draws some samples with
--picture), `verify` reads everything and compares checksums, `ls` lists logs, or the samples of
some of them."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = DESCRIPTION
    actions = parser.add_subparsers(required=True, metavar="info|verify|ls", dest="action")
    info = actions.add_parser(
        "info", help="tensors, sizes, builders, origin, samples that were left out"
    )
    info.add_argument(
        "--picture", metavar="PNG", type=Path, help="draw some samples: camera, BEV, trajectory"
    )
    info.add_argument(
        "--samples",
        metavar="N",
        type=int,
        default=6,
        help="samples in the picture (default: %(default)s)",
    )
    verify = actions.add_parser(
        "verify", help="compare all checksums; exit code 1 names the damaged files"
    )
    listing = actions.add_parser("ls", help="list logs, or with LOG its samples")
    for action in (info, verify, listing):
        action.add_argument("path", metavar="DIR", type=Path)
        action.add_argument("--json", action="store_true", help="print JSON")
    listing.add_argument("logs", metavar="LOG", nargs="*")


def run(args: argparse.Namespace) -> int:
    """Raises ConvoyError where there is no readable manifest."""
    manifest = load_manifest(args.path)
    return {"info": _info, "verify": _verify, "ls": _list}[args.action](args, manifest)


def _info(args: argparse.Namespace, manifest: Manifest) -> int:
    if args.picture is not None:
        from convoy.data.picture import draw_sheet

        draw_sheet(args.path, manifest, args.picture, args.samples)
    layouts = manifest.layouts
    counts = Counter({layout: 0 for layout in layouts})
    for shard in manifest.shards:
        if shard.tokens:
            counts[shard.layout] += len(shard.tokens)
    record: dict[str, Any] = {
        "path": str(args.path),
        "samples": manifest.samples,
        "logs": len(manifest.logs),
        "shards": sum(bool(shard.tokens) for shard in manifest.shards),
        "bytes": manifest.bytes,
        "builders": [
            {"name": b.name, "role": b.role, "class": b.cls, "config": b.config}
            for b in manifest.builders
        ],
        "origin": dict(manifest.origin),
        "layouts": [
            {
                "samples": counts[layout],
                "tensors": {f"{f.builder}.{f.name}": str(f) for f in layout.fields},
            }
            for layout in layouts
        ],
        "failed": [{"log": f.log, "token": f.token, "reason": f.reason} for f in manifest.failures],
    }
    if args.json:
        print(json.dumps(record, indent=1))
        return ExitCode.FINISHED
    out = console()
    out.print(
        f"{record['path']}: {record['samples']} samples of {record['logs']} logs in "
        f"{record['shards']} shards, {manifest.bytes / 1e9:.2f} GB, "
        f"{manifest.bytes / max(1, manifest.samples) / 1e3:.0f} kB a sample",
        highlight=False,
        soft_wrap=True,
    )
    for key, value in record["origin"].items():
        out.print(f"  {key}: {value}", highlight=False, soft_wrap=True)
    for layout in layouts:
        title = f"{counts[layout]} samples" if len(layouts) > 1 else None
        table = Table("builder", "tensor", "stored", "bytes", title=title)
        for field in layout.fields:
            table.add_row(
                field.builder,
                field.name,
                str(field),
                "differ" if field.shape is None else f"{field.bytes}",
            )
        out.print(table)
    if manifest.failures:
        print_failures(manifest)
    if args.picture is not None:
        out.print(f"picture: {args.picture}", highlight=False)
    return ExitCode.FINISHED


def _verify(args: argparse.Namespace, manifest: Manifest) -> int:
    from convoy.data.verify import unknown_files, verify

    with progress("bytes", manifest.bytes) as shown:
        damaged = verify(args.path, manifest, shown.advance)
    unknown = unknown_files(args.path, manifest)
    if args.json:
        problems = [{"file": str(damage.path), "problem": damage.problem} for damage in damaged]
        print(
            json.dumps({"damaged": problems, "unknown": [str(path) for path in unknown]}, indent=1)
        )
    else:
        for damage in damaged:
            print(f"damaged: {damage.path}: {damage.problem}")
        for path in unknown:
            print(f"not of this data set: {path}")
        good = sum(bool(shard.tokens) for shard in manifest.shards) - len(damaged)
        print(f"{good} shards are whole, {len(damaged)} are damaged")
    if damaged and not args.json:
        print(
            "Delete the damaged files' .json and run the same `convoy prepare` again: it makes "
            "only those."
        )
    return ExitCode.FAILED if damaged else ExitCode.FINISHED


def _list(args: argparse.Namespace, manifest: Manifest) -> int:
    unknown = sorted(set(args.logs) - set(manifest.logs))
    if unknown:
        raise ConvoyError(
            f"{args.path} has no log {unknown[0]!r}. `convoy data ls {args.path}` lists those that "
            "it has."
        )
    if args.logs:
        tokens = {
            log: [token for shard in manifest.shards if shard.log == log for token in shard.tokens]
            for log in args.logs
        }
        if args.json:
            print(json.dumps(tokens, indent=1))
        else:
            print("\n".join(f"{log}/{token}" for log in args.logs for token in tokens[log]))
        return ExitCode.FINISHED
    rows: list[dict[str, Any]] = []
    for log in manifest.logs:
        shards = [shard for shard in manifest.shards if shard.log == log]
        samples, left_out = sum(len(s.tokens) for s in shards), sum(len(s.failures) for s in shards)
        rows.append(
            {
                "log": log,
                "samples": samples,
                "left_out": left_out,
                "bytes": sum(s.bytes for s in shards),
            }
        )
    if args.json:
        print(json.dumps(rows, indent=1))
        return ExitCode.FINISHED
    table = Table("log", "samples", "left out", "MB")
    for row in rows:
        table.add_row(
            row["log"], str(row["samples"]), str(row["left_out"] or ""), f"{row['bytes'] / 1e6:.1f}"
        )
    console().print(table)
    return ExitCode.FINISHED
