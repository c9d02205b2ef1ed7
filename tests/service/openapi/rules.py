"""What Schemathesis must know of the service beside its document."""

import re

import schemathesis

UNITS = {"ms": 1, "s": 1_000, "m": 60_000, "h": 3_600_000}

# The service reads its database, which is at rest, several times a second. So a view that contains a transaction comes
# within this time, unless the machine is busy.
SOON = 5_000


def milliseconds(text):
    terms = re.findall(r"([0-9]+)(ms|s|m|h)", str(text))
    return sum(int(number) * UNITS[unit] for number, unit in terms)


@schemathesis.check
def unavailable_only_for_what_the_request_wants(ctx, response, case):
    """In place of `not_a_server_error`, which refuses each 503.

    A client that asks for a younger view than there is gets 503, because the service is behind what the client needs:
    another service, or the same one later, may have that view. This holds here only for a `max_age` that the answer
    shows to be exceeded, and for a `timeout` that is too short for a read. Any other 5xx is a finding.
    """
    if response.status_code < 500:
        return
    said = response.json()
    query = case.query or {}
    if response.status_code == 503 and said.get("reason") == "too_stale" and "max_age" in query:
        assert said["age_ms"] >= milliseconds(query["max_age"]), f"young enough: {said}"
        return
    if response.status_code == 503 and said.get("reason") == "not_shown" and "wait_for" in query:
        timeout = query.get("timeout", "5s")
        assert milliseconds(timeout) < SOON, f"it waited long enough: {said}"
        return
    raise AssertionError(f"a fault of the service: {response.status_code} {said}")
