"""A Django app with what docs/apps.md says for it, one case a run. Connects by PG* variables; fails by exception."""

import os
import sys
import threading

import django
import pgvalet_claims
import psycopg
import stage
from django.conf import settings
from django.core.handlers.wsgi import WSGIHandler
from django.db import close_old_connections, connection, transaction
from django.http import HttpResponse
from django.urls import path


def configure(pool=None, health_checks=False, middleware=(), **options):
    database = {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": os.environ["PGDATABASE"],
        "CONN_MAX_AGE": None if pool is None else 0,
        "CONN_HEALTH_CHECKS": health_checks,
        "OPTIONS": {"application_name": "shop", **options, **({"pool": pool} if pool is not None else {})},
    }
    settings.configure(
        DATABASES={"default": database}, ROOT_URLCONF=__name__, MIDDLEWARE=middleware, ALLOWED_HOSTS=["*"], SECRET_KEY="x", LOGGING_CONFIG=None
    )
    django.setup()
    import pgvalet_django  # noqa: F401, it connects its signals


def session():
    return connection.connection.info.backend_pid


def execute(sql, *parameters):
    with connection.cursor() as cursor:
        cursor.execute(sql, parameters)
        return cursor.fetchone()[0] if cursor.description else None


# --- the app


seen = {}


def index(_request):
    seen["session"], seen["answer"] = session_of_a_query(), execute("SHOW statement_timeout")
    pgvalet_claims.tell()
    seen["while"] = stage.shown(seen["session"])
    return HttpResponse("fine")


def session_of_a_query():
    execute("SELECT 1")
    return session()


urlpatterns = [path("jobs/", index, name="jobs")]


def get(url):
    """A request as a WSGI server makes it, in the thread of the caller; its status."""
    told = []
    environ = {"REQUEST_METHOD": "GET", "PATH_INFO": url, "SERVER_NAME": "shop", "SERVER_PORT": "80", "wsgi.url_scheme": "http"}
    environ |= {"wsgi.input": sys.stdin.buffer, "wsgi.errors": sys.stderr}
    response = WSGIHandler()(environ, lambda status, _headers: told.append(status))
    b"".join(response)
    response.close()
    return told[0]


class Thread:
    """One of the app's threads, each with a connection of its own; does what it is given, one after the other."""

    def __init__(self, name):
        self.wake, self.work, self.done, self.answer = threading.Event(), None, threading.Event(), None
        threading.Thread(target=self.run, name=name, daemon=True).start()

    def run(self):
        while self.wake.wait():
            self.wake.clear()
            try:
                self.answer = self.work()
            except BaseException as error:
                self.answer = error
            self.done.set()

    def begin(self, work):
        self.done.clear()
        self.work = work
        self.wake.set()

    def end(self):
        assert self.done.wait(30), "it doesn't end"
        if isinstance(self.answer, BaseException):
            raise self.answer
        return self.answer

    def does(self, work):
        self.begin(work)
        return self.end()


def leaks():
    configure()
    dispatcher = Thread("dispatcher")
    dispatcher.does(lambda: execute("INSERT INTO jobs (name) VALUES (%s)", "mail"))
    parked = dispatcher.does(session)
    assert get("/jobs/") == "200 OK"
    assert [seen["while"]["owner"], seen["while"]["claim"]] == ["/jobs/", "held"], seen
    pgvalet_claims.tell()
    assert stage.shown(seen["session"])["claim"] == "resting"
    stage.expect_parked(parked, "dispatcher")
    dispatcher.does(close_old_connections)


def reload():
    configure(prepare_threshold=0, server_side_binding=True)
    parked, resting, busy, inside = (Thread(name) for name in ("parked", "resting", "busy", "inside"))

    def begin_transaction():
        block = transaction.atomic()
        block.__enter__()
        execute("CREATE TABLE half_done (n int)")
        execute("DECLARE numbers NO SCROLL CURSOR FOR SELECT generate_series(1, 1000)")  # as QuerySet.iterator() does
        return block

    parked.does(lambda: execute("SET statement_timeout = '29s'"))
    assert parked.does(lambda: execute("SELECT %s::int + 1", 41)) == 42
    assert parked.does(lambda: connection.connection._prepared._names)
    assert resting.does(lambda: get("/jobs/")) == "200 OK"
    busy.does(lambda: execute("SELECT 1"))
    block = inside.does(begin_transaction)
    ids = [thread.does(session) for thread in (parked, resting, busy, inside)]
    with psycopg.connect("", autocommit=True) as lock:
        lock.execute("SELECT pg_advisory_lock(1)")
        busy.begin(lambda: execute("SELECT 7 FROM pg_advisory_xact_lock(1)"))
        stage.until("busy waits", lambda: stage.shown(ids[2])["state"] == "active")
        pgvalet_claims.tell()
        stage.reload_and_judge(*ids)
        with psycopg.connect("", autocommit=True) as other:
            other.execute("SET statement_timeout = '3s'")
        assert parked.does(lambda: execute("SHOW statement_timeout")) == "29s"
        assert parked.does(lambda: execute("SELECT %s::int + 1", 41)) == 42
        lock.execute("SELECT pg_advisory_unlock(1)")
        assert busy.end() == 7
    assert inside.does(lambda: execute("FETCH 1 FROM numbers")) == 1
    inside.does(lambda: block.__exit__(None, None, None))
    assert inside.does(lambda: execute("SELECT count(*) FROM half_done")) == 0
    assert resting.does(lambda: get("/jobs/")) == "200 OK"


def cursors():
    """Outside of a transaction Django's server-side cursors are WITH HOLD."""
    configure()
    with connection.chunked_cursor() as cursor:
        cursor.execute("SELECT generate_series(1, 1000)")
        assert cursor.fetchone() == (1,)
        pgvalet_claims.tell()
        record = stage.api("POST", "/v1/reloads", {"deadline": "5s"})
        assert [one["reason"] for one in record["leases"]] == ["cursor"], record
        assert len(cursor.fetchall()) == 999
    assert execute("SELECT 5") == 5
    record = stage.api("POST", "/v1/reloads", {"deadline": "5s"})
    told = [] if not record["leases"] else [record["leases"][0]["outcome"]]
    assert told == (["returned"] if stage.SESSION_MODE else []), record


def closed():
    assert get("/jobs/") == "200 OK"
    ended = seen["session"]
    pgvalet_claims.table.clear()
    pgvalet_claims.tell()
    told = stage.api("POST", "/v1/reloads", {"method": "close", "deadline": "5s"})
    assert stage.outcomes(told, ended) == ["returned"], told
    return ended


def close():
    configure()
    if stage.SESSION_MODE:
        ended = closed()
        assert get("/jobs/").startswith("500")  # an OperationalError, and the connection is given up with the request
        assert get("/jobs/") == "200 OK"
        assert seen["session"] != ended


def close_health_checks():
    configure(health_checks=True)
    if stage.SESSION_MODE:
        ended = closed()
        assert get("/jobs/") == "200 OK"
        assert seen["session"] != ended


def pool():
    configure(pool={"min_size": 1, "max_size": 1, "reset": pgvalet_claims.resting}, health_checks=True)
    assert get("/jobs/") == "200 OK"
    first = seen["session"]
    assert [seen["while"]["owner"], seen["while"]["claim"]] == ["/jobs/", "held"], seen
    stage.until("it is back in the pool", lambda: pgvalet_claims.table[first] is None)
    pgvalet_claims.tell()
    assert stage.shown(first)["claim"] == "resting"
    assert get("/jobs/") == "200 OK"
    assert seen["session"] == first
    if stage.SESSION_MODE:
        assert closed() == first
        assert get("/jobs/") == "200 OK"  # checked as it leaves the pool
        assert seen["session"] != first
    connection.close_pool()


def comments():
    """Google's sqlcommenter says which view a statement is of."""
    configure(middleware=["google.cloud.sqlcommenter.django.middleware.SqlCommenter"])
    pgvalet_claims.tell = lambda: None
    assert get("/jobs/") == "200 OK"
    assert [seen["while"]["owner"], seen["while"]["evidence"]] == ["jobs", "comment"], seen["while"]


if __name__ == "__main__":
    stage.main(globals())
