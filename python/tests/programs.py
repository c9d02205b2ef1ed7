"""Runs programs in processes of their own, which use the installed package."""

import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import NoReturn

import pytest

HERE = Path(__file__).parent
# In another folder than the sources, because Python looks for packages in the working directory first.
ELSEWHERE = "/"


def missing(what: str, way: str) -> NoReturn:
    """Skips the test, which lacks a program. If `ODDSCACHE_SKIP_NOTHING` is set, as in `.ci/run`, it fails."""
    text = f"it needs {what} ({way})"
    if "ODDSCACHE_SKIP_NOTHING" in os.environ:
        pytest.fail(text)
    pytest.skip(text)


def optional(name: str, package: str) -> str:
    """The path of a program that only some tests need."""
    found = shutil.which(name, path=f"{os.environ.get('PATH', os.defpath)}{os.pathsep}/usr/sbin")
    return found or missing(name, f"apt-get install {package}")


class Tied:
    """A program in a process of its own, which ends with this one, however that ends."""

    def __init__(self, folder: Path, *command: str, **variables: str) -> None:
        self.log = folder / "log"
        with open(self.log, "a") as log:
            self._shell = subprocess.Popen(
                ["sh", "-c", '"$@" & cat >/dev/null; kill -9 $!; wait $!', "tied", *command],
                cwd=folder,
                env={**os.environ, **variables},
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def kill(self) -> None:
        """Kills it with SIGKILL."""
        assert self._shell.stdin
        self._shell.stdin.close()
        self._shell.wait(10)


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(HERE), "PYTHONUNBUFFERED": "1"}


def start(*arguments: str) -> "subprocess.Popen[str]":
    """Starts Python. Its output can be read line by line."""
    return subprocess.Popen(
        [sys.executable, *arguments],
        cwd=ELSEWHERE,
        env=environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def start_code(code: str, *arguments: str) -> "subprocess.Popen[str]":
    # Python 3.12 and later warn at each fork of a process that has threads.
    return start("-W", "ignore:This process:DeprecationWarning", "-c", textwrap.dedent(code), *arguments)


def finish(process: "subprocess.Popen[str]", timeout: float) -> tuple[int, str, str]:
    """Exit code, output and errors of a process that must end by itself within `timeout` seconds."""
    try:
        out, err = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        out, err = process.communicate()
        raise AssertionError(f"the process did not end within {timeout} s; it printed:\n{out}\n{err}") from None
    return process.returncode, out, err


def run(*arguments: str, timeout: float = 10) -> tuple[int, str, str]:
    return finish(start(*arguments), timeout)


def run_code(code: str, *arguments: str, timeout: float = 10) -> str:
    """Runs a program that must succeed and print no error. Returns its output."""
    code_, out, err = finish(start_code(code, *arguments), timeout)
    assert (code_, err) == (0, ""), f"exit code {code_}, printed:\n{out}\n{err}"
    return out


def printed(process: "subprocess.Popen[str]") -> str:
    """The next line that the process prints."""
    assert process.stdout
    line = process.stdout.readline()
    assert line, f"the process ended instead: {process.communicate()[1]}"
    return line.strip()
