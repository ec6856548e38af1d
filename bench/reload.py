#!/usr/bin/env python3
"""A thousand parked leases, one reload, and what a pgbench beside it notices.

Opens COUNT sessions through pgvalet, each with a lease at a quiet point, runs `pgbench -S` through the same pgvalet, and
in the middle of it one reload that returns them all. Prints how long the reload took, its outcomes, and the p50 and p99
of pgbench's transactions before, during and after, with their ratios. PostgreSQL must allow COUNT + CLIENTS connections
(max_connections), pgvalet as many backends (max_backends), and both `ulimit -n` and trust for USER.

    pgvalet serve --upstream postgres://postgres@127.0.0.1:5432/postgres --auth trust --max-backends 1100 &
    python3 bench/reload.py --port 6432 --admin 127.0.0.1:6433 --count 1000
"""

import argparse
import glob
import json
import os
import socket
import struct
import subprocess
import sys
import tempfile
import time
import urllib.request


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=6432, help="where clients connect, on 127.0.0.1")
    parser.add_argument("--admin", default="127.0.0.1:6433", help="host:port of the admin API")
    parser.add_argument("--user", default="postgres")
    parser.add_argument("--database", default="postgres")
    parser.add_argument("--count", type=int, default=1000, help="parked sessions")
    parser.add_argument("--clients", type=int, default=8, help="clients of pgbench")
    parser.add_argument("--seconds", type=int, default=10, help="how long pgbench runs before and after the reload")
    return parser.parse_args()


class Session:
    """A client of the simple protocol that asks one thing, and parks."""

    def __init__(self, args):
        self.socket = socket.create_connection(("127.0.0.1", args.port))
        self.buffer = b""
        names = {"user": args.user, "database": args.database, "application_name": "parked"}
        body = struct.pack("!i", 196608)
        body += b"".join(text.encode() + b"\0" for pair in names.items() for text in pair) + b"\0"
        self.socket.sendall(struct.pack("!i", len(body) + 4) + body)
        self.until_ready()

    def query(self, sql):
        body = sql.encode() + b"\0"
        self.socket.sendall(b"Q" + struct.pack("!i", len(body) + 4) + body)
        self.until_ready()

    def exactly(self, count):
        while len(self.buffer) < count:
            more = self.socket.recv(65536)
            if not more:
                sys.exit("pgvalet closed a session")
            self.buffer += more
        data, self.buffer = self.buffer[:count], self.buffer[count:]
        return data

    def until_ready(self):
        while True:
            kind, length = struct.unpack("!ci", self.exactly(5))
            body = self.exactly(length - 4)
            if kind == b"E":
                sys.exit(f"an error: {body!r}")
            if kind == b"Z":
                return


def reload(admin):
    body = json.dumps({"application": "parked", "deadline": "60s"}).encode()
    request = urllib.request.Request(f"http://{admin}/v1/reloads", body, {"Content-Type": "application/json"})
    began = time.time()
    with urllib.request.urlopen(request) as answer:
        record = json.load(answer)
    return began, time.time(), record


def latencies(directory):
    """Each transaction's end, in seconds since the epoch, and its latency in milliseconds."""
    for path in glob.glob(os.path.join(directory, "pgbench_log*")):
        with open(path, encoding="ascii") as log:
            for line in log:
                fields = line.split()
                yield int(fields[4]) + int(fields[5]) / 1e6, int(fields[2]) / 1000


def quantile(values, share):
    values = sorted(values)
    return values[min(len(values) - 1, int(len(values) * share))] if values else float("nan")


def main():
    args = arguments()
    place = ["-h", "127.0.0.1", "-p", str(args.port), "-U", args.user, args.database]
    subprocess.run(["pgbench", "-i", "-q", *place], check=True, stderr=subprocess.DEVNULL)
    sessions = []
    for number in range(args.count):
        session = Session(args)
        session.query("SELECT 1")
        sessions.append(session)
        if number % 100 == 99:
            print(f"{number + 1} sessions hold a backend", file=sys.stderr)
    with tempfile.TemporaryDirectory() as directory:
        seconds = 2 * args.seconds + 5
        bench = ["pgbench", "-n", "-S", "-l", "-c", str(args.clients), "-T", str(seconds), *place]
        running = subprocess.Popen(bench, cwd=directory, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(args.seconds)
        began, ended, record = reload(args.admin)
        if running.wait() != 0:
            sys.exit("pgbench failed")
        all_of_them = list(latencies(directory))
    phases = {
        "before": [ms for at, ms in all_of_them if at < began],
        "during": [ms for at, ms in all_of_them if began <= at < ended],
        "after": [ms for at, ms in all_of_them if at >= ended],
    }
    counts = {word: count for word, count in record["counts"].items() if count}
    print(f"reload of {args.count}: {record['took']}; {counts}")
    base = quantile(phases["before"], 0.99)
    print("| phase | transactions | p50, ms | p99, ms | p99, ratio to before |\n|---|---|---|---|---|")
    for phase, values in phases.items():
        p50, p99 = quantile(values, 0.5), quantile(values, 0.99)
        print(f"| {phase} | {len(values)} | {p50:.3f} | {p99:.3f} | {p99 / base:.2f} |")
    for session in sessions:
        session.query("SELECT 1")
    print(f"all {len(sessions)} sessions go on", file=sys.stderr)


main()
