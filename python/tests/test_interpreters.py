"""A sub-interpreter is refused by a clear error, and the main interpreter goes on."""

import programs


def test_sub_interpreters_are_refused() -> None:
    """Importing the package in a sub-interpreter is an ImportError, before and after the main one imported it."""
    out = programs.run_code(
        '''
        import sys
        try:
            import _interpreters as interpreters  # 3.13
        except ImportError:
            import _xxsubinterpreters as interpreters

        code = """
        try:
            import oddscache
        except ImportError as error:
            text = str(error)
        else:
            text = "imported"
        with open(sys_path, "a") as file:
            file.write(text + chr(10))
        """
        import os, tempfile, textwrap
        path = tempfile.mktemp()

        def try_to_import():
            code_ = f"sys_path = {path!r}" + textwrap.dedent(code)
            # With the GIL of the main interpreter, and with one of its own where Python has that.
            for arguments in ((), ("isolated",)):
                try:
                    made = interpreters.create(*arguments)
                except TypeError:
                    continue
                failed = interpreters.run_string(made, code_)
                assert failed is None, failed
                interpreters.destroy(made)

        try_to_import()
        import oddscache
        cache = oddscache.OddsCache()
        try_to_import()
        assert cache.event_ids() == []
        with open(path) as file:
            print(file.read())
        os.unlink(path)
        '''
    )
    refusals = out.split("\n")
    refusals = [line for line in refusals if line]
    assert len(refusals) >= 2
    for line in refusals:
        assert "interpreter" in line, out
