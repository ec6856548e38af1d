"""The console by drivers that prepare what they send: psycopg 3 and asyncpg. Its argument is a session's id."""

import asyncio
import decimal
import os
import sys

import asyncpg
import psycopg

SESSION = int(sys.argv[1])
PORT = int(os.environ["PGPORT"])


def with_psycopg():
    dsn = f"host=127.0.0.1 port={PORT} user=postgres dbname=pgvalet"
    with psycopg.connect(dsn) as conn:  # which begins a transaction, and ends it
        for binary in (False, True):
            cursor = conn.cursor(binary=binary)
            cursor.execute("SHOW POOLS", prepare=True)
            names = [column.name for column in cursor.description]
            pool = dict(zip(names, cursor.fetchone()))
            assert pool["cl_active"] == 1 and pool["pool_mode"] == "session", pool
            cursor.execute("SHOW STATS")
            row = cursor.fetchone()
            assert isinstance(row[2], decimal.Decimal) and row[2] >= 1, row
        try:
            conn.execute("SHOW NOTHING")
            raise AssertionError("it took that")
        except psycopg.errors.SyntaxError:
            conn.rollback()
        assert conn.execute("SHOW VERSION").fetchone()[0].startswith("pgvalet ")


async def with_asyncpg():
    pool = await asyncpg.create_pool(
        host="127.0.0.1", port=PORT, user="postgres", database="pgvalet", min_size=1, max_size=1
    )
    async with pool.acquire() as conn:
        (client,) = await conn.fetch("SHOW CLIENTS")
        assert client["id"] == SESSION and client["state"] == "active", client
        (stats,) = await conn.fetch("SHOW STATS")
        assert stats["total_query_count"] >= 1, stats
        await conn.execute("RECONNECT")
    async with pool.acquire() as conn:  # reset in between, as a pool does
        assert await conn.fetch("SHOW LEAKS") == []
    await pool.close()


with_psycopg()
asyncio.run(with_asyncpg())
print("all is well")
