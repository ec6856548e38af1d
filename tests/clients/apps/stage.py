"""What the Python apps share: the admin API, what `pgvalet leaks` prints, and a wait for what must come."""

import json
import os
import subprocess
import sys
import threading
import time
import urllib.request

ADMIN = os.environ["PGVALET_ADMIN_URL"]
SESSION_MODE = os.environ["MODE"] == "session"


def api(method, path, body=None):
    request = urllib.request.Request(ADMIN + path, json.dumps(body).encode(), {"Content-Type": "application/json"}, method=method)
    if body is None:
        request.data = None
    return json.load(urllib.request.urlopen(request, timeout=30))


def until(what, condition):
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        if found := condition():
            return found
    raise AssertionError(f"not within 30 s: {what}")


def shown(session):
    return next(one for one in api("GET", "/v1/sessions")["sessions"] if one["session"] == session)


def outcomes(reload, *sessions):
    told = {one["session"]: one["outcome"] for one in reload["leases"]}
    return [told.get(session) for session in sessions]


def expect_parked(session, name):
    """Prints what `pgvalet leaks` prints, of a parked session; in transaction mode there is none."""
    one = shown(session)
    assert [one["owner"], one["evidence"], one["claim"]] == [name, "claim", "held"], one
    if not SESSION_MODE:
        assert api("GET", "/v1/leaks")["leaks"] == []
        return
    leak = until("it has parked", lambda: api("GET", "/v1/leaks")["leaks"])[0]
    assert [leak["session"], leak["basis"]] == [session, "declared"], leak
    print(subprocess.run([os.environ["PGVALET"], "leaks", "--admin", ADMIN], check=True, capture_output=True, text=True).stdout)


def reload_and_judge(parked, resting, busy, inside):
    record = api("POST", "/v1/reloads", {})
    told = outcomes(record, parked, resting, busy, inside)
    if SESSION_MODE:
        assert told == ["returned", "resting", "busy", "busy"], record
    else:  # who is quiet holds no lease
        assert told == [None, None, "busy", "busy"], record
    until("the parked one holds none", lambda: shown(parked)["backend"] is None)


def aside(work):
    """Runs `work` in a thread of its own; a callable that waits for what it returns."""
    result = []
    thread = threading.Thread(target=lambda: result.append(work()), daemon=True)
    thread.start()

    def wait():
        thread.join(30)
        assert result, "it didn't end, or failed"
        return result[0]

    return wait


def main(cases):
    cases[sys.argv[1]]()
