"""postgres.js on Node, the best pipelining client outside Python: the same single read, as many callers."""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
from pathlib import Path
from typing import Any

NODE = Path(__file__).parent.parent / "node"


async def measure(url: str, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Rates for 100 callers over 2 connections, a round each; nothing where the machine has no Node."""
    if shutil.which("npm") is None or shutil.which("node") is None:
        print("postgres.js: not measured, there is no Node on this machine")
        return []
    if not (NODE / "node_modules").is_dir():
        installing = await asyncio.create_subprocess_exec("npm", "ci", "--silent", cwd=NODE)
        if await installing.wait():
            raise SystemExit("npm ci failed in bench/node; --no-node leaves this out")
    process = await asyncio.create_subprocess_exec(
        "node",
        "read.mjs",
        url,
        "100",
        str(args.rounds),
        str(args.seconds),
        cwd=NODE,
        stdout=asyncio.subprocess.PIPE,
    )
    output, _ = await process.communicate()
    row = {"contestant": "postgres.js", "callers": 100, "rates": json.loads(output)}
    print(
        f"postgres.js on Node, single read, 100 callers, 2 connections: {row['rates']} a second", flush=True
    )
    return [row]
