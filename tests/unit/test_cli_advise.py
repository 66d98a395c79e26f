"""`steadypool advise`: what it reads, what it replays, and that its advice follows from the load."""

from __future__ import annotations

import http.server
import json
import random
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from steadypool import DatabaseSettings
from steadypool.cli import main
from steadypool.cli.advise.counsel import advise, busiest, rounded
from steadypool.cli.advise.replay import percentile, replay
from steadypool.cli.advise.sources import load
from steadypool.errors import ConfigurationError
from steadypool.monitor import Arrival, Recording
from steadypool.pool.lease import PoolOptions

NOW = 1_790_000_000.0


def crowd(*spans: tuple[float, float], workload: str | None = None) -> list[Arrival]:
    return [Arrival(NOW + at, 0.0, held, workload, "served") for at, held in spans]


def steady(rate: float, held: float, seconds: float = 30.0, seed: int = 1) -> list[Arrival]:
    rng, arrivals, at = random.Random(seed), [], 0.0
    while (at := at + rng.expovariate(rate)) < seconds:
        arrivals.append(Arrival(NOW + at, 0.0, rng.expovariate(1 / held), None, "served"))
    return arrivals


def written(folder: Path, arrivals: list[Arrival], **settings: Any) -> Path:
    now = {"pool_size": 10, "max_overflow": 5, "pool_timeout": 10, "connection_timeout": 10} | settings
    path = folder / "recording.json"
    path.write_text(json.dumps(Recording("main", NOW, now, arrivals=tuple(arrivals)).as_json()))
    return path


# -- what is no recording ------------------------------------------------------------------------------------------


HEAD = '"format": "steadypool-recording", "version": 1, "pool": "main", "at": 1, "settings": {}'


@pytest.mark.parametrize(
    "text",
    [
        '{"a":' * 200_000 + "1" + "}" * 200_000,
        "[" * 200_000,
        '{"k": "head", ' + HEAD + '}\n{"k": "arrivals"}',
        '{"k": "head", '
        + HEAD
        + '}\n{"k": "arrivals", "workloads": [], "outcomes": [], "rows": [[1, 1, 1, 9, 9]]}',
        '{"k": "head", ' + HEAD + '}\n{"k": "row", "span": 1, "row": 7}',
        '{"k": "head", ' + HEAD + '}\n{"k": "row", "span": 1, "row": ["x", "y"]}',
        '{"k": "head", ' + HEAD + '}\n{"other": 1}',
        "{" + HEAD + ', "seconds": 7}',
    ],
)
def test_a_file_of_another_shape_is_refused_in_a_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str
) -> None:
    path = tmp_path / "recording.json"
    path.write_text(text)
    assert main(["advise", str(path)]) == 1
    said = capsys.readouterr().err
    assert "recording" in said
    assert "Traceback" not in said


# -- the replay ----------------------------------------------------------------------------------------------------


def test_who_comes_too_many_waits_as_long_as_the_pool_says() -> None:
    outcome = replay(crowd((0, 1), (0, 1), (0, 1), (0, 1)), PoolOptions(size=2, max_overflow=0))
    assert outcome.waits == pytest.approx([0, 0, 1, 1], abs=0.01)
    assert (outcome.peak, outcome.refused, outcome.connects_per_minute) == (2, 0, 0)


def test_who_waits_too_long_is_refused_as_by_the_real_pool() -> None:
    outcome = replay(
        crowd((0, 5), (0, 1)), PoolOptions(size=1, max_overflow=0, pool_timeout=2, connect_timeout=2)
    )
    assert outcome.refused == 1


def test_overflow_pays_for_its_connects_and_its_time_is_counted() -> None:
    outcome = replay(crowd((0, 6), (0, 6), (60, 0.1)), PoolOptions(size=1, max_overflow=1))
    assert outcome.connects_per_minute == 1
    assert 0.01 < outcome.waits[-1] < 0.1
    assert outcome.overflow_share == pytest.approx(0.1, rel=0.05)


def test_a_ceiling_of_a_workload_holds_in_the_replay() -> None:
    arrivals = crowd((0, 1), (0, 1), workload="uploads")
    free = replay(arrivals, PoolOptions(size=2, max_overflow=0))
    limited = replay(arrivals, PoolOptions(size=2, max_overflow=0), ceilings={"uploads": 1})
    assert free.waits[-1] == pytest.approx(0, abs=0.01)
    assert limited.waits[-1] == pytest.approx(1, abs=0.01)


def test_the_same_load_gives_the_same_outcome() -> None:
    arrivals = steady(50, 0.1, 10)
    options = PoolOptions(size=5, max_overflow=2)
    assert replay(arrivals, options) == replay(arrivals, options)


def test_waits_are_those_of_queueing_theory() -> None:
    """M/M/1 at 50 %: a customer waits with probability 1/2, and then exponentially; p99 = ln(50) / (mu - lambda)."""
    outcome = replay(steady(10, 0.05, 1000), PoolOptions(size=1, max_overflow=0, pool_timeout=100))
    assert outcome.wait(99) == pytest.approx(3.912 / 10, rel=0.2)


def test_percentiles() -> None:
    assert [percentile([1, 2, 3, 4], p) for p in (0, 50, 99, 100)] == [1, 2, 4, 4]
    assert percentile([], 99) == 0
    assert (rounded(4.2), rounded(5.0), rounded(7200)) == (5.0, 5.0, 7200.0)


def test_of_much_the_busiest_part() -> None:
    arrivals = crowd(*((at, 0.1) for at in (0, 10, 20, 20.1, 20.2, 30)))
    assert [round(a.at - NOW, 1) for a in busiest(arrivals, 3)] == [20, 20.1, 20.2]


# -- the advice ----------------------------------------------------------------------------------------------------


def test_sizes_that_suffice_are_kept(tmp_path: Path) -> None:
    given = advise(load(str(written(tmp_path, steady(20, 0.05)))), wait=0.01, most=50)
    assert given.chosen.name == "as it is"
    assert (given.chosen.outcome.size, given.chosen.outcome.max_overflow) == (10, 5)


def test_load_that_is_there_all_the_time_wants_option_1(tmp_path: Path) -> None:
    path = written(tmp_path, steady(100, 0.08, 10), pool_size=4, max_overflow=2)
    given = advise(load(str(path)), wait=0.01, most=50)
    assert given.chosen.name.startswith("option 1")
    assert given.chosen.outcome.size > 8
    assert given.chosen.outcome.wait(99) <= 0.01 < given.now.wait(99)
    assert "connects a minute" in given.options[1].price
    assert "memory" in given.options[0].price


def test_a_rare_burst_wants_option_2(tmp_path: Path) -> None:
    calm = crowd(*((at, 0.05) for at in range(600)))
    burst = crowd(*((300.0, 0.5) for _ in range(12)))
    path = written(tmp_path, sorted(calm + burst, key=lambda a: a.at), pool_size=4, max_overflow=0)
    given = advise(load(str(path)), wait=0.05, most=50)
    assert given.chosen.name.startswith("option 2")
    assert given.chosen.outcome.size == 4
    assert given.chosen.outcome.max_overflow > 0
    assert given.chosen.outcome.wait(99) <= 0.05 < given.now.wait(99)


def test_each_workload_has_its_own_timeout_and_the_long_one_a_ceiling(tmp_path: Path) -> None:
    uploads = crowd(*((at * 0.5, 12.0) for at in range(40)), workload="uploads")
    arrivals = sorted(steady(20, 0.05) + uploads, key=lambda a: a.at)
    given = advise(load(str(written(tmp_path, arrivals))), wait=0.01, most=60)
    timeouts = {each.workload: each for each in given.timeouts}
    assert timeouts[None].seconds == 1.0
    assert timeouts["uploads"].seconds == 30.0
    assert timeouts["uploads"].max_connections is not None
    assert timeouts[None].max_connections is None


def test_a_goal_that_no_size_reaches_is_said(tmp_path: Path) -> None:
    given = advise(load(str(written(tmp_path, steady(100, 0.1, 5)))), wait=0.01, most=3)
    assert any("no size" in remark for remark in given.remarks)


# -- what it reads -------------------------------------------------------------------------------------------------

LOG = """
2026-11-22 10:00:00.100 UTC [4711] LOG:  duration: 80.000 ms  statement: SELECT 1
2026-11-22 10:00:00.110 UTC [4712] LOG:  duration: 60.500 ms  execute <unnamed>: SELECT $1
2026-11-22 10:00:00.110 UTC [4712] DETAIL:  Parameters: $1 = 'secret'
2026-11-22 10:00:00.111 UTC [4712] LOG:  duration: 0.100 ms  bind <unnamed>: SELECT $1
2026-11-22 10:00:01.000 UTC [4711] ERROR:  canceling statement due to statement timeout
{"timestamp":"2026-11-22 10:00:02.000 UTC","application_name":"jobs","message":"duration: 500.0 ms  statement: x"}
"""


def test_the_log_of_postgres(tmp_path: Path) -> None:
    path = tmp_path / "postgresql.log"
    path.write_text(LOG)
    found = load(str(path))
    assert [(a.held, a.workload) for a in found.arrivals] == [(0.08, None), (0.0605, None), (0.5, "jobs")]
    assert found.arrivals[1].at - found.arrivals[0].at == pytest.approx(0.0295, abs=1e-5)
    assert not found.whole
    assert "a log has only" in advise(found, wait=0.01, most=10).remarks[0]


TRANSACTIONS = """\
2026-11-22 10:00:00.010 UTC [1] LOG:  duration: 5.0 ms  statement: ROLLBACK;
2026-11-22 10:00:01.000 UTC [1] LOG:  duration: 0.0 ms  statement: BEGIN;
2026-11-22 10:00:01.100 UTC [2] LOG:  duration: 0.0 ms  execute <unnamed>: BEGIN
2026-11-22 10:00:01.200 UTC [1] LOG:  duration: 100.0 ms  execute <unnamed>: SELECT $1
2026-11-22 10:00:01.500 UTC [2] LOG:  duration: 1.0 ms  execute <unnamed>: COMMIT
2026-11-22 10:00:02.000 UTC [1] LOG:  duration: 0.0 ms  statement: ROLLBACK;
2026-11-22 10:00:02.500 UTC [3] LOG:  duration: 50.0 ms  statement: VACUUM
"""


def test_a_log_with_transactions_says_how_long_connections_were_held(tmp_path: Path) -> None:
    path = tmp_path / "postgresql.log"
    path.write_text(TRANSACTIONS)
    found = load(str(path))
    assert [round(arrival.held or 0.0, 3) for arrival in found.arrivals] == [1.0, 0.4, 0.05]
    assert found.executing.count == 2


def test_one_application_for_everything_is_no_workload(tmp_path: Path) -> None:
    line = (
        '{"timestamp":"2026-11-22 10:00:0%d.000 UTC","pid":7,"application_name":"plyr",'
        '"message":"duration: 500.0 ms  statement: SELECT x"}'
    )
    path = tmp_path / "postgresql.json"
    path.write_text("\n".join(line % second for second in range(3)))
    found = load(str(path))
    assert [arrival.workload for arrival in found.arrivals] == [None] * 3
    assert [each.workload for each in advise(found, wait=0.01, most=10).timeouts] == [None]


@pytest.fixture
def page(tmp_path: Path) -> Iterator[str]:
    body = written(tmp_path, steady(20, 0.05, 5)).read_bytes()

    class Page(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/pool/export.json" else 403)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None: ...

    with http.server.HTTPServer(("127.0.0.1", 0), Page) as server:
        serving = threading.Thread(target=server.serve_forever)
        serving.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        serving.join()


def test_a_running_service(page: str) -> None:
    assert len(load(f"{page}/pool").arrivals) == len(load(f"{page}/pool/export.json").arrivals) > 50
    with pytest.raises(ConfigurationError, match="answered 403"):
        load(f"{page}/elsewhere")
    with pytest.raises(ConfigurationError, match="nobody answers"):
        load("http://127.0.0.1:1/pool")


@pytest.mark.parametrize("text", ["", "nothing of ours", '{"format": "other"}'])
def test_what_is_no_recording_is_exit_code_1(
    text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "file"
    path.write_text(text)
    assert main(["advise", str(path)]) == 1
    assert main(["advise", str(tmp_path / "nowhere")]) == 1
    said = capsys.readouterr().err
    assert said.count("error:") == 2
    assert "there is no such file" in said
    assert said.count("what can be read is") >= 1


# -- the command ---------------------------------------------------------------------------------------------------


def test_the_block_to_paste_is_read_by_the_settings(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = written(tmp_path, steady(100, 0.08, 5), pool_size=4, max_overflow=2)
    assert main(["advise", str(path), "--env"]) == 0
    block = tmp_path / "paste.env"
    block.write_text(capsys.readouterr().out)
    settings = DatabaseSettings(_env_file=block)
    assert settings.pool_size > 4
    assert settings.max_overflow == 2
    assert main(["advise", str(path), "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["options"][0]["pool_size"] == settings.pool_size
    assert answer["now"]["wait_p99"] > answer["options"][0]["wait_p99"]
    assert main(["advise", str(path)]) == 0
    said = capsys.readouterr().out
    assert "option 1" in said
    assert "option 2" in said
    assert "DATABASE_POOL_SIZE=" in said


@pytest.mark.parametrize("arguments", [["--wait", "0"], ["--most", "0"]])
def test_wrong_use(arguments: list[str], tmp_path: Path) -> None:
    assert main(["advise", str(tmp_path), *arguments]) == 2
