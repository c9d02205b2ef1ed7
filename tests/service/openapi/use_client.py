"""Uses the client that a generator made of /openapi.json: use_client.py URL TOKEN

The package `generated` is on the path.
"""

import datetime
import json
import sys
import urllib.request

from generated import AuthenticatedClient, Client
from generated.api.default import event, events, history, list_
from generated.models import Event, ListedEvent, Problem, Unavailable
from generated.types import UNSET

base, token = sys.argv[1:]
client = AuthenticatedClient(base_url=base, token=token, raise_on_unexpected_status=True)


def raw(path):
    request = urllib.request.Request(base + path, headers={"authorization": f"Bearer {token}"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)


def normal(value):
    """Times in one form: the service and the client write the same time differently."""
    if isinstance(value, dict):
        return {key: normal(part) for key, part in value.items()}
    if isinstance(value, list):
        return [normal(part) for part in value]
    if isinstance(value, str) and "T" in value:
        try:
            return datetime.datetime.fromisoformat(value.replace("Z", "+00:00"))
        except ValueError:
            return value
    return value


def same(typed, path):
    """The typed values hold everything that the service says."""
    assert normal([one.to_dict() for one in typed]) == normal(raw(path)), path


def pages(operation, kind):
    found, after = [], UNSET
    while True:
        answer = operation.sync_detailed(client=client, limit=4, after=after)
        assert answer.status_code == 200, answer
        assert all(type(one) is kind for one in answer.parsed), answer.parsed
        found += answer.parsed
        if "oddscache-next" not in answer.headers:
            return found
        after = answer.headers["oddscache-next"]


all_events = pages(events, Event)
same(all_events, "/v1/events")
first = all_events[0]
assert isinstance(first.kickoff, datetime.datetime) and first.kickoff.tzinfo, first.kickoff
market = first.betpawa.additional_properties["1"].markets[0]
outcome = market.outcomes[1]
assert (outcome.name, outcome.odds, outcome.is_active) == ("2", 1.75, False), outcome
# Keys of a stored outcome that the document does not name.
assert outcome["id"] == 7, outcome

moved = history.sync(client=client, id=first.event_id, market="5000", line=2.5)
assert moved.next_to is None and moved.snapshots[0].snapshot.markets[0].line == 2.5, moved

listed = pages(list_, ListedEvent)
same(listed, "/v1/list")
answer = list_.sync_detailed(client=client)
known = list_.sync_detailed(client=client, if_none_match=answer.headers["etag"])
assert (known.status_code, known.parsed) == (304, None), known

kickoff = first.kickoff
some = events.sync(client=client, from_=kickoff, to=kickoff + datetime.timedelta(hours=1), ids="1,2,77", bookmaker=1)
assert [one.event_id for one in some] == [first.event_id], some

# Errors are typed, too.
absent = event.sync(77, client=client)
assert type(absent) is Problem and "77" in absent.error, absent
wrong = events.sync(client=client, wait_for=2**62)
assert type(wrong) is Problem and "has not begun" in wrong.error, wrong
stale = events.sync(client=client, max_age="0s")
assert type(stale) is Unavailable and stale.age_ms >= 0, stale
stranger = events.sync_detailed(client=Client(base_url=base))
assert stranger.status_code == 401 and type(stranger.parsed) is Problem, stranger

# A later version may add keys. An older client ignores them.
later = raw(f"/v1/events/{first.event_id}") | {"name": "Home - Away", "tournament": {"id": 7}}
assert Event.from_dict(later).betpawa == first.betpawa

print(f"{len(all_events)} events, {len(listed)} in the list: {stale.reason}")
