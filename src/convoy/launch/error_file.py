"""A rank's record in torchrun's own error file, for when the run directory has no room for it."""

import contextlib
import json
from dataclasses import asdict
from typing import Any

from convoy.launch.verdict import Failure


def leave(failure: Failure) -> None:
    """Leave the record where torchrun's agent looks; without torchrun, nowhere."""
    from torch.distributed.elastic.multiprocessing.errors import get_error_handler

    with contextlib.suppress(OSError):
        get_error_handler().record_exception(RuntimeError(json.dumps(asdict(failure))))


def find(message: Any) -> Failure | None:
    """What `leave` left; `message` is the one that torchrun read from its error file."""
    text = message.get("message", "") if isinstance(message, dict) else message
    try:
        return Failure(**json.loads(text.partition(": ")[2]))
    except (AttributeError, ValueError, TypeError):
        return None
