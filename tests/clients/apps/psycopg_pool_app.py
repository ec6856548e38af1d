"""psycopg_pool with what docs/apps.md says for it, one case a run. Connects by PG* variables; fails by exception."""

import threading

import pgvalet_claims
import psycopg
import stage
from pgvalet_psycopg_pool import Pool


def pool(size=1, **options):
    return Pool("application_name=shop", min_size=size, max_size=size, open=True, **options)


def leaks():
    def dispatcher():
        with pool() as connections, connections.connection() as connection:
            connection.execute("INSERT INTO jobs (name) VALUES (%s)", ("mail",))
            connection.commit()
            found.append(connection.info.backend_pid)
            parked.set()
            queue.wait()

    found, parked, queue = [], threading.Event(), threading.Event()
    thread = threading.Thread(target=dispatcher, name="dispatcher", daemon=True)
    thread.start()
    assert parked.wait(30)
    pgvalet_claims.tell()
    stage.expect_parked(found[0], "dispatcher")
    queue.set()
    thread.join(30)
    pgvalet_claims.tell()  # of sessions that ended it is told, and forgets them
    assert found[0] not in pgvalet_claims.table


def reload():
    connections = pool(4)
    parked, resting, busy, inside = [connections.getconn() for _ in range(4)]
    ids = [one.info.backend_pid for one in (parked, resting, busy, inside)]
    parked.execute("SET statement_timeout = '29s'")
    for n in range(8):  # prepared at the sixth time
        assert parked.execute("SELECT %s::int + 1", (n,)).fetchone() == (n + 1,)
    parked.commit()
    assert parked._prepared._names, "nothing is prepared"
    resting.execute("SELECT 1")
    resting.commit()
    connections.putconn(resting)
    inside.execute("CREATE TABLE half_done (n int)")
    with psycopg.connect("", autocommit=True) as lock:
        lock.execute("SELECT pg_advisory_lock(1)")
        answer = stage.aside(lambda: busy.execute("SELECT 7 FROM pg_advisory_xact_lock(1)").fetchone())
        stage.until("busy waits", lambda: stage.shown(ids[2])["state"] == "active")
        pgvalet_claims.tell()
        stage.reload_and_judge(*ids)
        with psycopg.connect("", autocommit=True) as other:
            other.execute("SET statement_timeout = '3s'")
        assert parked.execute("SHOW statement_timeout").fetchone() == ("29s",)
        assert parked.execute("SELECT %s::int + 1", (41,)).fetchone() == (42,)
        lock.execute("SELECT pg_advisory_unlock(1)")
        assert answer() == (7,)
    inside.commit()
    assert inside.execute("SELECT count(*) FROM half_done").fetchone() == (0,)
    for one in (parked, busy, inside):
        one.commit()
        connections.putconn(one)
    with connections.connection() as connection:
        assert connection.execute("SELECT 5").fetchone() == (5,)
    connections.close()


def closed(connections):
    """Has a reload end the pool's only session."""
    with connections.connection() as connection:
        connection.execute("SELECT 1")
        ended = connection.info.backend_pid
    pgvalet_claims.table.clear()
    told = stage.api("POST", "/v1/reloads", {"method": "close", "deadline": "5s"})
    assert stage.outcomes(told, ended) == ["returned"], told


def close():
    if not stage.SESSION_MODE:
        return  # who is quiet holds no lease, and no reload ends it
    with pool() as connections:
        closed(connections)
        try:
            with connections.connection() as connection:
                connection.execute("SELECT 1")
            raise AssertionError("no error")
        except psycopg.OperationalError as error:
            assert "57P01" in (error.sqlstate or "") or "closed" in str(error), error
        with connections.connection() as connection:  # the pool has replaced it
            assert connection.execute("SELECT 5").fetchone() == (5,)
    with pool(check=Pool.check_connection) as connections:
        closed(connections)
        with connections.connection() as connection:
            assert connection.execute("SELECT 5").fetchone() == (5,)


if __name__ == "__main__":
    stage.main(globals())
