//! DDL that changes what rows say, but fires no trigger and gives no table a new file. The fingerprint of the catalog
//! notices it.

use std::time::Duration;

use oddscache::Counters;
use oddscache_testkit::{Database, connect, eventually, followed::Followed, psql, server_has};

/// A follower of a database that `setup` has changed. Its audit is too slow to find a change in time.
async fn followed(setup: &str) -> (Database, Followed) {
    let database = Database::seeded();
    database.psql(setup);
    let never = Duration::from_secs(600_000);
    let followed = Followed::with(&database.dsn(), |config| config.audit_cycle(never)).await;
    followed.check("the seed").await;
    (database, followed)
}

/// Runs statements that change what the cache holds. The cache equals the oracle after each.
async fn changes(setup: &str, statements: &[&str]) {
    let (_database, followed) = followed(setup).await;
    for sql in statements {
        followed.changes(sql).await;
    }
    assert_eq!(followed.epoch(), 1);
}

const MOOD: &str = "create type mood as enum ('asian', 'european')";

/// A renamed label of an enum was not seen until an audit.
#[tokio::test]
async fn a_label_of_an_enum_is_renamed() {
    // A session learns of the new label when it locks a table that its transaction has not locked: here pg_language.
    let setup = "create type origin as enum ('sportybet', 'bet9ja');
        alter table competitor_events alter source type origin using source::text::origin";
    changes(
        setup,
        &[
            "alter type origin rename value 'bet9ja' to 'bet10ja'",
            "alter type origin rename to origin_of_odds; alter type origin_of_odds rename value 'bet10ja' to 'bet11ja'",
            "create schema types; alter type origin_of_odds set schema types; alter type types.origin_of_odds rename value 'sportybet' to 's'",
        ],
    )
    .await;
}

/// The same for an enum that is part of a column's type.
#[tokio::test]
async fn a_label_of_an_enum_in_a_domain_is_renamed() {
    let setup = format!(
        "{MOOD}; create domain a as mood; create domain b as a;
         alter table competitor_market_odds alter handicap_type type b using handicap_type::text::b"
    );
    changes(
        &setup,
        &["alter type mood rename value 'asian' to 'asiatic'"],
    )
    .await;
}

/// The oracle prints arrays and composite values in another form, so this test looks at one value.
#[tokio::test]
async fn a_type_of_types_changes() {
    let (_database, followed) = {
        let database = Database::seeded();
        database.psql(&format!(
            "{MOOD}; create domain d as mood; create type pair as (moods d[], n int); create domain pairs as pair[];
             alter table market_odds alter handicap_type type pairs using array[row(array['asian'], 7)::pair]"
        ));
        let never = Duration::from_secs(600_000);
        let with = Followed::with(&database.dsn(), |config| config.audit_cycle(never)).await;
        (database, with)
    };
    let shown = || {
        let held = followed.cache.get_betpawa_snapshot(1).expect("held");
        let market = held.get(1).expect("a snapshot").markets().next();
        market.expect("a market").handicap_type().map(str::to_owned)
    };
    assert_eq!(shown().as_deref(), Some(r#"{"({asian},7)"}"#));
    for (sql, expected) in [
        (
            "alter type mood rename value 'asian' to 'asiatic'",
            r#"{"({asiatic},7)"}"#,
        ),
        (
            "alter type pair add attribute m int",
            r#"{"({asiatic},7,)"}"#,
        ),
    ] {
        followed.run(sql).await;
        followed.caught_up(sql).await;
        assert_eq!(shown().as_deref(), Some(expected), "{sql}");
    }
}

/// A query prints an enum's latest labels, not those of its snapshot. Here a label is renamed within a read, which must
/// not publish a mixture of two states.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_label_is_renamed_during_a_read() {
    // A session learns of the new label when it locks a table that its transaction has not locked: here pg_language.
    let setup = "create type origin as enum ('sportybet', 'bet9ja');
        alter table competitor_events alter source type origin using source::text::origin;
        create function slow(id int) returns boolean language plpgsql as
            'begin perform pg_advisory_xact_lock_shared(77); perform from pg_language limit 1; return true; end';
        alter table market_odds enable row level security; create policy slow on market_odds using (slow(id::int))";
    let database = Database::seeded();
    database.psql(setup);
    let role = database.reader();
    let dsn = oddscache_testkit::cluster().dsn_as(&role, &database.name);
    let never = Duration::from_secs(600_000);
    let followed = Followed::beside(&dsn, &database.dsn(), |config| {
        config
            .audit_cycle(never)
            .allow_row_security(true)
            .read_timeout(Duration::from_secs(60))
    })
    .await;
    followed.check("the seed").await;
    // The read has the sources and waits in the middle of the markets.
    let gate = connect(&database.dsn()).await;
    gate.batch_execute("select pg_advisory_lock(77)")
        .await
        .expect("locked");
    followed
        .run(
            "begin; update market_odds set line = 7 where snapshot_id = 112;
             update competitor_odds_snapshots set last_confirmed_at = now(); commit",
        )
        .await;
    let waits = "select exists (select from pg_locks where locktype = 'advisory' and objid = 77 and not granted)";
    eventually("the read waits", async || {
        followed
            .app
            .query_one(waits, &[])
            .await
            .expect("locks")
            .get(0)
    })
    .await;
    followed
        .run("alter type origin rename value 'bet9ja' to 'bet10ja'")
        .await;
    let before = followed.cache.counters();
    gate.batch_execute("select pg_advisory_unlock(77)")
        .await
        .expect("unlocked");
    let repeated = |now: &Counters| now.failures > before.failures;
    followed.counted("the read is repeated", repeated).await;
    followed.check("renamed").await;
}

/// Two columns of one type exchange their names.
#[tokio::test]
async fn two_columns_exchange_their_names() {
    changes(
        "",
        &["begin; alter table market_odds rename line to other; alter table market_odds rename handicap_home to line;
           alter table market_odds rename other to handicap_home; commit"],
    )
    .await;
}

/// A collation decides whether two sources are one.
#[tokio::test]
async fn a_column_gets_another_collation() {
    let database = Database::seeded();
    if database.psql("select count(*) > 0 from pg_collation where collprovider = 'i'") != "t" {
        println!("LEFT OUT: the server was built without ICU");
        return;
    }
    changes(
        "create collation blind (provider = icu, locale = 'und-u-ks-level2', deterministic = false);
         update competitor_events set source = 'SportyBet' where id = 11",
        &["alter table competitor_events alter source type varchar(20) collate blind"],
    )
    .await;
}

/// The expression of a virtual generated column is replaced. The table keeps its file.
#[tokio::test]
async fn a_virtual_column_gets_another_expression() {
    if !server_has("a virtual generated column", 18) {
        return;
    }
    changes(
        "alter table market_odds drop column line, add column line float8 generated always as (snapshot_id / 2.0) virtual",
        &["alter table market_odds alter line set expression as (snapshot_id / 4.0)"],
    )
    .await;
}

/// Tables are exchanged, moved or given other rows in one transaction.
#[tokio::test]
async fn tables_change_places() {
    let (database, followed) = followed(
        "create schema other; create table other.market_odds (like market_odds including all);
         insert into other.market_odds select * from market_odds where id % 2 = 0;
         create table child (like market_odds including all);
         insert into child select id + 1000000, snapshot_id, 'child', 'child', 1, null, null, null, '[]', null, null from market_odds",
    )
    .await;
    let feed = || psql(&database.name, &["-qf", "sql/install.sql"]);
    followed
        .changes("alter table child inherit market_odds")
        .await;
    followed
        .changes("alter table child no inherit market_odds")
        .await;
    followed
        .run(
            "begin; create schema away; alter table market_odds set schema away; alter table other.market_odds set schema public; commit",
        )
        .await;
    feed();
    let swapped = followed.check("exchanged").await;
    followed
        .run("begin; alter table market_odds set schema other; alter table away.market_odds set schema public; commit")
        .await;
    assert_ne!(followed.check("and back").await, swapped);
}
