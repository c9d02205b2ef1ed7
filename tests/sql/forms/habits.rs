//! The trigger leaves nothing behind that the application can see, in its session or in its database.

use super::*;

/// Tables in range partitions with the feed, installed by their owner, who is no superuser.
async fn owned() -> Side {
    Side::open(&Kind::range(), true).await
}

impl Side {
    /// Runs SQL. Returns its answer, or the SQLSTATE if it fails.
    async fn answer(&self, sql: &str) -> String {
        match self.ask(sql).await {
            Ok(answer) => answer,
            Err(error) => match error.code() {
                Some(code) => code.code().to_owned(),
                None => format!("{error:?}"),
            },
        }
    }

    /// Fails the test unless the SQL has this answer: `SQL => answer`, one a line.
    async fn answers(&self, queries: &str) {
        for [sql, answer] in cases(queries) {
            assert_eq!(self.answer(sql).await.trim_end(), answer, "{sql}");
        }
    }
}

/// Client libraries ask `lastval()` for the id of the row that they have inserted.
#[tokio::test]
async fn lastval_stays_the_applications() {
    let side = owned().await;
    for role in [WRITER, OWNER] {
        side.run(&format!("set session authorization {role}")).await;
        for [sql, sequence] in cases(
            "insert into market_odds (snapshot_id) values (1) => market_ids
             insert into odds_snapshots (event_id) select id from events => odds_ids",
        ) {
            side.run("insert into events (id) values (1) on conflict do nothing")
                .await;
            side.run(sql).await;
            let own = side.answer(&format!("select currval('{sequence}')")).await;
            assert_eq!(side.answer("select lastval()").await, own, "{role}");
        }
        side.run("reset session authorization").await;
    }
    // There is no `lastval()` if the application has not used a sequence.
    let side = owned().await;
    side.run("insert into events (id) values (1)").await;
    side.answers("select lastval() => 55000").await;
}

/// The functions whose loss after so many statements of a transaction fails its next statement.
async fn harmful(before: usize) -> Vec<String> {
    let side = owned().await;
    let admin = open(&side.db).await;
    let update = |n: usize| "update events set name = 'x' where id = 1;".repeat(n);
    side.run("insert into events (id) values (1)").await;
    let mut harmful = Vec::new();
    for function in [
        "set_config(text, text, boolean)",
        "pg_current_xact_id()",
        "pg_current_wal_insert_lsn()",
        "current_setting(text, boolean)",
        "split_part(text, text, int)",
        "pg_current_xact_id_if_assigned()",
        "to_regclass(text)",
        "has_table_privilege(oid, text)",
        "cardinality(anyarray)",
        "hashtextextended(text, bigint)",
        "pg_try_advisory_lock(bigint)",
        "pg_advisory_unlock(bigint)",
        "pg_notification_queue_usage()",
        "pg_notify(text, text)",
        "clock_timestamp()",
        "lower(text)",
        "concat_ws(text, \"any\")",
    ] {
        let begin = format!("begin; set local session authorization {WRITER};");
        side.run(&(begin + &update(before))).await;
        let revoke = format!("revoke execute on function {function} from public");
        admin.run(&revoke).await;
        let answer = side.answer(&update(6)).await;
        if answer.len() == 5 {
            harmful.push(format!("{function}: {answer}"));
        }
        side.run("rollback").await;
        let grant = format!("grant execute on function {function} to public");
        admin.run(&grant).await;
    }
    harmful
}

/// Some administrators harden a database by revoking functions from PUBLIC. A function that the trigger then may not
/// call must not fail the writer.
#[tokio::test]
async fn functions_that_the_owner_may_not_call_harm_nobody() {
    for before in [0, 3] {
        assert_eq!(harmful(before).await, [""; 0], "after {before} statements");
    }
}

/// A limit that `sql/README.md` names. The trigger writes a transaction's first four log rows in blocks, and later ones
/// without. For these it only checks its right on the log. So a function that is revoked meanwhile fails the statement.
#[tokio::test]
async fn a_function_revoked_after_a_transactions_fifth_row_fails_it() {
    let known = [
        "set_config",
        "pg_current_xact_id()",
        "cardinality",
        "clock_timestamp",
        "pg_current_wal_insert_lsn",
    ];
    for harm in harmful(6).await {
        assert!(harm.ends_with("42501"), "{harm}");
        assert!(known.iter().any(|name| harm.starts_with(name)), "{harm}");
    }
}

/// A row's id is a position in the write-ahead log. An unlogged table does not move that position.
#[tokio::test]
async fn an_unlogged_log_harms_nobody() {
    for kind in [Kind::unlogged(), Kind::plain()] {
        let side = Side::open(&kind, true).await;
        side.run("alter table oddscache.change_log set unlogged")
            .await;
        side.run("insert into events (id) select generate_series(1, 9)")
            .await;
        for statement in [
            "update events set name = 'x'",
            "with a as (update events set name = 'y'), b as (insert into market_odds (snapshot_id) values (1)) delete from competitor_market_odds",
        ] {
            let eight = format!("{statement};").repeat(8);
            let answer = side.answer(&format!("begin; {eight} commit")).await;
            assert!(answer.len() > 5, "{}: {statement}: {answer}", kind.name);
            side.run("rollback").await;
        }
    }
}

/// With `exit_on_error`, any error ends the session, even one that the trigger catches.
#[tokio::test]
async fn a_renamed_column_harms_no_session_that_ends_at_an_error() {
    let side = owned().await;
    side.run("alter table market_odds rename snapshot_id to snap; set exit_on_error = on")
        .await;
    side.answers("insert into market_odds (snap) values (1) => 1 rows;")
        .await;
}

#[tokio::test]
async fn nothing_is_left_in_the_session() {
    let side = owned().await;
    side.run(&format!(
        "set session authorization {WRITER}; set lock_timeout = '7s'; set search_path = public"
    ))
    .await;
    let settings = "select md5(string_agg(name || '=' || coalesce(setting, ''), ',' order by name)) from pg_settings where name not like 'plpgsql.%'";
    let locks =
        "select count(*) from pg_locks where pid = pg_backend_pid() and locktype = 'advisory'";
    let state = async || (side.answer(settings).await, side.answer(locks).await);
    let before = state().await;
    side.run("begin").await;
    for _ in 0..6 {
        side.run("insert into market_odds (snapshot_id) values (1)")
            .await;
        assert_eq!(state().await, before);
    }
    side.run("commit").await;
    assert_eq!(state().await, before);
}

/// An xid is not free: a transaction that has one writes at COMMIT.
#[tokio::test]
async fn a_statement_that_changes_nothing_takes_no_xid() {
    let side = owned().await;
    side.run(&format!("set session authorization {WRITER}; begin"))
        .await;
    for nothing in [
        "update events set name = 'x' where id < 0",
        "delete from odds_snapshots where false",
        "insert into market_odds select * from market_odds",
    ] {
        side.run(nothing).await;
        let xid = side.answer("select pg_current_xact_id_if_assigned()").await;
        assert_eq!(xid, "(null) 1 rows; ", "{nothing}");
    }
    side.run("commit").await;
}

/// A temporary table can be a child. No other session may alter it.
#[tokio::test]
async fn a_temporary_child_hinders_neither_its_session_nor_the_install() {
    for installed in [true, false] {
        let side = Side::open(&Kind::plain(), installed).await;
        side.run(&format!(
            "set role {OWNER}; create temp table mine () inherits (market_odds); reset role"
        ))
        .await;
        side.install();
        side.run("insert into mine (id, snapshot_id) values (1, 1); update market_odds set outcomes = '[1]'; delete from mine").await;
        // A read-only transaction may write to temporary tables.
        side.run("begin read only; insert into mine (id, snapshot_id) values (1, 2); commit; truncate mine").await;
        side.run("drop table mine").await;
    }
}

/// PostgreSQL has no transition tables for a table above a foreign table. The error comes only when a statement runs.
#[tokio::test]
async fn foreign_tables_below_a_table_are_no_trouble_once_install_ran_again() {
    if !kinds::foreign_tables_work() {
        return;
    }
    for kind in [Kind::list(), Kind::plain()] {
        let far = Database::empty();
        far.psql(
            "create table market_odds (id bigint, snapshot_id bigint, outcomes jsonb default '[]'); insert into market_odds values (5, 77)",
        );
        let side = Side::open(&kind, true).await;
        let below = if kind.name == "list" {
            // Foreign tables have no unique indexes.
            "alter table market_odds drop constraint market_odds_pkey;
             create foreign table far_odds partition of market_odds for values in (77) server far options (table_name 'market_odds')"
        } else {
            "create foreign table far_odds () inherits (market_odds) server far options (table_name 'market_odds')"
        };
        side.run(&format!(
            "{} {below}; alter foreign table far_odds owner to {OWNER}",
            kinds::far_server(&far.name)
        ))
        .await;
        // Before install.sql runs again, the statement fails, although it does not without the feed.
        side.answers("update market_odds set outcomes = '[1]' => 0A000")
            .await;
        side.install();
        side.run(&format!("set session authorization {OWNER}"))
            .await;
        side.run("insert into market_odds (snapshot_id) values (77), (1); update market_odds set outcomes = '[1]'; delete from market_odds").await;
        // The keys are logged again once the foreign table is gone.
        side.run("drop foreign table far_odds; reset session authorization")
            .await;
        side.install();
        side.db
            .logs("insert into market_odds (snapshot_id) values (1) => market_odds INSERT 1");
    }
}

/// A publication of all tables publishes the feed's tables, too. A table without a replica identity then refuses
/// DELETE.
#[tokio::test]
async fn a_publication_of_all_tables_hinders_neither_the_install_nor_prune() {
    let side = Side::open(&Kind::range(), true).await;
    side.run("create publication forms for all tables; delete from oddscache.change_log")
        .await;
    side.run("insert into oddscache.log_horizon values ('1', now() - interval '1 day'), ('2', now() - interval '1 day')").await;
    side.answers("select oddscache.prune('0 s') => (0) 1 rows;")
        .await;
    side.install();
    let side = Side::open(&Kind::range(), false).await;
    side.run("create publication forms for all tables").await;
    side.install();
}

/// install.sql refuses a domain as a key, with an error that says so.
#[tokio::test]
async fn a_key_in_a_domain_is_refused() {
    let db = app();
    db.psql("create domain event_key as int; alter table competitor_events alter betpawa_event_id type event_key");
    fails(&db, Script::Install, &[]).says("public.competitor_events has column betpawa_event_id of type public.event_key, not an integer");
}
