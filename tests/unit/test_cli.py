"""The command line: what it says, where it says it, and how it ends."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

import steadypool.cli
from steadypool.cli import main
from steadypool.cli.app import app
from steadypool.cli.output import Output
from steadypool.settings import DatabaseSettings, variable_of

COMMANDS = (
    ["doctor"],
    ["advise"],
    ["why"],
    ["completion"],
    ["lab", "serve"],
    ["lab", "proxy"],
    ["lab", "replay"],
    ["lab", "matrix"],
)


def test_version_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.strip()[0].isdigit()
    assert main(["lab", "--help"]) == 0
    said = capsys.readouterr().out
    assert all(command[-1] in said for command in COMMANDS if command[0] == "lab")
    assert main(["--help"]) == 0
    said = capsys.readouterr().out
    assert all(command[0] in said for command in COMMANDS)


def test_no_command_is_forgotten() -> None:
    found = {(name,) for name in app if not name.startswith("-")} - {("lab",)}
    found |= {("lab", name) for name in app["lab"] if not name.startswith("-")}
    assert found == {tuple(command) for command in COMMANDS}


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_each_command_has_examples_and_json(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*command, "--help"]) == 0
    said = capsys.readouterr().out
    assert "Examples" in said
    assert f"steadypool {' '.join(command)}" in said
    assert "--json" in said
    assert "\x1b" not in said


@pytest.mark.parametrize(
    "arguments",
    [
        ["no-such-command"],
        ["doctor", "postgresql://host/name", "one-too-many"],
        ["advise"],
        ["completion", "tcsh"],
        ["lab", "serve", "--mode", "sometimes"],
        ["lab", "serve", "--no-such-option"],
        ["lab", "proxy"],
        ["lab", "proxy", "nonsense"],
        ["lab", "replay", "1999-12-31"],
        ["lab", "replay", "all", "--speed", "0"],
        ["lab", "matrix", "--peers", "oracle"],
        ["lab", "matrix", "--only", "earthquake"],
        ["lab", "matrix", "--scale", "0"],
    ],
)
def test_wrong_use_is_exit_code_2_and_says_why(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    said = capsys.readouterr()
    assert said.err.startswith("error: ")
    assert not said.out


def test_a_missing_package_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in [name for name in sys.modules if name.startswith("steadypool.cli.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "cyclopts", None)
    assert main(["--version"]) == 1
    assert 'pip install "steadypool[cli]"' in capsys.readouterr().err


def test_a_missing_package_of_the_lab_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in [
        name for name in sys.modules if name.startswith(("steadypool_lab.clients", "steadypool_lab.matrix"))
    ]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "psycopg_pool", None)
    assert main(["lab", "matrix", "--peers", "steadypool"]) == 1
    assert "pip install steadypool-lab" in capsys.readouterr().err


def test_each_setting_that_is_advised_exists() -> None:
    folder = Path(steadypool.cli.__file__).parent
    files = [*folder.rglob("*.py"), folder.parent / "monitor/rules.py"]
    named = {name for file in files for name in re.findall(r"\bDATABASE_[A-Z_]+\b", file.read_text())}
    assert {"DATABASE_POOL_SIZE", "DATABASE_DIRECT_URL"} <= named
    assert named <= {variable_of(name) for name in DatabaseSettings.model_fields}


def test_in_a_pipe_there_is_text_without_frames(capsys: pytest.CaptureFixture[str]) -> None:
    for command in (["--help"], ["why"], ["doctor", "--list-checks"]):
        assert main(command) == 0
        said = capsys.readouterr().out
        assert not set(said) & set("│─┃━╭╮╰╯┏┓\x1b"), command
        assert max(len(line.rstrip()) for line in said.splitlines()) < 200


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_completes_commands_and_options(
    shell: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert "doctor" in script
    assert "list-checks" in script
    monkeypatch.setenv("SHELL", f"/usr/bin/{shell}")
    assert main(["completion", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"shell": shell, "script": script.removesuffix("\n")}
    monkeypatch.setenv("SHELL", "/bin/sh")
    assert main(["completion"]) == 2
    assert "steadypool completion bash" in capsys.readouterr().err


def test_completion_is_installed_where_the_shell_looks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert main(["completion", "fish", "--install", "--json"]) == 0
    installed = json.loads(capsys.readouterr().out)["installed"]
    assert "doctor" in Path(installed).read_text()
    assert Path(installed).is_relative_to(tmp_path)


def test_a_failure_is_exit_code_1_and_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["lab", "serve", "--data-dir", "/dev/null/data"]) == 1
    said = capsys.readouterr()
    assert "error:" in said.err
    assert "Traceback" not in said.err


def test_results_go_to_stdout_and_the_rest_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    output = Output(as_json=True)
    with output.progress(1, "working") as step:
        step.doing("one of [1]")
        step.done("done")
    output.show("for people")
    output.result({"a": [1]})
    said = capsys.readouterr()
    assert json.loads(said.out) == {"a": [1]}
    assert said.err.splitlines() == ["one of [1]", "done"]


class Command:
    """A command in a process of its own."""

    def __init__(self, arguments: Sequence[str]) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "steadypool.cli", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=os.environ | {"PYTHONUNBUFFERED": "1"},
            text=True,
        )

    def send(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def event(self) -> dict[str, object]:
        assert self.process.stdout is not None
        return json.loads(self.process.stdout.readline())


@pytest.fixture
def run() -> Iterator[object]:
    started: list[Command] = []

    def run(*arguments: str) -> Command:
        started.append(Command(arguments))
        return started[-1]

    yield run
    for command in started:
        command.process.kill()
        command.process.communicate()


def test_the_proxy_obeys(run) -> None:
    command = run("lab", "proxy", "127.0.0.1:1", "--delay", "0.01", "--json")
    assert command.event()["mode"] == "pass"
    for line, mode in (("silent", "silent"), ("both rate=100 slice=1", "silent"), ("half-open", "half-open")):
        command.send(line)
        assert command.event()["mode"] == mode
    command.send("up rate=fast")
    command.event()
    command.send("quit")
    _, said = command.process.communicate(timeout=20)
    assert command.process.returncode == 0
    assert "fast" in said


def test_the_proxy_treats_one_connection_alone(run) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        command = run("lab", "proxy", f"127.0.0.1:{server.getsockname()[1]}", "--json")
        port = int(str(command.event()["port"]))
        with socket.create_connection(("127.0.0.1", port)) as first, server.accept()[0] as first_served:
            with socket.create_connection(("127.0.0.1", port)) as second, server.accept()[0] as second_served:
                command.send("connection 1 silent")
                command.event()
                command.send("connections")
                listed: Any = command.event()["connections"]
                silent = {one["connection"]: one["up"]["silent"] and one["down"]["silent"] for one in listed}
                assert silent == {1: True, 2: False}
                for client in (first, second):
                    client.sendall(b"hello")
                assert second_served.recv(5) == b"hello"
                command.send("connection 1 down delay=0.01")  # it stays silent in both directions
                command.event()
                first_served.settimeout(0.05)
                with pytest.raises(TimeoutError):
                    first_served.recv(5)
                command.send("connection 1 pass")
                command.event()
                first_served.settimeout(5)
                assert first_served.recv(5) == b"hello"
                command.send("connection 2 reset")
                command.event()
                with pytest.raises(ConnectionResetError):
                    second.recv(1)
                for wrong in ("connection 2 drop", "connection 1 sing", "connection", "sing"):
                    command.send(wrong)
                    command.event()
                command.send("quit")
                _, said = command.process.communicate(timeout=20)
                assert said.count("no connection '2'") == 1
                assert said.count("unknown command") == 3


def test_serve_says_where_it_is_and_stops_on_a_signal(run) -> None:
    command = run("lab", "serve", "--sleep-after", "0", "--json")
    event = command.event()
    assert event["event"] == "awake"
    assert str(event["url"]).startswith("postgresql://postgres:")
    command.process.send_signal(signal.SIGTERM)
    command.process.communicate(timeout=20)
    assert command.process.returncode == 0
