"""The suites that can be run, and the differences that are expected of them: two tables of data."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
REPOSITORY = HERE.parents[1]
CACHE = REPOSITORY / ".cache" / "strangers"
"""Everything that is fetched or made: ignored by git, and safe to delete."""

DRIVERS = ("asyncpg", "psycopg", "steadypool")


@dataclass(frozen=True)
class Source:
    """A source distribution, as the package index has it for ever."""

    package: str
    version: str
    sha256: str

    def __str__(self) -> str:
        return f"{self.package} {self.version}"

    @property
    def folder(self) -> Path:
        return CACHE / "sources" / f"{self.package}-{self.version}"

    @property
    def requirement(self) -> str:
        return f"{self.package}=={self.version} --hash=sha256:{self.sha256}"


@dataclass(frozen=True, kw_only=True)
class Suite:
    """What one suite needs; suites.toml says what each field means."""

    name: str
    source: Source
    environment: str
    select: tuple[str, ...]
    plugins: tuple[str, ...] = ()
    stubs: bool = False
    drivers: tuple[str, ...] = DRIVERS
    switches_driver: bool = True
    database: str = "suite"
    prepare: tuple[str, ...] = ()
    environ: Mapping[str, str]
    quick_select: tuple[str, ...] | None = None
    seconds: int = 600
    test_seconds: int = 60

    @property
    def is_quick(self) -> bool:
        """Whether every change must pass it, or the part of it that `quick_select` leaves."""
        return self.quick_select is not None

    def quick(self) -> Suite:
        """The part of it that every change must pass."""
        return replace(self, select=(*self.select, *(self.quick_select or ())))


@dataclass(frozen=True)
class Variant:
    """One run of a suite."""

    engine: str
    driver: str

    def __str__(self) -> str:
        return f"{self.engine} {self.driver}"

    @property
    def baseline(self) -> Variant:
        """The run that this one is compared with: `postgresql+steadypool` has psycopg's types."""
        return Variant("stock", "psycopg" if self.driver == "steadypool" else self.driver)


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Tests that may be worse on our engine than on SQLAlchemy's, and why."""

    suite: str
    drivers: tuple[str, ...]
    tests: tuple[str, ...]
    kind: str
    reason: str
    section: str
    sometimes: bool = False

    def covers(self, test: str) -> bool:
        """Whether a test is one of these, or in a class or file that is listed."""
        return any(is_within(test, listed) for listed in self.tests)


def is_within(test: str, listed: str) -> bool:
    """Whether a listed name is this test, the test without its parameters, or the class or file that it is in.

    Example:
        >>> is_within("test/test_a.py::Of::test_b[1]", "test/test_a.py::Of")
        True
    """
    return test == listed or test.startswith((f"{listed}[", f"{listed}::"))


KINDS = {
    "wanted": "a difference that is wanted, and documented",
    "suite": "the suite looks at what no application sees: a mock of a driver, a logger's name",
    "fault": "a fault of ours, to be mended",
}


def read_suites(path: Path = HERE / "suites.toml") -> dict[str, Suite]:
    """All suites by name."""
    table = tomllib.loads(path.read_text())
    sources = {name: Source(name, **source) for name, source in table["source"].items()}
    return {name: _suite(name, dict(row), sources) for name, row in table["suite"].items()}


def read_without_tests(path: Path = HERE / "suites.toml") -> dict[str, str]:
    """The packages that were looked at and whose source distribution has no tests to run, with the reason."""
    return tomllib.loads(path.read_text())["without_tests"]


def _suite(name: str, row: dict[str, Any], sources: Mapping[str, Source]) -> Suite:
    package = row.pop("package")
    lists = {key: tuple(value) for key, value in row.items() if isinstance(value, list)}
    defaults = {"environment": package, "environ": {}}
    return Suite(name=name, source=sources[package], **(defaults | row | lists))


def read_differences(path: Path = HERE / "expected.toml") -> list[Difference]:
    """The table of expected differences."""
    rows = tomllib.loads(path.read_text()).get("difference", [])
    return [
        Difference(**(row | {key: tuple(value) for key, value in row.items() if isinstance(value, list)}))
        for row in rows
    ]
