"""Functions of agents known by their statements, so that a fork's copy is known too."""

import ast
import hashlib
import inspect
import textwrap
from collections.abc import Iterable
from types import FunctionType
from typing import Any


def fingerprint(functions: Iterable[Any]) -> str | None:
    """Of the functions' statements, whatever their formatting, docstrings and annotations.

    None where one of them is not a function with a source.
    """
    sources = []
    for entry in functions:
        function = inspect.unwrap(entry)
        if not isinstance(function, FunctionType):
            return None
        try:
            (tree,) = ast.parse(textwrap.dedent(inspect.getsource(function))).body
        except (OSError, SyntaxError):
            return None
        if not isinstance(tree, ast.FunctionDef):
            return None
        if ast.get_docstring(tree) is not None:
            tree.body = tree.body[1:]
        tree.returns = None
        for argument in tree.args.args:
            argument.annotation = None
        sources.append(ast.unparse(tree))
    return hashlib.sha256("\n".join(sources).encode()).hexdigest()[:12]
