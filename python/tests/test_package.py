"""What the wheel contains: the scripts, the types, and a page whose example runs."""

import importlib.metadata
import importlib.resources
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

import oddscache
import programs
from database import Database

PYTHON = Path(__file__).parents[1]
SCRIPTS = ("install", "uninstall", "check", "grants", "indexes")


def test_the_installed_package_is_tested() -> None:
    """The tests import the installed wheel, and not the sources beside them."""
    assert "site-packages" in oddscache.__file__


@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts(script: str) -> None:
    """`python -m oddscache sql NAME` prints the script of the repository, to the byte."""
    code, out, errors = programs.run("-m", "oddscache", "sql", script)
    assert (code, errors) == (0, "")
    assert out == (PYTHON.parent / "sql" / f"{script}.sql").read_text()


@pytest.mark.parametrize(
    "arguments",
    [(), ("sql",), ("sql", "nonsense"), ("sql", "install", "--set", "x"), ("sql", "install", "--set", "unknown=1")],
)
def test_wrong_commands(arguments: tuple[str, ...]) -> None:
    """A wrong command line ends with code 2, a sentence and no traceback."""
    code, out, errors = programs.run("-m", "oddscache", *arguments)
    assert (code, out) == (2, "")
    assert "error:" in errors
    assert "Traceback" not in errors


def test_a_closed_pipe() -> None:
    """`python -m oddscache sql install | head -1` prints no traceback."""
    command = f"{sys.executable} -m oddscache sql install | head -1"
    done = subprocess.run(["sh", "-c", command], cwd=programs.ELSEWHERE, capture_output=True, text=True, timeout=10)
    assert done.stdout.startswith("-- install.sql")
    assert done.stderr == ""


def test_uninstall_and_check(database: Database) -> None:
    """The printed scripts run in a client: check reports, uninstall removes the feed, install brings it back."""
    scripts = {name: programs.run("-m", "oddscache", "sql", name)[1] for name in SCRIPTS}
    database.execute(scripts["check"])
    database.execute(scripts["uninstall"])
    assert database.execute("SELECT to_regnamespace('oddscache')") == [(None,)]
    database.execute(scripts["install"])
    assert database.execute("SELECT to_regclass('oddscache.change_log') IS NOT NULL") == [(True,)]


def test_every_public_name_is_documented() -> None:
    """Each public class and method has a docstring."""
    bare = []
    for name in oddscache.__all__:
        value = getattr(oddscache, name)
        if inspect.isclass(value):
            bare += [] if inspect.getdoc(value) else [name]
            for attribute, member in vars(value).items():
                if not attribute.startswith("_") and callable(member) and not inspect.getdoc(getattr(value, attribute)):
                    bare.append(f"{name}.{attribute}")
    assert bare == []


def test_it_is_typed() -> None:
    """The wheel says that it has types, and has the stub of the compiled part."""
    files = importlib.resources.files("oddscache")
    assert (files / "py.typed").is_file()
    assert (files / "_native.pyi").is_file()
    assert importlib.metadata.metadata("oddscache")["Requires-Python"] == ">=3.10"
    assert importlib.metadata.requires("oddscache") is None


def test_the_stub_names_what_there_is() -> None:
    """Each class and method of the stub exists in the compiled part."""
    stub = (importlib.resources.files("oddscache") / "_native.pyi").read_text()
    native = sys.modules["oddscache._native"]
    cls = None
    found = 0
    for line in stub.splitlines():
        if top := re.match(r"class (\w+)", line):
            cls = getattr(native, top[1])
        elif method := re.match(r"    def (\w+)\(", line):
            assert hasattr(cls, method[1]), f"{cls}.{method[1]}"
            found += 1
    assert found > 30


def test_the_page_shows_the_example() -> None:
    """The README's FastAPI application is the tested file, to the letter."""
    example = (PYTHON / "examples" / "application.py").read_text()
    assert f"```python\n{example}```" in (PYTHON / "README.md").read_text()


def test_the_page_names_real_things() -> None:
    """Every `cache.method` and `oddscache.Name` that the README mentions exists."""
    page = (PYTHON / "README.md").read_text()
    names = re.findall(r"\bcache\.(\w+)", page)
    assert names
    assert [name for name in names if not hasattr(oddscache.OddsCache, name)] == []
    classes = re.findall(r"\boddscache\.([A-Z]\w+)", page) + re.findall(
        r"`(\w+(?:Error|Stale|Shown|Ready|Cache))`", page
    )
    assert [
        name for name in classes if not hasattr(oddscache, name) and name not in ("TimeoutError", "ValueError")
    ] == []
