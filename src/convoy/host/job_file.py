"""The text for sbatch: a job file with the options and arguments of one submission."""

import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from convoy.errors import ConvoyError

_DIRECTIVE = re.compile(r"#SBATCH --([a-z-]+)=?(.*)")


def choose(root: Path, nodes: int) -> Path:
    """The job file of this size, else that of one node: the node count lives in --nodes alone."""
    own = root / "slurm" / f"torchrun_{nodes}node.slurm"
    return own if own.is_file() else root / "slurm" / "torchrun_1node.slurm"


def directives(text: str) -> dict[str, str]:
    """`#SBATCH` options of a job file, as option -> value."""
    found = (_DIRECTIVE.fullmatch(line) for line in text.splitlines())
    return {match[1]: match[2] for match in found if match}


def render(text: str, options: Mapping[str, str], root: Path, arguments: Sequence[str]) -> str:
    """A job file's text as sbatch would carry it out: `options` replace its own, `arguments` stand
    in it."""
    lines = ["#!/usr/bin/env bash"]
    effective = {**directives(text), **options}
    lines += [
        f"#SBATCH --{name}={value}" if value else f"#SBATCH --{name}"
        for name, value in effective.items()
    ]
    lines.append(shlex.join(["exec", str(root / "slurm" / "launch.sh"), *arguments]))
    return "\n".join(lines) + "\n"


def command(job_file: Path, options: Mapping[str, str], arguments: Sequence[str]) -> list[str]:
    """The sbatch call; only options that differ from the job file's stand in it."""
    own = directives(job_file.read_text())
    given = [
        f"--{name}={value}" if value else f"--{name}"
        for name, value in options.items()
        if own.get(name) != value
    ]
    return ["sbatch", *given, str(job_file), *arguments]


def elastic(options: Mapping[str, str], nodes: int, least: int) -> dict[str, str]:
    """`options` of a job that continues on `least` nodes or more when it has lost others: SLURM
    would end it with the first node that fails."""
    if not 1 <= least <= nodes:
        raise ConvoyError(f"--min-nodes={least} must be from 1 to {nodes} (--nodes).")
    variables = f"{options.get('export', 'ALL')},CONVOY_MIN_NODES={least}"
    return {**options, "no-kill": "", "export": variables}


def seconds(text: str) -> int | None:
    """SLURM's notations of a time (M, M:S, H:M:S, D-H, D-H:M, D-H:M:S) in seconds; None stands for
    no limit."""
    if text.upper() in {"UNLIMITED", "INFINITE", "NONE"}:
        return None
    if not re.fullmatch(r"(\d+-\d+(:\d+){0,2}|\d+(:\d+){0,2})", text):
        raise ValueError(text)
    days, dash, rest = text.rpartition("-")
    parts = [int(part) for part in rest.split(":")]
    if dash:
        hours, minutes, secs = [*parts, 0, 0][:3]
    elif len(parts) == 3:
        hours, minutes, secs = parts
    else:
        hours, minutes, secs = 0, parts[0], [*parts, 0][1]
    return ((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + secs
