"""asyncpg, one case a run: `asyncpg_client.py CASE`. Connects by PG* variables; fails by exception."""

import asyncio
import io
import sys

import asyncpg


async def connect(**options):
    return await asyncpg.connect(**options)


async def queries():
    conn = await connect()
    assert await conn.fetchval("SELECT $1::int + 1", 41) == 42
    await conn.execute("CREATE TABLE t (a int PRIMARY KEY, b text); CREATE TYPE mood AS ENUM ('sad', 'happy')")
    await conn.executemany("INSERT INTO t VALUES ($1, $2)", [(i, str(i)) for i in range(500)])
    assert await conn.fetchval("SELECT sum(a) FROM t") == 124750
    assert await conn.fetchval("SELECT $1::mood", "happy") == "happy"
    assert [tuple(row) for row in await conn.fetch("SELECT * FROM t WHERE a < $1 ORDER BY a", 2)] == [(0, "0"), (1, "1")]
    await conn.close()


async def transactions():
    conn = await connect()
    await conn.execute("CREATE TABLE t (a int)")
    async with conn.transaction():
        await conn.execute("INSERT INTO t VALUES (1)")
        try:
            async with conn.transaction():
                await conn.execute("INSERT INTO t VALUES (2)")
                await conn.execute("SELECT 1/0")
        except asyncpg.DivisionByZeroError:
            pass
    assert await conn.fetchval("SELECT count(*) FROM t") == 1
    assert not conn.is_in_transaction()
    await conn.close()


async def cursors():
    conn = await connect()
    async with conn.transaction():
        assert [row[0] async for row in conn.cursor("SELECT generate_series(1, 100)", prefetch=7)] == list(range(1, 101))
        cursor = await conn.cursor("SELECT generate_series(1, 10)")
        assert [row[0] for row in await cursor.fetch(4)] == [1, 2, 3, 4]
        assert await cursor.forward(2) == 2
        assert [row[0] for row in await cursor.fetch(9)] == [7, 8, 9, 10]
    await conn.close()


async def copy():
    conn = await connect()
    await conn.execute("CREATE TABLE t (a int, b text)")
    await conn.copy_records_to_table("t", records=[(i, f"row {i}") for i in range(5000)])
    out = io.BytesIO()
    await conn.copy_from_query("SELECT * FROM t ORDER BY a", output=out, format="csv")
    assert out.getvalue().count(b"\n") == 5000
    await conn.close()


async def cancellation():
    conn, other = await connect(), await connect()
    try:
        await conn.fetch("SELECT pg_sleep(600)", timeout=0.3)
        raise AssertionError("no timeout")
    except TimeoutError:
        pass
    assert await conn.fetchval("SELECT 1") == 1
    assert await other.fetchval("SELECT 2") == 2
    await conn.close()
    await other.close()


async def notifications():
    listener, notifier = await connect(), await connect()
    heard = asyncio.Queue()
    await listener.add_listener("news", lambda _conn, _pid, _channel, payload: heard.put_nowait(payload))
    await notifier.execute("NOTIFY news, 'hello'")
    assert await asyncio.wait_for(heard.get(), 30) == "hello"
    await listener.close()
    await notifier.close()


async def pool():
    async with asyncpg.create_pool(min_size=2, max_size=5) as pool:
        answers = await asyncio.gather(*(pool.fetchval("SELECT $1::int", i) for i in range(100)))
        assert answers == list(range(100))


async def settings():
    conn = await connect(server_settings={"search_path": "pg_catalog", "application_name": "app"})
    assert await conn.fetchval("SHOW search_path") == "pg_catalog"
    await conn.execute("SET TimeZone = 'Asia/Tokyo'")
    assert conn.get_settings().TimeZone == "Asia/Tokyo"
    await conn.reset()
    assert await conn.fetchval("SHOW search_path") == "pg_catalog"
    await conn.close()


if __name__ == "__main__":
    asyncio.run(globals()[sys.argv[1]]())
