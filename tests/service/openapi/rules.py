"""What Schemathesis must know of the service beside its document."""

import os
import re

import schemathesis

UNITS = {"ms": 1, "s": 1_000, "m": 60_000, "h": 3_600_000}

# The id that the next transaction of the database gets, which is at rest.
NEXT = int(os.environ["NEXT_XID"])

# A read that a request asks for takes no longer than this, unless the machine is very busy.
SOON = 5_000


def milliseconds(text):
    terms = re.findall(r"([0-9]+)(ms|s|m|h)", str(text))
    return sum(int(number) * UNITS[unit] for number, unit in terms)


@schemathesis.hook
def filter_query(ctx, query):
    """Leaves out ids that the next transactions will get.

    Such a transaction may have begun, so the service waits for its end as long as the request says, and then answers
    503. It is right in doing so, but thirty seconds for each such request would make the test long.
    `responses_and_the_document_agree` has one.
    """
    try:
        return not NEXT <= int((query or {})["wait_for"]) < NEXT + 2**32
    except (KeyError, TypeError, ValueError):
        return True


@schemathesis.check
def unavailable_only_for_what_the_request_wants(ctx, response, case):
    """In place of `not_a_server_error`, which refuses each 503.

    A client that asks for a younger view than there is gets 503, because the service is behind what the client needs:
    another service, or the same one later, may have that view. This holds here only for a `max_age` that the answer
    shows to be exceeded, and for a `timeout` that ends before the service has read the database once. Any other 5xx is
    a finding.
    """
    if response.status_code < 500:
        return
    said = response.json()
    query = case.query or {}
    if response.status_code == 503 and said.get("reason") == "too_stale" and "max_age" in query:
        assert said["age_ms"] >= milliseconds(query["max_age"]), f"young enough: {said}"
        return
    if response.status_code == 503 and said.get("reason") == "not_shown" and "wait_for" in query:
        assert milliseconds(query.get("timeout", "5s")) < SOON, f"it had the time for a read: {said}"
        return
    raise AssertionError(f"a fault of the service: {response.status_code} {said}")
