"""Looks through the instructions of a pickle before it is read.

As pickletools.genops, whose table this uses, at a quarter of its cost: a sample of a small agent is
twelve pickles.
"""

import pickle
import pickletools
import struct

MOST_TUPLES = 20_000  # hashing a tuple within tuples goes down the C stack, unguarded

_UNKNOWN, _TWO_LINES = -99, -98
_LINE = pickletools.UP_TO_NEWLINE
_LENGTHS = {
    pickletools.TAKEN_FROM_ARGUMENT1: struct.Struct("<B"),
    pickletools.TAKEN_FROM_ARGUMENT4: struct.Struct("<i"),
    pickletools.TAKEN_FROM_ARGUMENT4U: struct.Struct("<I"),
    pickletools.TAKEN_FROM_ARGUMENT8U: struct.Struct("<Q"),
}


def _argument_of(operation: pickletools.OpcodeInfo) -> int:
    """The bytes of its argument, or one of the negative numbers that say how they are found."""
    if operation.arg is None:
        return 0
    if operation.arg is pickletools.stringnl_noescape_pair:
        return _TWO_LINES
    return operation.arg.n


_ARGUMENTS = [_UNKNOWN] * 256
for _operation in pickletools.opcodes:
    _ARGUMENTS[ord(_operation.code)] = _argument_of(_operation)
_CODES = {operation.name: ord(operation.code) for operation in pickletools.opcodes}
_STOP = _CODES["STOP"]
_SETS = {_CODES[name] for name in ("EMPTY_SET", "FROZENSET")}
_TUPLES = {_CODES[name] for name in ("TUPLE", "TUPLE1", "TUPLE2", "TUPLE3")}
_PUTS = {_CODES[name] for name in ("PUT", "BINPUT", "LONG_BINPUT")}
_WATCHED = _SETS | _TUPLES | _PUTS


class Excessive(Exception):
    """Instructions whose cost is out of proportion to their size."""


def look_through(content: bytes, begin: int = 0) -> int:
    """The end of the pickle that begins at `begin`.

    Raises Excessive for what takes far more memory than it has bytes, EOFError for a pickle that
    ends too early, and UnpicklingError or ValueError for one that is damaged.
    """
    position, size = begin, len(content)
    number = tuples = 0
    while position < size:
        code = content[position]
        argument = _ARGUMENTS[code]
        start = position + 1
        if argument >= 0:
            position = start + argument
        elif argument == _LINE:
            position = content.index(b"\n", start) + 1
        elif argument == _TWO_LINES:
            position = content.index(b"\n", content.index(b"\n", start) + 1) + 1
        elif argument == _UNKNOWN:
            raise pickle.UnpicklingError(f"instruction {code:#04x} at byte {position}")
        else:
            length = _LENGTHS[argument]
            if start + length.size > size:
                break
            count = length.unpack_from(content, start)[0]
            if count < 0:
                raise pickle.UnpicklingError(f"{count} bytes at byte {position}")
            position = start + length.size + count
        if code == _STOP:
            return position
        if code in _WATCHED:
            # A memo's number makes a table of as many entries; a writer counts up from zero.
            if code in _PUTS and _memo(content[start:position], argument) > number:
                raise pickle.UnpicklingError(f"a memo's number at instruction {number}")
            if code in _SETS:
                raise Excessive("a set")
            tuples += code in _TUPLES
            if tuples > MOST_TUPLES:
                raise Excessive(f"more than {MOST_TUPLES} tuples")
        number += 1
    raise EOFError("a pickle ends too early")


def _memo(argument: bytes, kind: int) -> int:
    return int(argument) if kind == _LINE else int.from_bytes(argument, "little")
