-- What the cache must hold. It shares nothing with how the cache reads. One row per event, in event id order.
-- $1 (timestamptz): the window's start; only events with a later kickoff count.
-- Returns event_id bigint, line text: the event as the service prints it. To compare, parse the JSON and its times.
--
-- Rows are read through to_jsonb(row). So a column that a deployment lacks reads as null, and json and jsonb read
-- alike. A time has a zone only if its column has one; a time without a zone is UTC. Names are unqualified on purpose:
-- search_path says which schema.

with upcoming as (
    select e.id, to_jsonb(e) as row,
           regexp_replace(to_jsonb(e) ->> 'kickoff', '(T[0-9:.]+)$', '\1Z') as kickoff
    from events e
),
-- A partitioned table may have an event twice. Then its latest kickoff counts.
window_events as (
    select distinct on (id) id, kickoff, row from upcoming where kickoff::timestamptz > $1::timestamptz
    order by id, kickoff::timestamptz desc
),

-- The snapshots of one event and bookmaker or source, newest first. Rank 1 is the latest. A partitioned table may have
-- an id twice. Then the snapshot captured last counts, or of several captured at once, the one confirmed last.
own_ranked as (
    select s.id, s.captured_at, s.event_id, s.bookmaker_id,
           rank() over (partition by s.event_id, s.bookmaker_id order by s.id desc, s.captured_at desc nulls last) as rank
    from odds_snapshots s
    join window_events w on w.id = s.event_id
),
competitor_ranked as (
    select s.id, s.captured_at, s.competitor_event_id, c.betpawa_event_id as event_id, c.source,
           rank() over (partition by c.betpawa_event_id, c.source order by s.id desc, s.captured_at desc nulls last) as rank
    from competitor_events c
    join window_events w on w.id = c.betpawa_event_id
    join competitor_odds_snapshots s on s.competitor_event_id = c.id
    where c.deleted_at is null
),

-- The latest snapshots of both sides, in one shape. key: the bookmaker's id, or the competitor's source.
candidates as (
    select 'betpawa' as side, r.id::bigint as snapshot_id, r.event_id, r.bookmaker_id::bigint as bookmaker_id,
           r.bookmaker_id::text as key, to_jsonb(s) - 'raw_response' as row
    from own_ranked r
    join odds_snapshots s on s.id = r.id and s.event_id = r.event_id and s.bookmaker_id = r.bookmaker_id
        and s.captured_at is not distinct from r.captured_at
    where r.rank = 1
    union all
    select 'competitors', r.id, r.event_id, 0, r.source::text, to_jsonb(s) - 'raw_response'
    from competitor_ranked r
    join competitor_odds_snapshots s on s.id = r.id and s.competitor_event_id = r.competitor_event_id
        and s.captured_at is not distinct from r.captured_at
    where r.rank = 1
),
latest as materialized (
    select distinct on (c.side, c.event_id, c.key) c.* from candidates c
    order by c.side, c.event_id, c.key, (c.row ->> 'last_confirmed_at')::timestamptz desc nulls last
),

markets as (
    select 'betpawa' as side, m.snapshot_id::bigint as snapshot_id, m.id::bigint as id, to_jsonb(m) as row
    from market_odds m
    where m.snapshot_id in (select snapshot_id from latest where side = 'betpawa')
    union all
    select 'competitors', m.snapshot_id, m.id, to_jsonb(m)
    from competitor_market_odds m
    where m.snapshot_id in (select snapshot_id from latest where side = 'competitors')
),
market_lists as (
    select m.side, m.snapshot_id,
           json_agg(json_build_object(
               'betpawa_market_id', m.row -> 'betpawa_market_id',
               'betpawa_market_name', m.row -> 'betpawa_market_name',
               'line', m.row -> 'line',
               'handicap_type', m.row -> 'handicap_type',
               'handicap_home', m.row -> 'handicap_home',
               'handicap_away', m.row -> 'handicap_away',
               'outcomes', case jsonb_typeof(m.row -> 'outcomes') when 'array' then m.row -> 'outcomes' else '[]' end,
               'market_groups', case jsonb_typeof(m.row -> 'market_groups') when 'array' then m.row -> 'market_groups' else '[]' end,
               'unavailable_at', regexp_replace(m.row ->> 'unavailable_at', '(T[0-9:.]+)$', '\1Z')
           ) order by m.id) as list
    from markets m
    group by m.side, m.snapshot_id
),
snapshots as (
    select l.side, l.event_id, l.key,
           json_build_object(
               'snapshot_id', l.snapshot_id,
               'event_id', l.event_id,
               'bookmaker_id', l.bookmaker_id,
               'captured_at', regexp_replace(l.row ->> 'captured_at', '(T[0-9:.]+)$', '\1Z'),
               'last_confirmed_at', regexp_replace(
                   coalesce(l.row ->> 'last_confirmed_at', l.row ->> 'captured_at'), '(T[0-9:.]+)$', '\1Z'),
               'markets', coalesce(k.list, '[]')
           ) as snapshot
    from latest l
    left join market_lists k on k.side = l.side and k.snapshot_id = l.snapshot_id
),

-- The names of bookmakers and tournaments. Where a database lacks one of these tables, or its role may not read it, put
-- an empty table in its place.
bookmaker_rows as (
    select to_jsonb(t) as row from bookmakers t
),
tournament_rows as (
    select to_jsonb(t) as row from tournaments t
),
sport_rows as (
    select to_jsonb(t) as row from sports t
),
tournament_names as (
    select t.row ->> 'id' as id, left(t.row ->> 'name', 255) as name, left(t.row ->> 'country', 255) as country,
           left(s.row ->> 'name', 255) as sport
    from tournament_rows t
    left join sport_rows s on s.row ->> 'id' = t.row ->> 'sport_id'
)
select w.id::bigint as event_id,
       json_build_object(
           'event_id', w.id,
           'kickoff', w.kickoff,
           'name', left(w.row ->> 'name', 255),
           'home_team', left(w.row ->> 'home_team', 255),
           'away_team', left(w.row ->> 'away_team', 255),
           'sportradar_id', left(w.row ->> 'sportradar_id', 255),
           'tournament', case when w.row ->> 'tournament_id' is not null then json_build_object(
               'id', w.row -> 'tournament_id', 'name', t.name, 'country', t.country, 'sport', t.sport) end,
           'bookmakers', coalesce(json_object_agg(s.key, json_build_object(
               'slug', left(b.row ->> 'slug', 255), 'name', left(b.row ->> 'name', 255)
           )) filter (where s.side = 'betpawa' and b.row is not null), '{}'),
           'betpawa', coalesce(json_object_agg(s.key, s.snapshot) filter (where s.side = 'betpawa'), '{}'),
           'competitors', coalesce(json_object_agg(s.key, s.snapshot) filter (where s.side = 'competitors'), '{}')
       )::text as line
from window_events w
join snapshots s on s.event_id = w.id
left join bookmaker_rows b on s.side = 'betpawa' and b.row ->> 'id' = s.key
left join tournament_names t on t.id = w.row ->> 'tournament_id'
group by w.id, w.kickoff, w.row, t.name, t.country, t.sport
order by w.id;
