"""Logs in over TLS in each way that psycopg's libpq and asyncpg know. Argument: the root certificate."""

import asyncio
import ssl
import sys

import asyncpg
import psycopg

ROOT = sys.argv[1]


def by_psycopg():
    ways = [
        {"sslmode": "require"},
        {"sslmode": "verify-full", "sslrootcert": ROOT},
        {"sslmode": "verify-full", "sslrootcert": ROOT, "channel_binding": "require"},
    ]
    if psycopg.pq.version() >= 170000:
        ways.append({"sslmode": "require", "sslnegotiation": "direct"})
        ways.append({"sslmode": "verify-full", "sslrootcert": ROOT, "sslnegotiation": "direct", "channel_binding": "require"})
    if psycopg.pq.version() >= 180000:
        ways.append({"sslmode": "require", "sslnegotiation": "direct", "max_protocol_version": "3.2"})
    for way in ways:
        with psycopg.connect(host="localhost", hostaddr="127.0.0.1", **way) as connection:
            assert connection.pgconn.ssl_in_use, way
            assert connection.execute("SELECT %s::int", [7]).fetchone() == (7,)
            if psycopg.pq.version() >= 170000:
                # Its cancel requests are encrypted, too.
                connection.cancel_safe()
    try:
        psycopg.connect(host="127.0.0.1", sslmode="disable")
    except psycopg.OperationalError as error:
        assert "no encryption" in str(error), error
    else:
        raise AssertionError("plain clients stay outside")
    print("libpq", psycopg.pq.version(), len(ways), "ways")


async def by_asyncpg():
    context = ssl.create_default_context(cafile=ROOT)
    for kind in [{"ssl": "require"}, {"ssl": context}, {"ssl": context, "direct_tls": True}]:
        try:
            connection = await asyncpg.connect(host="localhost" if kind.get("ssl") is context else "127.0.0.1", **kind)
        except (ConnectionError, asyncpg.PostgresError):
            # Its direct negotiation names no protocol, which PostgreSQL 17 refuses as well.
            assert kind.get("direct_tls"), kind
            continue
        assert await connection.fetchval("SELECT $1::int", 7) == 7
        await connection.close()


by_psycopg()
asyncio.run(by_asyncpg())
print("all well")
