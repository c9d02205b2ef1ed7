//! The names of events, tournaments and bookmakers.

use std::time::Duration;

use oddscache::{Config, OddsCache};
use oddscache_testkit::{
    Database, cluster, connect, dump, eventually,
    followed::{Followed, rarely, run},
};

/// Any text may be a name, and a column of a name may be null.
const ANY_TEXT: &str =
    "alter table events alter name type text, alter name drop not null, alter home_team type text,
    alter home_team drop not null, alter away_team drop not null, alter sportradar_id drop not null;
    alter table tournaments alter name drop not null, alter country type text";

/// An audit that reads again all that no trigger logs, within a test's patience.
fn soon(config: Config) -> Config {
    config.audit_cycle(Duration::from_millis(400))
}

/// Each step changes names and nothing else. No audit runs meanwhile.
#[tokio::test]
async fn names_follow_their_event() {
    let database = Database::seeded();
    database.psql(ANY_TEXT);
    let followed = Followed::with(&database.dsn(), rarely).await;
    for sql in [
        "update events set name = 'Arsenal - Chelsea', home_team = 'Arsenal', away_team = 'Chelsea' where id = 1",
        "update events set sportradar_id = 'sr:match:7' where id = 1",
        "update events set name = null, home_team = null, away_team = null, sportradar_id = null where id = 1",
        "update events set name = '', home_team = '', away_team = '' where id = 1",
        r#"update events set name = E'"</script><b>\\\u202e\t\n', home_team = 'الأهلي', away_team = '🏴' where id = 1"#,
        "update events set name = repeat('ö</script>', 8000), home_team = repeat('🏴', 64000) where id = 1",
        // A tournament that no event has named before, together with the event that names it.
        "insert into tournaments (id, sport_id, name, country) values (9, 1, 'Coupe', repeat('x', 70000));
         update events set tournament_id = 9 where id = 1",
        "update events set tournament_id = 2 where id in (1, 2)",
        "update events set tournament_id = null where id in (1, 2)",
    ] {
        followed.changes(sql).await;
    }
    let view = followed.cache.view();
    let event = view.event(1).expect("held");
    let characters = |text: Option<&str>| text.map(|text| text.chars().count());
    assert_eq!(characters(event.name()), Some(255));
    assert_eq!(characters(event.home_team()), Some(255));
    assert_eq!((followed.reloads(), followed.epoch()), (1, 1));
    assert_eq!(followed.cache.counters().audit_mismatches, 0);
}

/// A bookmaker comes with its first snapshot. One without a row is not asked for again and again.
#[tokio::test]
async fn a_new_bookmaker_has_its_name_at_once() {
    let database = Database::seeded();
    let followed = Followed::with(&database.dsn(), rarely).await;
    for sql in [
        "insert into bookmakers (id, name, slug) values (7, 'Seven', 'seven');
         insert into odds_snapshots (id, event_id, bookmaker_id) values (7001, 1, 7)",
        "insert into odds_snapshots (id, event_id, bookmaker_id) values (7002, 1, 8)",
        "insert into bookmakers (id, name, slug) values (9, 'Nine', 'nine');
         insert into odds_snapshots (id, event_id, bookmaker_id) values (7003, 1, 9), (7004, 2, 8)",
    ] {
        followed.changes(sql).await;
    }
    let names = followed.cache.view();
    let names = names.event(1).expect("held").bookmakers();
    assert!(names.contains_key(&7) && names.contains_key(&9) && !names.contains_key(&8));
    assert_eq!((followed.reloads(), followed.epoch()), (1, 1));
}

/// The statement for linked events reads the names of an event, too.
#[tokio::test]
async fn an_event_that_is_linked_has_its_names() {
    let followed = Followed::seeded().await;
    let sql =
        "insert into events (id, tournament_id, sportradar_id, name, home_team, away_team, kickoff)
         values (5, 2, 'sr5', 'e - f', 'e', 'f', now() at time zone 'UTC' + interval '1 day')";
    followed.run(sql).await;
    followed
        .changes("update competitor_events set betpawa_event_id = 5 where id = 21")
        .await;
}

/// No trigger logs these changes. They are read again, and change all events that show them.
#[tokio::test]
async fn tournaments_and_bookmakers_are_read_again() {
    let database = Database::seeded();
    let followed = Followed::with(&database.dsn(), soon).await;
    let window_start = || followed.cache.view().cut().window_start;
    for sql in [
        "update tournaments set name = 'Championship' where id = 1",
        "update tournaments set sport_id = 1, country = 'Ghana' where id = 2",
        "update sports set name = 'Soccer'",
        "update bookmakers set name = 'betPawa', slug = 'bp' where id = 1",
        "delete from bookmakers where id = 2",
        "alter table events drop constraint events_tournament_id_fkey; delete from tournaments where id = 2",
        "drop table sports cascade",
        "create table sports (id int, name text); insert into sports values (1, 'Football')",
        "alter table bookmakers drop slug",
        "drop table bookmakers; drop table tournaments",
    ] {
        let before = followed.oracle(window_start()).await;
        let mut changes = followed.cache.changes();
        followed.run(sql).await;
        let expected = followed.oracle(window_start()).await;
        assert_ne!(before, expected, "{sql}: changes nothing");
        eventually(sql, async || dump(&followed.cache.view()) == expected).await;
        let change = changes.next().await.expect("follows").expect("in time");
        let others = (change.betpawa.is_empty(), change.competitors.is_empty());
        assert!(
            !change.names.is_empty() && others == (true, true),
            "{sql}: {change:?}"
        );
    }
    assert_eq!(followed.cache.counters().audit_mismatches, 0);
}

/// The audit compares names, so it finds a change that no trigger saw.
#[tokio::test]
async fn the_audit_finds_a_name_that_changed_unseen() {
    let database = Database::seeded();
    let followed = Followed::with(&database.dsn(), soon).await;
    let unseen = "begin; update events set name = 'unseen' where id = 1; delete from oddscache.change_log; commit";
    followed.run(unseen).await;
    followed
        .counted("a mismatch", |now| now.audit_mismatches > 0)
        .await;
    eventually("the repair", async || {
        let view = followed.cache.view();
        view.event(1).and_then(|event| event.name()) == Some("unseen")
    })
    .await;
}

/// A lock on a table that has only names must not hold up the odds.
#[tokio::test]
async fn a_locked_table_of_names_delays_nothing() {
    let database = Database::seeded();
    let migration = connect(&database.dsn()).await;
    let lock = "begin; lock table bookmakers, tournaments in access exclusive mode";
    run(&migration, lock).await;
    let followed = Followed::with(&database.dsn(), soon).await;
    for line in 1..4 {
        followed.set_line(line).await;
        eventually("the line", async || {
            let view = followed.cache.view();
            let held = view.get_betpawa_snapshot(1).and_then(|held| held.get(1));
            let line = Some(f64::from(line));
            held.is_some_and(|held| held.markets().all(|market| market.line() == line))
        })
        .await;
    }
    let view = followed.cache.view();
    let event = view.event(1).expect("held");
    let tournament = event.tournament().expect("named");
    assert_eq!((tournament.id(), tournament.name()), (1, None));
    assert!(event.bookmakers().is_empty() && event.name().is_some());
    run(&migration, "commit").await;
    eventually("the names", async || {
        let view = followed.cache.view();
        view.event(1)
            .is_some_and(|event| !event.bookmakers().is_empty())
    })
    .await;
    followed.check("unlocked").await;
    assert_eq!(followed.cache.counters().failures, 0);
}

/// A role that was granted its rights before the cache read names.
#[tokio::test]
async fn a_role_without_the_right_to_read_names_follows_the_odds() {
    let database = Database::seeded();
    let role = database.reader();
    let tables = "select on tournaments, sports, bookmakers";
    database.psql(&format!("revoke {tables} from {role}"));
    let dsn = cluster().dsn_as(&role, &database.name);
    let followed = Followed::beside(&dsn, &database.dsn(), soon).await;
    followed.set_line(5).await;
    followed.caught_up("a change").await;
    let names = |cache: &OddsCache| {
        let view = cache.view();
        let event = view.event(1).expect("held");
        let tournament = event.tournament().expect("named");
        let is_named = tournament.name().is_some();
        (tournament.id(), is_named, event.bookmakers().len())
    };
    assert_eq!(names(&followed.cache), (1, false, 0));
    database.psql(&format!("grant {tables} to {role}"));
    eventually("the names", async || names(&followed.cache) == (1, true, 2)).await;
    followed.check("granted").await;
    let failures = followed.cache.counters().failures;
    assert_eq!((followed.reloads(), failures), (1, 0));
}

/// The texts of an event, and its share of the tournaments. The pointers to them take another 16 bytes.
#[tokio::test]
async fn names_take_few_bytes() {
    const EVENTS: usize = 1_000;
    let database = Database::seeded();
    // Names and tournaments of the lengths and in the numbers that the data set of the demo has.
    database.psql(&format!(
        "insert into tournaments (id, sport_id, name, country)
         select n, 1, 'First Division', 'Portugal' from generate_series(101, 160) n;
         insert into events (id, tournament_id, sportradar_id, name, home_team, away_team, kickoff)
         select n, 101 + n % 60, 'sr:match:' || 60000000 + n, 'Mombasa United - Lusaka Stars', 'Mombasa United', 'Lusaka Stars',
                now() at time zone 'UTC' + interval '1 day' from generate_series(1001, 1000 + {EVENTS}) n;
         insert into odds_snapshots (event_id, bookmaker_id) select n, 1 from generate_series(1001, 1000 + {EVENTS}) n"
    ));
    let followed = Followed::new(&database).await;
    followed.check("with names").await;
    let bytes = || followed.cache.stats().memory_bytes;
    let with = bytes();
    let drop = "alter table events drop name, drop home_team, drop away_team, drop sportradar_id, drop tournament_id";
    followed.changes(drop).await;
    // Names that nobody uses are freed by later publications.
    followed.set_line(2).await;
    followed.check("without names").await;
    let each = (with - bytes()) as f64 / EVENTS as f64;
    println!("names: {each:.1} bytes an event, and 16 for the pointers");
    assert!((20.0..84.0).contains(&each), "{each}");
}
