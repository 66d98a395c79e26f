"""A pytest plugin for pgvector's suite: its distribution leaves out the conftest from which its tests take numpy."""

from __future__ import annotations

import sys
import types

import numpy

_conftest = types.ModuleType("tests.conftest")
_conftest.numpy = numpy  # type: ignore[attr-defined]
_package = types.ModuleType("tests")
_package.__path__ = ["tests"]
sys.modules |= {"tests": _package, "tests.conftest": _conftest}
