"""How benchmarks print: a table or JSON, and the machine that it was measured on."""

import json
import os
import platform
from collections.abc import Sequence
from datetime import date
from typing import Any

from rich.console import Console
from rich.table import Table


def machine() -> dict[str, Any]:
    """Hardware and versions that a figure means nothing without."""
    import torch

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "date": date.today().isoformat(),
        "cpus": len(os.sched_getaffinity(0)),
        "gpu": gpu,
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def print_report(
    title: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[Any]],
    record: dict[str, Any],
    as_json: bool,
) -> None:
    """Print `rows` under `columns`, or `record` with the machine's description as JSON."""
    described = record | {"machine": machine()}
    if as_json:
        print(json.dumps(described, indent=1))
        return
    table = Table(*columns, title=title)
    for row in rows:
        table.add_row(*(f"{cell:.3f}" if isinstance(cell, float) else str(cell) for cell in row))
    console = Console(width=None if os.isatty(1) else 120, emoji=False)  # 1:100:16 has one
    console.print(table)
    console.print(
        ", ".join(f"{key} {value}" for key, value in described["machine"].items() if value),
        highlight=False,
    )
