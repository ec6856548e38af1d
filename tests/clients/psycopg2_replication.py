"""psycopg2's replication cursor: it streams, confirms, and is told to stop."""

import psycopg2
from psycopg2.extras import LogicalReplicationConnection, StopReplication

SLOT = "psycopg2"

plain = psycopg2.connect("")
plain.autocommit = True
sender = psycopg2.connect("", connection_factory=LogicalReplicationConnection)
cursor = sender.cursor()
cursor.create_replication_slot(SLOT, output_plugin="test_decoding")
cursor.start_replication(slot_name=SLOT, decode=True)
plain.cursor().execute("INSERT INTO t SELECT i, repeat('x', 100) FROM generate_series(1, 500) i")
heard = []


def consume(message):
    heard.append(message.payload)
    message.cursor.send_feedback(flush_lsn=message.data_start)
    if message.payload.startswith("COMMIT"):
        raise StopReplication()


try:
    cursor.consume_stream(consume)
except StopReplication:
    pass
assert sum("INSERT" in payload for payload in heard) == 500, len(heard)
sender.close()

again = psycopg2.connect("", connection_factory=LogicalReplicationConnection)
again.cursor().drop_replication_slot(SLOT)
again.close()
