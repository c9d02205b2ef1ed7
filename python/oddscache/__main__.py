"""`python -m oddscache sql install` prints the script that installs the change feed."""

import argparse
import sys

from . import _native


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m oddscache", description="What sets up the database.")
    commands = parser.add_subparsers(dest="command", required=True)
    sql = commands.add_parser("sql", help="print an SQL script; any client can run it as one text")
    sql.add_argument("script", choices=_native.SCRIPTS)
    sql.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a setting at the head of the script, as app_schema=odds; may be given several times",
    )
    arguments = parser.parse_args()
    pairs = [setting.partition("=") for setting in arguments.set]
    for name, equals, _ in pairs:
        if not equals:
            parser.error(f"--set needs NAME=VALUE, not {name!r}")
    try:
        sys.stdout.write(_native.script(arguments.script, [(name, value) for name, _, value in pairs]))
    except ValueError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
