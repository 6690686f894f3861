"""Runs a NAVSIM script, unedited, where packages that it imports and never calls are missing.

    python benchmarks/navsim_script.py navsim.planning.script.run_training agent=…

Training from a cache uses none of the map and cloud libraries that NAVSIM's modules import. Where
one is missing its name is an empty stand-in; one that is used all the same raises an error.
"""

import importlib.abc
import importlib.machinery
import importlib.util
import os
import runpy
import sys
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any

UNUSED = (
    "aioboto3",
    "aiofiles",
    "boto3",
    "botocore",
    "fiona",
    "geopandas",
    "pyogrio",
    "pyproj",
    "rasterio",
    "retry",
)
TREES = [
    Path(os.environ.get("NAVSIM_DEVKIT_ROOT", Path(__file__).parents[1] / "build/navsim")),
    Path(os.environ.get("NUPLAN_DEVKIT_ROOT", Path(__file__).parents[1] / "build/nuplan-devkit")),
]


class _Anything(type):
    """A class whose attributes are such classes again; a Warning, for it may be filtered."""

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Anything(name, (Warning,), {"__init__": _nothing, "__call__": _as_it_is})


def _nothing(self: Any, *arguments: Any, **options: Any) -> None:
    pass


def _as_it_is(self: Any, function: Any) -> Any:
    return function


class StandIn(types.ModuleType):
    """A module whose names can be imported, named in annotations, and used as decorators."""

    __path__: list[str] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(_Anything(self.__name__, (), {}), name)


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: Any = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname.split(".")[0] not in UNUSED:
            return None
        return importlib.machinery.ModuleSpec(fullname, self, is_package=True)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        return StandIn(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        pass


def prepare_imports() -> None:
    """Make NAVSIM's and nuPlan's trees importable; real packages come before stand-ins."""
    sys.path[:0] = [str(tree) for tree in TREES if str(tree) not in sys.path]
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.append(_Finder())


if __name__ == "__main__":
    prepare_imports()
    _, module, *arguments = sys.argv
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
