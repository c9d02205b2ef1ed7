//! Changes that concern many rows or none: what they cost until the view shows them.

use std::time::{Duration, Instant};

use oddscache::sql::Script;
use oddscache_testkit::{bench::median, connect, followed::run};
use tokio::time::sleep;

use crate::{
    age,
    line::{Line, time},
    world::{Cost, OLD, SPARE, World, typical, until},
};

const POLLS: u32 = 20;

/// A read that finds nothing, and one that finds one event's new odds. Returns the first.
pub(crate) async fn polls(world: &World) -> Cost {
    world.settle().await;
    let (mut empty, mut single) = (Vec::new(), Vec::new());
    age::prepare(&world.client).await;
    for number in 0..POLLS {
        empty.push(world.change("").await);
        sleep(Duration::from_millis(50)).await;
        single.push(world.change(&age::insert(number)).await);
        sleep(Duration::from_millis(50)).await;
    }
    run(&world.client, "drop table template, upcoming").await;
    let poll = typical(&empty);
    Line::of("a poll: a read that finds nothing", &poll)
        .note("the floor of what changes no odds")
        .print();
    Line::of("one event's new snapshot", &typical(&single))
        .beside_seconds(poll.seconds, "a poll")
        .print();
    poll
}

pub(crate) async fn partitions(world: &World, poll: &Cost) {
    let install = Script::Install.text();
    // In the days of the partition no other has rows. The snapshots are of events that the cache holds.
    let attach = |name: &str, year: u32, rows: &str| {
        format!(
            "create table {name} (like odds_snapshots including defaults);
             {rows};
             alter table odds_snapshots attach partition {name} for values from ('{year}-01-01') to ('{year}-01-02');
             {install}"
        )
    };
    let rows = format!(
        "insert into scale_rows (id, event_id, bookmaker_id, captured_at)
         select {OLD} + row_number() over (order by id), id, 1, '2021-01-01 12:00'
         from events order by id desc limit least(1000, {SPARE})"
    );
    let changes = [
        ("attached, empty", attach("scale_empty", 2020, "")),
        (
            "attached, with 1,000 old rows",
            attach("scale_rows", 2021, &rows),
        ),
        (
            "detached, with 1,000 old rows",
            "alter table odds_snapshots detach partition scale_rows".to_owned(),
        ),
        ("dropped, empty", "drop table scale_empty".to_owned()),
    ];
    for (what, sql) in changes {
        world.settle().await;
        let cost = world.change(&sql).await;
        Line::of(format!("a partition of odds_snapshots {what}"), &cost)
            .beside_seconds(poll.seconds, "a poll")
            .note(epoch(&cost))
            .print();
    }
    run(&world.client, "drop table scale_rows").await;
}

fn epoch(cost: &Cost) -> &'static str {
    match cost.keeps_epoch {
        true => "same epoch",
        false => "a new epoch",
    }
}

/// Terminates the follower's connection. Measures until a read that began afterwards has proven the view current.
pub(crate) async fn lost_connection(world: &World, rounds: u32) {
    let cache = world.cache();
    let (mut costs, mut floor) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        world.settle().await;
        let before = world.before();
        let sql = "select count(pg_terminate_backend(pid)) from pg_stat_activity
            where application_name = 'oddscache follow'";
        let row = world.client.query_one(sql, &[]).await;
        assert_eq!(row.expect("terminated").get::<_, i64>(0), 1, "one backend");
        let terminated = Instant::now();
        until("fresh again", || {
            cache.counters().reconnects > before.counters.reconnects
                && cache.view().age() < terminated.elapsed()
        })
        .await;
        costs.push(world.since(&before, terminated.elapsed().as_secs_f64()));
        let begun = Instant::now();
        run(&connect(&world.dsn).await, "select").await;
        floor.push(begun.elapsed().as_secs_f64());
    }
    let cost = typical(&costs);
    Line::of(
        "the follower's connection terminated, until fresh again",
        &cost,
    )
    .beside_seconds(median(&mut floor), "a bare client connects and asks once")
    .note(epoch(&cost))
    .print();
}

/// A migration that changes nothing in the odds.
pub(crate) async fn catalog(world: &World, whole: &Cost) {
    let mut costs = Vec::new();
    for sql in ["add column scale_note text", "drop column scale_note"] {
        world.settle().await;
        costs.push(world.change(&format!("alter table events {sql}")).await);
    }
    Line::of(
        "a column of events added, dropped, which nobody reads",
        &typical(&costs),
    )
    .beside_seconds(whole.seconds, "`resync()`")
    .print();
    // The triggers were off for a while, so any row may have changed. These did.
    let mut costs = Vec::new();
    for line in 0..3 {
        world.settle().await;
        let sql = format!(
            "alter table market_odds disable trigger oddscache_update;
             update market_odds set line = {line} where snapshot_id in
                 (select max(id) from odds_snapshots where bookmaker_id = 1 group by event_id order by event_id desc limit 100);
             alter table market_odds enable always trigger oddscache_update"
        );
        costs.push(world.change(&sql).await);
    }
    Line::of(
        "whole read where little changed: 100 snapshots' markets, while a trigger was off",
        &typical(&costs),
    )
    .beside_seconds(whole.seconds, "`resync()`")
    .print();
}

/// How long a statement takes the writer, in transactions that are rolled back: without and with triggers.
async fn writer(world: &World, tables: &[&str], sql: &str, rounds: u32) -> (f64, f64) {
    let mut times = [Vec::new(), Vec::new()];
    for _ in 0..rounds {
        for (has_triggers, times) in [false, true].into_iter().zip(&mut times) {
            run(&world.client, "begin").await;
            for table in tables.iter().filter(|_| !has_triggers) {
                let disable = format!("alter table {table} disable trigger user");
                run(&world.client, &disable).await;
            }
            let begun = Instant::now();
            run(&world.client, sql).await;
            times.push(begun.elapsed().as_secs_f64());
            run(&world.client, "rollback").await;
        }
    }
    let [mut without, mut with] = times;
    (median(&mut without), median(&mut with))
}

async fn statement(
    world: &World,
    whole: &Cost,
    what: &str,
    (tables, sql): (&[&str], &str),
    rounds: u32,
) {
    let (without, with) = writer(world, tables, sql, rounds).await;
    world.settle().await;
    let cost = world.change(sql).await;
    Line::of(what, &cost)
        .beside_seconds(whole.seconds, "`resync()`")
        .note(format!(
            "the writer's statement takes {}, x{:.2} of {} without triggers",
            time(with),
            with / without,
            time(without)
        ))
        .print();
    run(&world.client, &format!("vacuum {}", tables.join(", "))).await;
}

pub(crate) async fn statements(world: &World, whole: &Cost, rounds: u32) {
    let confirm = "update odds_snapshots set last_confirmed_at = now() at time zone 'UTC' where id = any(array(
            select max(s.id) from odds_snapshots s join events e on e.id = s.event_id
            where e.kickoff > now() at time zone 'UTC' group by s.event_id, s.bookmaker_id))";
    let confirm_competitors =
        "update competitor_odds_snapshots set last_confirmed_at = now() at time zone 'UTC' where id = any(array(
            select max(s.id) from competitor_odds_snapshots s join competitor_events c on c.id = s.competitor_event_id
            join events e on e.id = c.betpawa_event_id
            where e.kickoff > now() at time zone 'UTC' and c.deleted_at is null group by c.id))";
    let retention = format!("delete from market_odds where snapshot_id <= {OLD}");
    let (own, competitors): (&[&str], &[&str]) =
        (&["odds_snapshots"], &["competitor_odds_snapshots"]);
    let markets: &[&str] = &["market_odds"];
    let of = "UPDATE of all latest snapshots, one statement";
    let what = format!("{of}: odds_snapshots");
    statement(world, whole, &what, (own, confirm), rounds).await;
    let what = format!("{of}: competitor_odds_snapshots");
    statement(
        world,
        whole,
        &what,
        (competitors, confirm_competitors),
        rounds,
    )
    .await;
    let what = "UPDATE of market_odds, every row, also of 25,000 old snapshots";
    let everything = "update market_odds set line = coalesce(line, 0) + 1";
    statement(world, whole, what, (markets, everything), 1).await;
    let what = "DELETE of old markets, of 25,000 snapshots";
    statement(world, whole, what, (markets, &retention), rounds).await;
}

/// Leaves the competitors without odds.
pub(crate) async fn truncate(world: &World, whole: &Cost) {
    world.settle().await;
    let cost = world
        .change("truncate competitor_odds_snapshots, competitor_market_odds")
        .await;
    Line::of(
        "TRUNCATE of competitor_odds_snapshots and its markets",
        &cost,
    )
    .beside_seconds(whole.seconds, "`resync()`")
    .print();
}
