"""A sub-interpreter is refused by a clear error, and the main interpreter goes on."""

import sys

import programs

PROGRAM = """
import sys

if sys.version_info >= (3, 13):
    import _interpreters as interpreters

    kinds = [lambda: interpreters.create("legacy"), lambda: interpreters.create("isolated")]
else:
    import _xxsubinterpreters as interpreters

    kinds = [lambda: interpreters.create(isolated=False)]
    # Python 3.12 crashes at the end of an isolated interpreter that has imported datetime.
    if sys.version_info < (3, 12):
        kinds.append(lambda: interpreters.create(isolated=True))

CODE = '''
try:
    import oddscache
except ImportError as error:
    print("refused:", error, flush=True)
else:
    print("imported", flush=True)
'''

def try_to_import():
    for make in kinds:
        made = make()
        failed = interpreters.run_string(made, CODE)
        assert failed is None, failed
        interpreters.destroy(made)

try_to_import()
import oddscache
cache = oddscache.OddsCache()
try_to_import()
assert cache.event_ids() == []
"""


def test_sub_interpreters_are_refused() -> None:
    """Importing the package in a sub-interpreter is an ImportError, before and after the main one imported it."""
    lines = programs.run_code(PROGRAM).splitlines()
    kinds = 1 if (3, 12) <= sys.version_info < (3, 13) else 2
    assert len(lines) == 2 * kinds
    for line in lines:
        assert line.startswith("refused:")
        assert "oddscache" in line
        assert "interpreter" in line
