"""Examines files from outside in processes that may fail: whatever a file does to its parser, the service goes on."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from backend.storage.audio import Audio, NotAudio

MIB = 1024 * 1024
_LONGEST_REPORT = 4096


class ProbeBusy(Exception):
    """The file was not looked at: too many others are, or the machine gives no process for it. Worth coming back."""


@dataclass(frozen=True, slots=True)
class ProbeLimits:
    """What one look may take, and how many are taken at the same time.

    Attributes:
        memory: bytes of address space.
        cpu: whole seconds of the processor.
        seconds: from the start of the process to its report.
        at_once: processes in all; of one artist's files one is looked at at a time.
        wait: seconds for one's turn.
    """

    memory: int = 256 * MIB
    cpu: int = 2
    seconds: float = 15.0
    at_once: int = 4
    wait: float = 60.0


class AudioProbe:
    """Says what files are, each in a process of its own with limits that the kernel holds.

    Args:
        limits: of each process, and of all together.
    """

    def __init__(self, limits: ProbeLimits | None = None) -> None:
        self._limits = limits or ProbeLimits()
        self._free = asyncio.Semaphore(self._limits.at_once)
        self._turns: dict[str, tuple[asyncio.Lock, int]] = {}

    async def inspect(self, path: Path, owner: str) -> Audio:
        """What a file is.

        Args:
            path: where it lies.
            owner: whose it is: the files of one owner wait for each other, and so cannot keep all others waiting.

        Raises:
            NotAudio: it is none of the accepted kinds, or to find that out takes more than the limits.
            ProbeBusy: it was not its turn within `limits.wait` seconds, or no process could be started.
        """
        async with self._turn(owner):
            return await self._run(path)

    @asynccontextmanager
    async def _turn(self, owner: str) -> AsyncGenerator[None]:
        lock, waiting = self._turns.get(owner, (asyncio.Lock(), 0))
        self._turns[owner] = (lock, waiting + 1)
        held: list[asyncio.Lock | asyncio.Semaphore] = []
        try:
            try:
                async with asyncio.timeout(self._limits.wait):
                    for each in (lock, self._free):
                        await each.acquire()
                        held.append(each)
            except TimeoutError:
                raise ProbeBusy("too many files are being looked at; try again later") from None
            yield
        finally:
            for each in held:
                each.release()
            lock, waiting = self._turns.pop(owner)
            if waiting > 1:
                self._turns[owner] = (lock, waiting - 1)

    async def _run(self, path: Path) -> Audio:
        limits = self._limits
        try:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-P",
                "-m",
                "backend.storage.audio",
                *map(str, (path, limits.memory, limits.cpu, limits.seconds)),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.DEVNULL,
                limit=_LONGEST_REPORT,
                # Nothing else of the environment: it holds the database's password.
                env={"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            )
        except OSError as error:
            raise ProbeBusy("no process could be started to look at the file; try again later") from error
        line, code = b"", -signal.SIGALRM
        try:
            async with asyncio.timeout(limits.seconds + 1):  # its own timer comes first
                line = await _first_line(process)
                code = await process.wait()
        except TimeoutError:
            pass  # as if its timer had rung
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        return self._understand(line, code)

    def _understand(self, line: bytes, code: int) -> Audio:
        if code == 0 and line:
            report = json.loads(line)
            if "reason" in report:
                raise NotAudio(report["reason"])
            return Audio(**report)
        limits = self._limits
        reasons = {
            -signal.SIGALRM: f"to examine it takes longer than {limits.seconds:g} s",
            -signal.SIGXCPU: f"to examine it takes more than {limits.cpu} s of computing",
            -signal.SIGKILL: "to examine it takes more than this machine can give",
        }
        raise NotAudio(reasons.get(code, "the program that examines it failed"))


async def _first_line(process: asyncio.subprocess.Process) -> bytes:
    assert process.stdout is not None
    try:
        return await process.stdout.readline()
    except ValueError:  # longer than any report
        return b""
