"""Logs in by each method: psycopg, which says what it is ready for (require_auth), and asyncpg."""

import asyncio
import os

import asyncpg
import psycopg

PORT = int(os.environ["PGPORT"])
# The user, and what libpq calls the method.
WAYS = {"by_scram": "scram-sha-256", "by_md5": "md5", "by_password": "password", "by_trust": "none"}


def by_psycopg():
    for user, way in WAYS.items():
        accepted = {"require_auth": way} if psycopg.pq.version() >= 160000 else {}
        with psycopg.connect(user=user, password="pencil", **accepted) as connection:
            assert connection.execute("SELECT session_user").fetchone() == (user,)
        if accepted:
            try:
                psycopg.connect(user=user, password="pencil", require_auth="!" + way)
            except psycopg.OperationalError as error:
                assert "authentication method requirement" in str(error), error
            else:
                raise AssertionError(f"{user}: another method was used")
        if way != "none":
            refused(user, "eraser")
    refused("late", "pencil")
    refused("mallory", "pencil")


def refused(user, password):
    try:
        psycopg.connect(user=user, password=password)
    except psycopg.OperationalError as error:
        assert f'password authentication failed for user "{user}"' in str(error), error
    else:
        raise AssertionError(f"{user} got in")


async def by_asyncpg():
    for user in WAYS:
        connection = await asyncpg.connect(host="127.0.0.1", port=PORT, user=user, password="pencil")
        assert await connection.fetchval("SELECT session_user") == user
        await connection.close()
    for user, password in [("by_scram", "eraser"), ("by_md5", "eraser"), ("by_password", "eraser"), ("late", "pencil")]:
        try:
            await asyncpg.connect(host="127.0.0.1", port=PORT, user=user, password=password)
        except asyncpg.InvalidPasswordError:
            continue
        raise AssertionError(f"{user} got in")


by_psycopg()
asyncio.run(by_asyncpg())
print("all well")
