"""The cases of PostgreSQL's libpq_pipeline, by psycopg's own view of libpq: prints what each one hears.

`pipelines.py` runs all of them on one connection after the other, which PG* variables describe.
"""

import select

import psycopg
from psycopg import pq

OK = pq.ConnStatus.OK


def connect():
    conn = pq.PGconn.connect(b"application_name=pipelines")
    assert conn.status == OK, conn.error_message
    return conn


def say(*words):
    print("  ", *(getattr(word, "name", word) for word in words))


def heard(conn, at_most=None):
    """Says the results that come, up to the end of what is pipelined."""
    silent = 0
    count = 0
    while silent < 2 and (at_most is None or count < at_most):
        result = conn.get_result()
        if result is None:
            silent += 1
            continue
        silent = 0
        count += 1
        state = result.error_field(pq.DiagnosticField.SQLSTATE)
        value = result.get_value(0, 0) if result.ntuples else None
        say(pq.ExecStatus(result.status), state, result.ntuples, value, pq.TransactionStatus(conn.transaction_status))
        if result.status == pq.ExecStatus.FATAL_ERROR and conn.status != OK:
            return


def sync(conn):
    conn.pipeline_sync()
    say("sync")


def run(conn, sql, *parameters):
    conn.send_query_params(sql, [str(value).encode() for value in parameters])


def simple(conn, sql):
    result = conn.exec_(sql)
    say(pq.ExecStatus(result.status), result.error_field(pq.DiagnosticField.SQLSTATE), result.ntuples)


def disallowed_in_pipeline(conn):
    conn.enter_pipeline_mode()
    conn.enter_pipeline_mode()
    try:
        conn.exec_(b"SELECT 1")
        say("allowed")
    except psycopg.OperationalError as error:
        say(error)
    conn.exit_pipeline_mode()
    simple(conn, b"SELECT 1")


def multi_pipelines(conn):
    conn.enter_pipeline_mode()
    for number in range(3):
        run(conn, b"SELECT $1::int", number)
        sync(conn)
    heard(conn)
    conn.exit_pipeline_mode()


def nosync(conn):
    conn.enter_pipeline_mode()
    for number in range(10):
        run(conn, b"SELECT repeat('xyzxz', 12), $1::int", number)
        conn.send_flush_request()
        conn.flush()
        heard(conn, 1)
    sync(conn)
    heard(conn)
    conn.exit_pipeline_mode()


def pipeline_abort(conn):
    simple(conn, b"CREATE TABLE t (id serial PRIMARY KEY, a int)")
    conn.enter_pipeline_mode()
    run(conn, b"INSERT INTO t (a) VALUES ($1)", 1)
    run(conn, b"SELECT no_such_function($1)", 1)
    run(conn, b"INSERT INTO t (a) VALUES ($1)", 2)
    sync(conn)
    run(conn, b"INSERT INTO t (a) VALUES ($1)", 3)
    sync(conn)
    heard(conn)
    run(conn, b"SELECT 1; SELECT 2")
    sync(conn)
    heard(conn)
    run(conn, b"SELECT 1.0 / g FROM generate_series(3, -1, -1) g")
    conn.set_single_row_mode()
    sync(conn)
    heard(conn)
    conn.exit_pipeline_mode()
    simple(conn, b"SELECT * FROM t")


def pipeline_idle(conn):
    conn.enter_pipeline_mode()
    run(conn, b"SELECT 1")
    conn.send_flush_request()
    conn.flush()
    heard(conn)
    run(conn, b"SELECT 2")
    conn.send_flush_request()
    conn.flush()
    heard(conn)
    sync(conn)
    heard(conn)
    conn.exit_pipeline_mode()
    simple(conn, b"SELECT 3")


def pipelined_insert(conn):
    simple(conn, b"CREATE TABLE t (id serial PRIMARY KEY, a int, b int8)")
    conn.enter_pipeline_mode()
    conn.nonblocking = 1
    run(conn, b"BEGIN")
    conn.send_prepare(b"insertion", b"INSERT INTO t (a, b) VALUES ($1, $2)", [23, 20])
    left, awaited, wanted = 2000, 2002, True
    ok = 0
    while awaited > 0:
        reading, writing, _ = select.select([conn.socket], [conn.socket] if wanted else [], [], 60)
        if reading:
            conn.consume_input()
            while not conn.is_busy():
                result = conn.get_result()
                if result is None:
                    if conn.is_busy() or awaited == 0:
                        break
                    result = conn.get_result()
                    if result is None:
                        break
                assert result.status in (pq.ExecStatus.COMMAND_OK, pq.ExecStatus.PIPELINE_SYNC), result.error_message
                ok += 1
                awaited -= 1
        if writing and wanted:
            for _ in range(min(50, left)):
                conn.send_query_prepared(b"insertion", [str(left).encode(), str(1 << 62).encode()])
                left -= 1
            if left == 0 and wanted:
                run(conn, b"COMMIT")
                conn.pipeline_sync()
                awaited += 2
                wanted = False
            conn.flush()
        elif not wanted:
            conn.flush()
    say(ok)
    conn.nonblocking = 0
    conn.exit_pipeline_mode()
    simple(conn, b"SELECT * FROM t")


def prepared(conn):
    conn.enter_pipeline_mode()
    conn.send_prepare(b"one", b"SELECT $1, '42', $1::numeric, interval '1 sec'", [23])
    conn.send_describe_prepared(b"one")
    sync(conn)
    heard(conn)
    conn.send_query_prepared(b"one", [b"7"])
    conn.send_close_prepared(b"one")
    conn.send_describe_prepared(b"one")
    sync(conn)
    heard(conn)
    run(conn, b"BEGIN")
    run(conn, b"DECLARE portal_one CURSOR FOR SELECT 1")
    conn.send_describe_portal(b"portal_one")
    conn.send_close_portal(b"portal_one")
    conn.send_describe_portal(b"portal_one")
    sync(conn)
    heard(conn)
    run(conn, b"ROLLBACK")
    sync(conn)
    heard(conn)
    conn.exit_pipeline_mode()


def simple_pipeline(conn):
    conn.enter_pipeline_mode()
    run(conn, b"SELECT $1::int", 1)
    try:
        conn.exit_pipeline_mode()
        say("left too early")
    except psycopg.OperationalError as error:
        say(error)
    sync(conn)
    heard(conn)
    conn.exit_pipeline_mode()
    simple(conn, b"SELECT 1")


def singlerow(conn):
    conn.enter_pipeline_mode()
    for number in range(3):
        run(conn, b"SELECT generate_series(42, $1)", 44 + number)
    sync(conn)
    for number in range(3):
        if number != 1:
            conn.set_single_row_mode()
        while (result := conn.get_result()) is not None:
            say(pq.ExecStatus(result.status), result.ntuples)
    heard(conn)
    conn.exit_pipeline_mode()


def transaction(conn):
    simple(conn, b"CREATE TABLE t (id int)")
    conn.enter_pipeline_mode()
    run(conn, b"BEGIN")
    run(conn, b"SELECT 0/0")
    run(conn, b"ROLLBACK")
    sync(conn)
    run(conn, b"INSERT INTO t VALUES (1)")
    run(conn, b"COMMIT")
    sync(conn)
    run(conn, b"INSERT INTO t VALUES (2)")
    sync(conn)
    run(conn, b"ROLLBACK")
    run(conn, b"INSERT INTO t VALUES (3)")
    sync(conn)
    heard(conn)
    conn.exit_pipeline_mode()
    simple(conn, b"SELECT * FROM t")


def uniqviol(conn):
    simple(conn, b"CREATE TABLE t (id bigint PRIMARY KEY)")
    conn.enter_pipeline_mode()
    conn.send_prepare(b"insertion", b"INSERT INTO t VALUES ($1) RETURNING id", [20])
    for number in list(range(200)) + [100] + list(range(200, 300)):
        conn.send_query_prepared(b"insertion", [str(number).encode()])
    sync(conn)
    heard(conn)
    conn.exit_pipeline_mode()
    simple(conn, b"SELECT * FROM t")


def cancel(conn):
    conn.enter_pipeline_mode()
    run(conn, b"SELECT pg_sleep(600)")
    run(conn, b"SELECT 2")
    sync(conn)
    conn.flush()
    other = connect()
    while other.exec_(b"SELECT FROM pg_stat_activity WHERE wait_event = 'PgSleep'").ntuples == 0:
        pass
    other.finish()
    conn.get_cancel().cancel()
    heard(conn)
    conn.exit_pipeline_mode()
    simple(conn, b"SELECT 1")


CASES = [
    disallowed_in_pipeline, multi_pipelines, nosync, pipeline_abort, pipeline_idle, pipelined_insert, prepared,
    simple_pipeline, singlerow, transaction, uniqviol, cancel,
]

if __name__ == "__main__":
    for case in CASES:
        conn = connect()
        conn.exec_(b"SET client_min_messages = error")
        conn.exec_(b"DROP TABLE IF EXISTS t")
        print(case.__name__)
        case(conn)
        conn.finish()
