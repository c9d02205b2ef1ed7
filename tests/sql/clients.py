"""Runs a text with one of several clients, as their users do, and prints the rows of the last result.

clients.py CLIENT HOST PORT DATABASE FILE
"""

import asyncio
import sys

CLIENT, HOST, PORT, DATABASE, FILE = sys.argv[1:]
with open(FILE, encoding="utf-8") as file:
    TEXT = file.read()


def url(driver):
    import sqlalchemy

    return sqlalchemy.URL.create(f"postgresql+{driver}", "postgres", host=HOST, port=int(PORT), database=DATABASE)


def psycopg():
    import psycopg

    with psycopg.connect(host=HOST, port=PORT, dbname=DATABASE, user="postgres") as connection:
        cursor = connection.execute(TEXT)
        while cursor.nextset():
            pass
        return cursor.fetchall() if cursor.description else []


def asyncpg():
    import asyncpg

    async def run():
        connection = await asyncpg.connect(host=HOST, port=PORT, database=DATABASE, user="postgres")
        try:
            await connection.execute(TEXT)
            reported = await connection.fetchval("SELECT current_setting('oddscache.report', true)")
            # execute() returns no rows, so fetch the text's second statement.
            return await connection.fetch(TEXT[TEXT.rindex("\nSELECT ") :]) if reported else []
        finally:
            await connection.close()

    return asyncio.run(run())


def prepared():
    """SQLAlchemy with asyncpg prepares each statement, which must be a single one."""
    from sqlalchemy import text
    from sqlalchemy.ext.asyncio import create_async_engine

    async def run():
        engine = create_async_engine(url("asyncpg"))
        parts = TEXT.partition("\nSELECT ") if TEXT.count("\nSELECT ") == 1 else (TEXT, "", "")
        async with engine.begin() as connection:
            result = await connection.execute(text(parts[0]))
            if parts[1]:
                result = await connection.execute(text(parts[1] + parts[2]))
            return result.fetchall() if result.returns_rows else []

    return asyncio.run(run())


def migration(fails):
    """Alembic, which runs each migration in a transaction."""
    import sqlalchemy
    from alembic.migration import MigrationContext
    from alembic.operations import Operations

    with sqlalchemy.create_engine(url("psycopg")).connect() as connection:
        context = MigrationContext.configure(connection)
        with context.begin_transaction(), Operations.context(context) as op:
            op.execute("CREATE TABLE made_by_a_migration ()")
            op.execute(TEXT)
            if fails:
                op.execute("SELECT 1 / 0")
            op.execute("DROP TABLE made_by_a_migration")
    return []


CLIENTS = {
    "psycopg": psycopg,
    "asyncpg": asyncpg,
    "prepared": prepared,
    "alembic": lambda: migration(False),
    "alembic-fails": lambda: migration(True),
}

for row in CLIENTS[CLIENT]():
    print("|".join("" if cell is None else str(cell) for cell in row))
