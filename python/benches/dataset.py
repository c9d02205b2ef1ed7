"""The application's data at real scale, made on the server from the same material as the demo's.

It has the latest snapshots only: no history, no past events, and none of the rare cases that the tests are about.
"""

import subprocess
import sys
from pathlib import Path

import psycopg

_DEMO = Path(__file__).resolve().parents[2] / "src" / "demo"
# Random numbers depend on the key and the salt alone, so every run has the same odds.
_RANDOM = """
    create function pg_temp.u(key bigint, salt int) returns float8 language sql immutable as
    $$ select (hashint8extended(key, salt) & 4294967295) / 4294967296.0::float8 $$"""


def create(url: str, events: int, markets: int, feed: bool) -> None:
    """Makes the tables with one own bookmaker and two competitors an event, and the change feed if wanted."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute((_DEMO / "schema.sql").read_bytes())
        connection.execute(_RANDOM)
        connection.execute((_DEMO / "dataset.sql").read_bytes())
        connection.execute(_HEADS % {"events": events})
        for competitor, table in enumerate(("market_odds", "competitor_market_odds")):
            connection.execute((_MARKETS % {"table": table, "competitor": competitor, "markets": markets}).encode())
        if feed:
            install = [sys.executable, "-m", "oddscache", "sql", "install"]
            # In another folder: the sources beside this one have no compiled part.
            made = subprocess.run(install, cwd="/", check=True, stdout=subprocess.PIPE)
            connection.execute(made.stdout)
        connection.execute("vacuum analyze")


_HEADS = """
    insert into bookmakers (name, slug) values ('betPawa', 'betpawa');
    insert into sports (name) values ('Football');
    insert into tournaments (sport_id, name, country) values (1, 'Premier League', 'England');
    insert into events (sportradar_id, name, home_team, away_team, tournament_id, kickoff)
    select 'sr:match:' || 60000000 + n, home || ' - ' || away, home, away, 1,
           date_bin('5 minutes', now + interval '7 days' * pg_temp.u(n, 5), now)
    from (select n, pg_temp.team(n, 1) as home, pg_temp.team(n, 2) as away, now
          from generate_series(1, %(events)s) n, pg_temp.clock) made
    order by n;
    insert into competitor_events (source, betpawa_event_id, name, kickoff, external_id, sportradar_id)
    select source, e.id, e.name, e.kickoff, source || '-' || e.id, e.sportradar_id
    from events e, unnest('{sportybet,bet9ja}'::text[]) source
    order by e.id, source;
    insert into odds_snapshots (event_id, bookmaker_id, captured_at, raw_response, last_confirmed_at)
    select e.id, 1, now - interval '5 minutes' * pg_temp.u(e.id, 6), pg_temp.raw_response(e.id),
           case when pg_temp.u(e.id, 8) < 0.7 then now end
    from events e, pg_temp.clock
    order by e.id;
    insert into competitor_odds_snapshots (competitor_event_id, captured_at, raw_response, last_confirmed_at)
    select c.id, now - interval '5 minutes' * pg_temp.u(c.id, 7), pg_temp.raw_response(-c.id),
           case when pg_temp.u(c.id, 9) < 0.7 then now end
    from competitor_events c, pg_temp.clock
    order by c.id;
    insert into pg_temp.market_target (competitor, snapshot_id, event, key, captured_at)
    select false, id, event_id, id, captured_at from odds_snapshots
    union all
    select true, s.id, c.betpawa_event_id, 1000000000 + s.id, s.captured_at
    from competitor_odds_snapshots s
    join competitor_events c on c.id = s.competitor_event_id"""

# Odds are drawn around the base of the market's kind, then scaled to the margin of the kind.
_MARKETS = """
    insert into %(table)s (snapshot_id, betpawa_market_id, betpawa_market_name, line, handicap_type, handicap_home,
                           handicap_away, outcomes, market_groups, unavailable_at)
    select t.snapshot_id, k.market_id, k.name, k.line, k.handicap_type, k.handicap_home, k.handicap_away, made.outcomes,
           case when not t.competitor or pg_temp.u(seed.seed, 60) < 0.7 then k.groups end,
           case when pg_temp.u(seed.seed, 61) < 0.02 then t.captured_at end
    from pg_temp.market_target t
    cross join pg_temp.market_kind k
    cross join lateral (select t.key * 1000 + k.position as seed) seed
    cross join lateral (
        select jsonb_agg(
                   jsonb_build_object(
                       'name', case when k.own_names then pg_temp.player(t.event * 10000 + k.position * 10 + o.n)
                                    else o.name end,
                       'odds', greatest(1.01, round((o.total / o.weight / k.overround)::numeric,
                                                    case when k.position %% 4 = 0 then 3 else 2 end)),
                       'is_active', pg_temp.u(seed.seed, 40 + o.n) > 0.02)
                   order by o.n) as outcomes
        from (select name, n, weight, sum(weight) over () as total
              from (select name, n::int, (0.7 + 0.6 * pg_temp.u(seed.seed, n::int)) / base as weight
                    from unnest(k.names, k.base) with ordinality u (name, base, n)) weighed) o
    ) made
    where t.competitor = (%(competitor)s = 1) and k.position <= %(markets)s
    order by t.n, k.position"""
