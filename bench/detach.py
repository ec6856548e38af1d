#!/usr/bin/env python3
"""What a session pays for giving its backend back and taking one again, in microseconds over a direct query.

Usage: bench/detach.py [REQUESTS]    wants a release build; starts a PostgreSQL of its own, and removes it

Each line is over REQUESTS (2000) requests on loopback, one after the other, so that what is done behind an answer counts for
the next request; the cases take turns of 50. On a busy machine the first decile says more than the median. No third-party
module.
"""

import os
import pathlib
import shutil
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
VALET = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "release/pgvalet"
BURST = 50


def as_postgres(command):
    return ["runuser", "-u", "postgres", "--", *command] if os.geteuid() == 0 else command


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Client:
    """A session that sends simple queries, and waits for each answer."""

    def __init__(self, port):
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.buffer = b""
        body = b"\0\3\0\0user\0postgres\0database\0postgres\0application_name\0bench\0\0"
        self.socket.sendall(struct.pack("!I", len(body) + 4) + body)
        self.until_ready()

    def frame(self, at):
        """The end of the frame at `at`, when all of it is there."""
        if len(self.buffer) < at + 5:
            return None
        end = at + 1 + int.from_bytes(self.buffer[at + 1 : at + 5], "big")
        return end if len(self.buffer) >= end else None

    def until_ready(self):
        at = 0
        while True:
            while (end := self.frame(at)) is None:
                more = self.socket.recv(65536)
                if not more:
                    raise SystemExit(f"the connection was closed: {self.buffer!r}")
                self.buffer += more
            kind = self.buffer[at : at + 1]
            if kind == b"E":
                raise SystemExit(f"an error: {self.buffer[at:end]!r}")
            at = end
            if kind == b"Z":
                self.buffer = self.buffer[at:]
                return

    def query(self, sql):
        body = sql.encode() + b"\0"
        self.socket.sendall(b"Q" + struct.pack("!I", len(body) + 4) + body)
        self.until_ready()


def serve(postgres, *flags):
    """A pgvalet in front of `postgres`: its process, and its port."""
    port = free_port()
    upstream = f"postgres://postgres@127.0.0.1:{postgres}/postgres"
    listen = ["--listen", f"127.0.0.1:{port}", "--admin", "127.0.0.1:0", "--metrics", "127.0.0.1:0"]
    command = [VALET, "serve", "--upstream", upstream, "--auth", "trust", "--log", "error", *listen, *flags]
    process = subprocess.Popen(command)
    while True:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
            return process, port
        except ConnectionRefusedError:
            if process.poll() is not None:
                raise SystemExit("pgvalet doesn't start") from None
            time.sleep(0.01)


def case(port, setups, sql):
    """Sessions, each set up in its way, that take turns: a function that makes one request, and gives its microseconds."""
    clients = [Client(port) for _ in setups]
    for client, setup in zip(clients, setups):
        client.query(setup)

    def request(turn):
        client = clients[turn % len(clients)]
        began = time.perf_counter_ns()
        client.query(sql)
        return (time.perf_counter_ns() - began) / 1000

    return request


def measure(port, valet, requests):
    chaos = ("--max-backends", "1", "--chaos-return", "always")
    transaction = ("--max-backends", "1", "--mode", "transaction")
    Client(port).query("CREATE FUNCTION unread() RETURNS int LANGUAGE sql AS 'SELECT 1'")
    one, two = ["SELECT 1"], ["SELECT 1"] * 2
    zones = ("Asia/Tokyo", "Europe/Paris")
    unlike = [f"SET TimeZone = '{zone}'; SET search_path = a, public; SET statement_timeout = '50s'" for zone in zones]
    cases = {
        "direct": case(port, one, "SELECT 1"),
        "mode session": case(valet(), one, "SELECT 1"),
        "probed after each request, own backend taken back": case(valet(*chaos), one, "SELECT 1"),
        "probed, scrubbed for another session": case(valet(*chaos), two, "SELECT 1"),
        "probed, scrubbed and restored (three settings)": case(valet(*chaos), unlike, "SELECT 1"),
        "mode transaction, one session": case(valet(*transaction), one, "SELECT 1"),
        "mode transaction, two like sessions in turns": case(valet(*transaction), two, "SELECT 1"),
        "mode transaction, one session, unknown function": case(valet(*transaction), one, "SELECT unread()"),
        "mode transaction, two like sessions, unknown function": case(valet(*transaction), two, "SELECT unread()"),
        "mode transaction, two sessions with three settings": case(valet(*transaction), unlike, "SELECT 1"),
    }
    times = {name: [] for name in cases}
    for burst in range(requests // BURST + 1):
        for name, request in cases.items():
            took = [request(turn) for turn in range(BURST)]
            # The first burst warms up.
            times[name] += took if burst > 0 else []
    return {name: (statistics.quantiles(taken, n=10)[0], statistics.median(taken)) for name, taken in times.items()}


def main():
    requests = int(sys.argv[1]) if len(sys.argv) > 1 else 2000
    binaries = sorted(pathlib.Path("/usr/lib/postgresql").glob("*/bin"))[-1]
    directory = pathlib.Path(tempfile.mkdtemp(prefix="pgvalet-bench-"))
    directory.chmod(0o777)
    data, port, processes = directory / "data", free_port(), []
    control = [binaries / "pg_ctl", "-D", data, "-w", "-l", directory / "log"]

    def run(command):
        subprocess.run(as_postgres(command), check=True, stdout=subprocess.DEVNULL, cwd=directory)

    def valet(*flags):
        process, clients = serve(port, *flags)
        processes.append(process)
        return clients

    try:
        run([binaries / "initdb", "-D", data, "-U", "postgres", "-A", "trust", "-N"])
        run([*control, "-o", f"-p {port} -k {directory} -c listen_addresses=127.0.0.1 -c jit=off", "start"])
        times = measure(port, valet, requests)
        print(f"{'microseconds':56} {'1st decile':>10} {'over direct':>11} {'median':>8} {'over direct':>11}")
        for name, (decile, median) in times.items():
            best, middle = times["direct"]
            print(f"{name:56} {decile:10.0f} {decile - best:11.0f} {median:8.0f} {median - middle:11.0f}")
        version = subprocess.run([binaries / "postgres", "--version"], capture_output=True, text=True, check=True)
        print(f"\n{version.stdout.strip()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    finally:
        for process in processes:
            process.kill()
        subprocess.run(as_postgres([*control, "-m", "immediate", "stop"]), stdout=subprocess.DEVNULL, cwd=directory)
        shutil.rmtree(directory, ignore_errors=True)


main()
