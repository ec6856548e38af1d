"""SQLAlchemy's engine with what docs/apps.md says for it, one case a run. Connects by PG* variables; fails by exception."""

import asyncio
import threading

import pgvalet_claims
import psycopg
import stage
from pgvalet_sqlalchemy import declare
from sqlalchemy import create_engine, text
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.ext.asyncio import create_async_engine

TIMEOUT = "SHOW statement_timeout"


def engine(**options):
    made = create_engine("postgresql+psycopg://", **options)
    declare(made)
    return made


def session(connection):
    return connection.connection.driver_connection.info.backend_pid


def other_takes_it():
    """Another session has its backend meanwhile, and leaves another setting behind."""
    with psycopg.connect("", autocommit=True) as other:
        other.execute("SET statement_timeout = '3s'")


def leaks():
    def dispatcher():
        with engine(connect_args={"application_name": "shop"}).connect() as connection:
            connection.execute(text("INSERT INTO jobs (name) VALUES ('mail')"))
            connection.commit()
            found.append(session(connection))
            parked.set()
            queue.wait()
        ended.set()

    found, parked, queue, ended = [], threading.Event(), threading.Event(), threading.Event()
    threading.Thread(target=dispatcher, name="dispatcher", daemon=True).start()
    assert parked.wait(30)
    pgvalet_claims.tell()
    stage.expect_parked(found[0], "dispatcher")
    where = stage.shown(found[0])["where"]
    assert where.startswith(__file__ + ":"), where
    queue.set()
    assert ended.wait(30)
    pgvalet_claims.tell()
    assert stage.shown(found[0])["claim"] == "resting"


def reload():
    pool = engine(pool_size=4, max_overflow=0)
    parked, resting, busy, inside = [pool.connect() for _ in range(4)]
    ids = [session(one) for one in (parked, resting, busy, inside)]
    driver = parked.connection.driver_connection
    parked.execute(text("SET statement_timeout = '29s'"))
    for n in range(8):  # psycopg prepares it at the sixth time
        assert parked.execute(text("SELECT CAST(:n AS int) + 1"), {"n": n}).scalar() == n + 1
    parked.commit()
    assert driver._prepared._names, "psycopg has prepared nothing"
    resting.execute(text("SELECT 1"))
    resting.close()
    inside.execute(text("CREATE TABLE half_done (n int)"))
    with psycopg.connect("", autocommit=True) as lock:
        lock.execute("SELECT pg_advisory_lock(1)")
        answer = stage.aside(lambda: busy.execute(text("SELECT 7 FROM pg_advisory_xact_lock(1)")).scalar())
        stage.until("busy waits", lambda: stage.shown(ids[2])["state"] == "active")
        pgvalet_claims.tell()
        stage.reload_and_judge(*ids)
        other_takes_it()
        assert parked.execute(text(TIMEOUT)).scalar() == "29s"
        assert parked.execute(text("SELECT CAST(:n AS int) + 1"), {"n": 41}).scalar() == 42
        lock.execute("SELECT pg_advisory_unlock(1)")
        assert answer() == 7
    inside.commit()
    assert inside.execute(text("SELECT count(*) FROM half_done")).scalar() == 0
    for one in (parked, busy, inside):
        one.close()
    with pool.connect() as connection:
        assert connection.execute(text("SELECT 5")).scalar() == 5


def closed(pool):
    """Has a reload end the pool's only session."""
    with pool.connect() as connection:
        connection.execute(text("SELECT 1"))
        connection.commit()
        ended = session(connection)
    told = stage.api("POST", "/v1/reloads", {"method": "close", "deadline": "5s"})
    assert stage.outcomes(told, ended) == ["returned"], told


def close():
    if not stage.SESSION_MODE:
        return  # who is quiet holds no lease, and no reload ends it
    pool = engine()
    closed(pool)
    try:
        with pool.connect() as connection:
            connection.execute(text("SELECT 1"))
        raise AssertionError("no error")
    except OperationalError as error:
        assert error.connection_invalidated, error
    with pool.connect() as connection:
        assert connection.execute(text("SELECT 5")).scalar() == 5
    pool.dispose()
    pool = engine(pool_pre_ping=True)
    closed(pool)
    with pool.connect() as connection:
        assert connection.execute(text("SELECT 5")).scalar() == 5


def asyncpg():
    async def main():
        pool = create_async_engine("postgresql+asyncpg://", pool_size=2)
        declare(pool.sync_engine)
        async with pool.connect() as connection:
            raw = (await connection.get_raw_connection()).driver_connection
            ended = raw.get_server_pid()
            await connection.execute(text("SET statement_timeout = '29s'"))
            half = text("SELECT CAST(:n AS int) / 2")  # both asyncpg and its adapter keep statements
            assert (await connection.execute(half, {"n": 84})).scalar() == 42
            await connection.commit()
            pgvalet_claims.tell()
            one = stage.shown(ended)
            assert [one["owner"], one["claim"]] == ["dispatcher", "held"], one
            assert one["where"].startswith(__file__ + ":"), one
            told = stage.api("POST", "/v1/reloads", {"deadline": "5s"})
            assert stage.outcomes(told, ended) == (["returned"] if stage.SESSION_MODE else [None]), told
            other_takes_it()
            assert (await connection.execute(half, {"n": 84})).scalar() == 42
            assert (await connection.execute(text(TIMEOUT))).scalar() == "29s"
        pgvalet_claims.tell()
        assert stage.shown(ended)["claim"] == "resting"
        if stage.SESSION_MODE:
            stage.api("POST", "/v1/reloads", {"method": "close", "deadline": "5s", "sessions": [{"id": ended}]})
            try:
                async with pool.connect() as connection:
                    await connection.execute(half, {"n": 84})
                raise AssertionError("no error")
            except DBAPIError as error:
                assert error.connection_invalidated, error
            async with pool.connect() as connection:
                assert (await connection.execute(half, {"n": 84})).scalar() == 42
        await pool.dispose()

    async def named():
        await asyncio.create_task(main(), name="dispatcher")

    asyncio.run(named())


if __name__ == "__main__":
    stage.main(globals())
