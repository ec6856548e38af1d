"""psycopg 3, one case a run: `psycopg3.py CASE`. Connects by PG* variables; fails by exception."""

import asyncio
import sys
import threading

import psycopg
from psycopg import sql
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb

STATUS = psycopg.pq.TransactionStatus


def connect(**options):
    return psycopg.connect("", **options)


def simple():
    with connect() as conn:
        row = conn.execute("SELECT %s::int + 1, %s", (41, "text")).fetchone()
        assert row == (42, "text"), row
        conn.execute("CREATE TABLE t (a int, j jsonb)")
        conn.execute("INSERT INTO t VALUES (1, %s)", (Jsonb({"k": [1, 2]}),))
        with conn.cursor(row_factory=dict_row, binary=True) as cursor:
            assert cursor.execute("TABLE t").fetchone() == {"a": 1, "j": {"k": [1, 2]}}


def many():
    with connect() as conn:
        conn.execute("CREATE TABLE t (a int, b text)")
        with conn.cursor() as cursor:
            cursor.executemany("INSERT INTO t VALUES (%s, %s) RETURNING a", [(i, str(i)) for i in range(500)], returning=True)
            count = 1
            while cursor.nextset():
                count += 1
            assert count == 500, count
        assert conn.execute("SELECT count(*), sum(a) FROM t").fetchone() == (500, 124750)


def prepared():
    with connect(prepare_threshold=0, autocommit=True) as conn:
        for i in range(150):  # more statements than psycopg's cache of 100, so that it deallocates some
            assert conn.execute(f"SELECT %s::int + {i}", (1,)).fetchone() == (i + 1,)
        for i in range(20):
            assert conn.execute("SELECT %s::text", (str(i),)).fetchone() == (str(i),)
        conn.execute("DEALLOCATE ALL")
        assert conn.execute("SELECT %s::text", ("x",)).fetchone() == ("x",)


def pipeline():
    with connect(autocommit=True) as conn:
        conn.execute("CREATE TABLE t (a int)")
        with conn.pipeline():
            cursors = [conn.execute("INSERT INTO t VALUES (%s) RETURNING a", (i,)) for i in range(300)]
            assert [cursor.fetchone()[0] for cursor in cursors] == list(range(300))
        assert conn.execute("SELECT count(*) FROM t").fetchone() == (300,)


def pipeline_error():
    with connect(autocommit=True) as conn:
        conn.execute("CREATE TABLE t (a int)")
        try:
            with conn.pipeline() as pipe:
                conn.execute("INSERT INTO t VALUES (1)")
                pipe.sync()
                conn.execute("SELECT 1/0")
                conn.execute("INSERT INTO t VALUES (2)")
            raise AssertionError("no error")
        except psycopg.errors.DivisionByZero:
            pass
        with conn.pipeline():
            assert conn.execute("INSERT INTO t VALUES (3) RETURNING a").fetchone() == (3,)
        assert [row[0] for row in conn.execute("SELECT a FROM t ORDER BY a")] == [1, 3]


def pipeline_transaction():
    with connect() as conn:
        with conn.pipeline(), conn.transaction():
            conn.execute("CREATE TABLE t (a int)")
            conn.execute("INSERT INTO t VALUES (1)")
        assert conn.info.transaction_status == STATUS.IDLE
        try:
            with conn.pipeline(), conn.transaction():
                conn.execute("INSERT INTO t VALUES (2)")
                conn.execute("SELECT 1/0")
            raise AssertionError("no error")
        except psycopg.errors.DivisionByZero:
            pass
        assert conn.execute("SELECT count(*) FROM t").fetchone() == (1,)


def server_cursor():
    with connect() as conn, conn.cursor(name="c") as cursor:
        cursor.itersize = 100
        cursor.execute("SELECT generate_series(1, 1000)")
        assert sum(row[0] for row in cursor) == 500500


def stream():
    with connect() as conn:
        assert sum(row[0] for row in conn.cursor().stream("SELECT generate_series(1, 1000)")) == 500500


def copy():
    with connect() as conn:
        conn.execute("CREATE TABLE t (a int, b text)")
        with conn.cursor().copy("COPY t FROM STDIN") as copy:
            for i in range(2000):
                copy.write_row((i, f"tab\t{i}"))
        with conn.cursor().copy("COPY t TO STDOUT") as copy:
            copy.set_types(["int4", "text"])
            assert list(copy.rows()) == [(i, f"tab\t{i}") for i in range(2000)]
        conn.commit()
        try:
            with conn.cursor().copy("COPY t FROM STDIN") as copy:
                for i in range(20000):
                    copy.write("1\tx\n" if i != 100 else "no number\tx\n")
            raise AssertionError("no error")
        except psycopg.errors.InvalidTextRepresentation:
            conn.rollback()
        assert conn.execute("SELECT count(*) FROM t").fetchone() == (2000,)


def cancel():
    with connect(autocommit=True) as conn, connect(autocommit=True) as other:
        other.execute("SELECT 1")

        def when_running():
            active = "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND query = 'SELECT pg_sleep(600)'"
            while other.execute(active).fetchone() == (0,):
                pass
            conn.cancel_safe()

        canceller = threading.Thread(target=when_running)
        canceller.start()
        try:
            conn.execute("SELECT pg_sleep(600)")
            raise AssertionError("not cancelled")
        except psycopg.errors.QueryCanceled:
            pass
        canceller.join()
        assert conn.execute("SELECT 1").fetchone() == other.execute("SELECT 1").fetchone()


def notify():
    with connect(autocommit=True) as listener, connect(autocommit=True) as notifier:
        listener.execute("LISTEN news")
        for i in range(3):
            notifier.execute("SELECT pg_notify('news', %s)", (str(i),))
        assert [n.payload for n in listener.notifies(timeout=30, stop_after=3)] == ["0", "1", "2"]


def notices():
    with connect(autocommit=True) as conn:
        seen = []
        conn.add_notice_handler(lambda diagnostic: seen.append((diagnostic.severity, diagnostic.message_primary)))
        conn.execute("DO $$ BEGIN RAISE NOTICE 'one'; RAISE WARNING 'two'; END $$")
        assert seen == [("NOTICE", "one"), ("WARNING", "two")], seen


def two_phase():
    conn = connect()
    conn.execute("CREATE TABLE t (a int)")
    conn.commit()
    conn.tpc_begin(conn.xid(1, "global", "branch"))
    conn.execute("INSERT INTO t VALUES (1)")
    conn.tpc_prepare()
    conn.close()
    with connect() as conn:
        (found,) = conn.tpc_recover()
        conn.tpc_commit(found)
        assert conn.execute("SELECT count(*) FROM t").fetchone() == (1,)


def status():
    with connect() as conn:
        assert conn.info.transaction_status == STATUS.IDLE
        conn.execute("SELECT 1")
        assert conn.info.transaction_status == STATUS.INTRANS
        try:
            conn.execute("SELECT 1/0")
        except psycopg.errors.DivisionByZero:
            assert conn.info.transaction_status == STATUS.INERROR
        conn.rollback()
        assert conn.info.transaction_status == STATUS.IDLE


def settings():
    with connect(options="-c search_path=pg_catalog -c statement_timeout=12s", application_name="app") as conn:
        shown = [conn.execute(sql.SQL("SHOW {}").format(sql.Identifier(name))).fetchone()[0]
                 for name in ("search_path", "statement_timeout", "application_name")]
        assert shown == ["pg_catalog", "12s", "app"], shown
        conn.execute("SET TimeZone = 'Asia/Tokyo'")
        assert str(conn.info.timezone) == "Asia/Tokyo"
        conn.execute("RESET search_path")
        assert conn.execute("SHOW search_path").fetchone() == ("pg_catalog",)


def large_value():
    with connect() as conn:
        data = bytes(range(256)) * 65536  # 16 MB
        assert conn.execute("SELECT %s::bytea, length(%s::bytea)", (data, data), binary=True).fetchone() == (data, len(data))


def asynchronous():
    async def main():
        async with await psycopg.AsyncConnection.connect("", autocommit=True) as conn:
            async with conn.pipeline():
                cursors = [await conn.execute("SELECT %s::int", (i,)) for i in range(100)]
                assert [(await cursor.fetchone())[0] for cursor in cursors] == list(range(100))

    asyncio.run(main())


if __name__ == "__main__":
    globals()[sys.argv[1]]()
