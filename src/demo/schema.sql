-- The tables of the application that writes the odds: what the cache reads, nothing of the cache's own.
-- Run by the demo, the tests and the benchmarks on an empty database. Names are unqualified on purpose: the tables
-- go where search_path says, so that another schema than public can be tried. Undo: drop the tables.
-- Every time is in UTC, in a column without a zone. dataset.rs makes the daily partitions.

create table bookmakers (
    id   serial primary key,
    name varchar(100) not null,
    slug varchar(50)  not null unique
);

create table sports (
    id   serial primary key,
    name varchar(100) not null
);

create table tournaments (
    id       serial primary key,
    sport_id int references sports (id),
    name     varchar(255) not null,
    country  varchar(100)
);

create table events (
    id            serial primary key,
    sportradar_id varchar(50)  not null unique,
    name          varchar(255) not null,
    home_team     varchar(100) not null,
    away_team     varchar(100) not null,
    tournament_id int references tournaments (id),
    kickoff       timestamp    not null,
    created_at    timestamp    not null default (now() at time zone 'UTC')
);
create index idx_events_kickoff on events (kickoff);

create table odds_snapshots (
    id                bigserial,
    event_id          int       not null,
    bookmaker_id      int       not null,
    captured_at       timestamp not null default (now() at time zone 'UTC'),
    scrape_run_id     int,
    raw_response      jsonb,
    last_confirmed_at timestamp,
    primary key (id, captured_at)
) partition by range (captured_at);
create table odds_snapshots_default partition of odds_snapshots default;
create index idx_snapshots_event on odds_snapshots (event_id);
create index idx_snapshots_bookmaker on odds_snapshots (bookmaker_id);
create index idx_snapshots_event_time on odds_snapshots (event_id, captured_at desc);
create index idx_snapshots_captured_at_brin on odds_snapshots using brin (captured_at);

-- No foreign key to odds_snapshots: its key would have to carry captured_at.
create table market_odds (
    id                  bigserial primary key,
    snapshot_id         bigint       not null,
    betpawa_market_id   varchar(50)  not null,
    betpawa_market_name varchar(255) not null,
    line                float8,
    handicap_type       varchar(50),
    handicap_home       float8,
    handicap_away       float8,
    outcomes            jsonb        not null,
    market_groups       jsonb,
    unavailable_at      timestamp
);
create index idx_market_odds_snapshot on market_odds (snapshot_id);
create index idx_market_odds_market on market_odds (betpawa_market_id);

create table competitor_events (
    id               serial primary key,
    source           varchar(20)  not null,
    betpawa_event_id int references events (id) on delete set null,
    name             varchar(255) not null default '',
    kickoff          timestamp    not null,
    external_id      varchar(100) not null,
    sportradar_id    varchar(50)  not null,
    deleted_at       timestamp,
    unique (source, external_id)
);
create index idx_competitor_events_betpawa_event on competitor_events (betpawa_event_id);
create index idx_competitor_events_sportradar on competitor_events (sportradar_id);

create table competitor_odds_snapshots (
    id                  serial primary key,
    competitor_event_id int       not null,
    captured_at         timestamp not null default (now() at time zone 'UTC'),
    scrape_run_id       int,
    raw_response        jsonb,
    last_confirmed_at   timestamp
);
create index idx_competitor_snapshots_event on competitor_odds_snapshots (competitor_event_id);
create index idx_competitor_snapshots_event_time on competitor_odds_snapshots (competitor_event_id, captured_at desc);

create table competitor_market_odds (
    id                  bigserial primary key,
    snapshot_id         int          not null references competitor_odds_snapshots (id) on delete cascade,
    betpawa_market_id   varchar(50)  not null,
    betpawa_market_name varchar(255) not null,
    line                float8,
    handicap_type       varchar(50),
    handicap_home       float8,
    handicap_away       float8,
    outcomes            jsonb        not null,
    market_groups       jsonb,
    unavailable_at      timestamp
);
create index idx_competitor_market_odds_snapshot on competitor_market_odds (snapshot_id);
create index idx_competitor_market_odds_market on competitor_market_odds (betpawa_market_id);
