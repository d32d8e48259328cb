"""Notebook 07: the command line in a notebook, a server that is started and ended, and the log of a run."""

import urllib.error
import urllib.request

import pytest
from lessons.own_data import CommandResult, Terminal, history_of, served

from dynamask.structures import DynaMaskError

SERVER = """
import http.server, sys, time
port = int(sys.argv[sys.argv.index("--port") + 1])
if "--slow" in sys.argv:
    time.sleep(60)
if "--broken" in sys.argv:
    sys.exit("first line\\ndynamask: error: nothing to serve")
http.server.HTTPServer(("127.0.0.1", port), http.server.SimpleHTTPRequestHandler).serve_forever()
"""


@pytest.fixture(scope="module")
def terminal(tmp_path_factory):
    one = Terminal(tmp_path_factory.mktemp("terminal"))
    yield one
    one.close()


@pytest.fixture
def server(tmp_path, monkeypatch):
    (tmp_path / "little_server.py").write_text(SERVER, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return "little_server"


def reached(address: str) -> bool:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(address, timeout=5):
            return True
    except OSError:
        return False


def test_commands_run_one_after_the_other(terminal, tmp_path):
    out = tmp_path / "a folder"
    made = terminal("shapes", "--images", 2, "--seed", 3, "--out", out)
    assert made.code == 0 and made.command == f"dynamask shapes --images 2 --seed 3 --out '{out}'"
    assert repr(made) == f"$ {made.command}\n{made.text.rstrip()}" and made.text.startswith("2 scenes")
    assert (out / "annotations.json").is_file()
    terminal("shapes", "--images", 1, "--seed", 3, "--out", terminal.folder / "mine")
    assert (terminal.folder / "mine" / "annotations.json").is_file()
    inside = terminal("data", "check", "--annotations", terminal.folder / "mine" / "annotations.json")
    assert inside.code == 0 and inside.command == "dynamask data check --annotations mine/annotations.json"
    checked = terminal("data", "check", "--data", out)
    assert checked.code == 0 and "nothing is broken" in checked.text


def test_mistakes_are_answers_with_a_code(terminal, tmp_path):
    refused = terminal("data", "check", "--data", tmp_path / "nothing")
    assert refused.code == 2 and refused.text.startswith("dynamask: error: ") and "[exit code 2]" in str(refused)
    unknown = terminal("data", "chek")
    assert unknown.code == 2 and "chek" in unknown.text
    assert terminal("costs", "--model", "dynamask_resnet18_fpn_small").code == 0  # and it still answers


def test_a_closed_terminal_is_refused(tmp_path):
    assert str(CommandResult("dynamask x", 0, "")) == "$ dynamask x\n"
    one = Terminal(tmp_path)
    one.close()
    with pytest.raises(DynaMaskError, match="make a new Terminal"):
        one("costs")


def test_a_server_runs_inside_the_context_and_ends_with_it(server):
    with pytest.raises(ZeroDivisionError), served(server) as address:
        assert reached(address)
        1 / 0  # noqa: B018
    assert not reached(address)


@pytest.mark.parametrize(
    ("flag", "seconds", "message"),
    [
        ("--broken", 60, "ended before it responded: dynamask: error: nothing to serve"),
        ("--slow", 0.3, "did not respond within 0.3 seconds"),
    ],
)
def test_a_server_that_ends_or_keeps_silent_is_one_sentence(server, flag, seconds, message):
    with pytest.raises(DynaMaskError, match=message), served(server, flag, seconds=seconds):
        pass


def test_a_log_becomes_a_history(tmp_path):
    (tmp_path / "log.csv").write_text("step,loss,lr\n1,2.5,0.1\n3,1.5,0.05\n", encoding="utf-8")
    history = history_of(tmp_path)
    assert history.steps == [1, 3] and history.values == {"loss": [2.5, 1.5], "lr": [0.1, 0.05]}
    (tmp_path / "other").mkdir()
    with pytest.raises(DynaMaskError, match="no run"):
        history_of(tmp_path / "other")
