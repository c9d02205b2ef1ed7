-- What the synthetic data is made from. dataset.rs runs it once a session, after it has made pg_temp.u().
-- Everything here is temporary: it goes with the session.
--
-- pg_temp.u(key, salt) is a number in [0, 1) that depends on the seed, key and salt alone. So the data does not depend
-- on the plan that the server chooses.

create temp table clock as
select date_trunc('second', now() at time zone 'UTC') as now;

create function pg_temp.pick(words text[], key bigint, salt int) returns text language sql immutable as
$$ select words[1 + floor(pg_temp.u(key, salt) * array_length(words, 1))::int] $$;

create function pg_temp.team(key bigint, salt int) returns text language sql immutable as
$$ select pg_temp.pick('{Accra,Kumasi,Lagos,Kano,Ibadan,Enugu,Nairobi,Mombasa,Kisumu,Kampala,Lusaka,Ndola,Harare,Dakar,Thies,
                         Douala,Yaounde,Abidjan,Bamako,Lome,Cotonou,Maputo,Beira,Kigali,Dodoma,Arusha,Lilongwe,Gaborone,
                         Leeds,Porto,Turin,Lyon,Bilbao,Utrecht,Ghent,Graz,Malmo,Bergen,Aarhus,Split}', key, salt)
       || ' ' || pg_temp.pick('{FC,United,City,Rovers,Stars,Athletic,Wanderers,SC,Rangers,Sporting}', key, salt + 1000) $$;

-- "K. Mensah": common family names behind a random initial.
create function pg_temp.player(key bigint) returns text language sql immutable as
$$ select chr(65 + floor(pg_temp.u(key, 91) * 26)::int) || '. '
       || pg_temp.pick('{Mensah,Okafor,Silva,Diallo,Kamara,Banda,Phiri,Moyo,Otieno,Mwangi,Traore,Keita,Sow,Ndiaye,Mbeki,Osei,
                         Eze,Bello,Santos,Costa,Rossi,Muller,Jansen,Novak,Larsen,Dubois,Garcia,Moreau,Horvat,O''Brien}',
                       key, 92) $$;

-- One row per market of a snapshot, in row order. The markets of the event list come first, so that the smallest scale
-- has them.
-- own_names: the outcomes are the event's players, so each event has names of its own.
create temp table market_kind (
    position       int primary key,
    market_id      text not null,
    name           text not null,
    line           float8,
    handicap_type  text,
    handicap_home  float8,
    handicap_away  float8,
    names          text[]   not null,
    base           float8[] not null,
    -- The sum of 1 / odds, which is the bookmaker's margin. It is the same in every snapshot.
    overround      float8   not null,
    groups         jsonb,
    own_names      boolean  not null
);

insert into market_kind
with kinds (rank, market_id, name, line, handicap_type, handicap_home, handicap_away, names, base, groups) as (
    values
        (1.0, '3743', '1X2 - Full Time', null::float8, null, null::float8, null::float8, '{1,X,2}'::text[], '{2.3,3.3,3.1}'::float8[], '["Main","Popular"]'::jsonb),
        (2, '5000', 'Over/Under - Full Time', 2.5, null, null, null, '{Over,Under}', '{1.9,1.85}', '["Main","Goals"]'),
        (3, '3795', 'Both Teams To Score - Full Time', null, null, null, null, '{Yes,No}', '{1.75,2.0}', '["Main","Goals"]'),
        (4, '4693', 'Double Chance - Full Time', null, null, null, null, '{1X,X2,12}', '{1.35,1.6,1.3}', '["Main"]'),
        (5, '4724', 'Asian Handicap - Full Time', null, 'asian', -0.5, 0.5, '{1,2}', '{2.2,1.65}', '["Handicap"]'),
        (7, '5000', 'Over/Under - Full Time', 0.5, null, null, null, '{Over,Under}', '{1.05,9.0}', '["Main","Goals"]'),
        (8, '5000', 'Over/Under - Full Time', 1.5, null, null, null, '{Over,Under}', '{1.3,3.4}', '["Main","Goals"]'),
        (9, '5000', 'Over/Under - Full Time', 3.5, null, null, null, '{Over,Under}', '{3.2,1.33}', '["Main","Goals"]'),
        (10, '5000', 'Over/Under - Full Time', 4.5, null, null, null, '{Over,Under}', '{6.1,1.11}', '["Main","Goals"]'),
        (11, '5000', 'Over/Under - Full Time', 5.5, null, null, null, '{Over,Under}', '{11.5,1.04}', '["Main","Goals"]'),
        (12, '3747', '1X2 - First Half', null, null, null, null, '{1,X,2}', '{2.9,2.05,3.7}', '["Half Time"]'),
        (13, '4703', 'Draw No Bet - Full Time', null, null, null, null, '{1,2}', '{1.7,2.15}', null),
        (14, '4833', 'Half Time/Full Time', null, null, null, null, '{1/1,1/X,1/2,X/1,X/X,X/2,2/1,2/X,2/2}', '{3.9,15,34,5.7,5.2,7.3,29,15,5.4}', '["Half Time","Combo"]'),
        (15, '4848', 'Odd/Even - Full Time', null, null, null, null, '{Odd,Even}', '{1.91,1.91}', null),
        (16, '1096755', 'Correct Score - Full Time', null, null, null, null, '{1-0,2-0,2-1,0-0,1-1,2-2,0-1,0-2,1-2,Other}', '{7.5,9.8,9,10,6.2,13,9.5,15,12,4.4}', '["Score"]')
    union all
    select 20 + n, '4724', 'Asian Handicap - Full Time', null, 'asian', -h, h, '{1,2}', array[1.9 + h * 0.6, 1.95 - h * 0.25], '["Handicap"]'
    from (select n, (n - 4) * 0.5 + 0.25 as h from generate_series(1, 7) n) lines
    union all
    select 30 + n, '3774', '3 Way Handicap - Full Time', null, 'european', -h, h, '{1,X,2}', array[2.6 + h * 0.6, 3.6, 2.4 - h * 0.3], '["Handicap"]'
    from (select n, case when n < 3 then n - 3 else n - 2 end as h from generate_series(1, 4) n) lines
    union all
    select 40 + n, '1096783', 'Over/Under Corners - Full Time', n + 6.5, null, null, null, '{Over,Under}', array[1.2 + n * 0.25, 2.9 - n * 0.25], '["Corners","Specials"]'
    from generate_series(1, 6) n
    union all
    select 50 + n, case when n < 4 then '5006' else '5003' end,
           case when n < 4 then 'Home Team Over/Under - Full Time' else 'Away Team Over/Under - Full Time' end,
           (n - 1) % 3 + 0.5, null, null, null, '{Over,Under}', array[1.25 + ((n - 1) % 3) * 1.2, 3.6 - ((n - 1) % 3) * 1.15], '["Goals","Teams"]'
    from generate_series(1, 6) n
    union all
    -- The sixth market, and from the 40th on all, are about players.
    select case n when 1 then 6 else 100 + n end, (28000000 + n)::text,
           (array['Anytime Goalscorer', 'First Goalscorer', 'Player To Be Booked', 'Player Shots On Target'])[1 + n % 4]
           || ' ' || (1 + (n - 1) / 4)::text,
           null, null, null, null, '{A,B,C}', '{3.4,4.6,6.5}',
           case when n % 5 = 0 then null else '["Players","Specials"]'::jsonb end
    from generate_series(1, 1000) n
)
select row_number() over (order by rank), market_id, name, line, handicap_type, handicap_home, handicap_away, names,
       base, (select sum(1 / b) from unnest(base) b), groups, market_id like '28______'
from kinds;

create function pg_temp.raw_response(key bigint) returns jsonb language sql immutable as
$$ select jsonb_build_object('status', 'ok', 'etag', md5(key::text), 'body', repeat(md5((key + 1)::text), 8)) $$;

-- The snapshots that get markets. dataset.rs fills it. event decides the names of outcomes, and key decides the odds.
create temp table market_target (
    n           bigserial primary key,
    competitor  boolean not null,
    snapshot_id bigint  not null,
    event       bigint  not null,
    key         bigint  not null,
    captured_at timestamp not null
);
analyze clock;
analyze market_kind;
