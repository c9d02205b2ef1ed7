//! The scripts in a caller's transaction or session: they take part, restore settings, and do everything or nothing.

use super::*;

/// The scripts that change something. Each is one statement.
const CHANGING: [Script; 3] = [Script::Install, Script::Grants, Script::Uninstall];

/// The script's text for a role of this database's own.
fn filled(script: Script, db: &Database) -> String {
    let role = format!("cache_{}", db.name);
    let settings = settings_of(script, &[("role", &role)]);
    script.fill(&settings).unwrap()
}

/// A database in which the script has something to do.
fn before(script: Script) -> Database {
    let db = app();
    if script != Script::Install {
        db.psql(&filled(Script::Install, &db));
    }
    db
}

async fn fails_in(session: &Session, text: &str) -> (String, Said) {
    let error = session.client.simple_query(text).await.unwrap_err();
    let error = error.as_db_error().unwrap();
    let said = format!("{} {}", error.message(), error.hint().unwrap_or_default());
    (error.code().code().to_owned(), Said(said))
}

#[tokio::test]
async fn a_transaction_that_is_rolled_back_leaves_nothing() {
    for script in CHANGING {
        let db = before(script);
        let was = dump(&db);
        let session = open(&db).await;
        session.run("begin; create table mine ()").await;
        session.run(&filled(script, &db)).await;
        assert_ne!(session.code("select 1 / 0").await, "", "{script}");
        // The server runs nothing in a failed transaction.
        assert_eq!(session.code(&filled(script, &db)).await, "25P02");
        session.run("rollback").await;
        assert_eq!(dump(&db), was, "{script}");
        // In a transaction that goes on, the script takes part.
        session.run("begin; create table mine ()").await;
        session.run(&filled(script, &db)).await;
        session.run("create table mine_too (); commit").await;
        assert_ne!(dump(&db), was, "{script}");
    }
}

/// With a snapshot from before the end of a concurrent run, the later run failed half-way or missed existing objects.
#[tokio::test]
async fn a_transaction_that_cannot_see_or_write_is_refused() {
    for script in CHANGING {
        let db = before(script);
        let was = dump(&db);
        let session = open(&db).await;
        for (begin, named) in [
            ("begin isolation level repeatable read", "REPEATABLE READ"),
            ("begin isolation level serializable", "SERIALIZABLE"),
            ("begin read only", "READ ONLY"),
        ] {
            session.run(begin).await;
            let (code, said) = fails_in(&session, &filled(script, &db)).await;
            assert_eq!(code, "25000", "{said}");
            said.says(named)
                .says("BEGIN ISOLATION LEVEL READ COMMITTED");
            session.run("rollback").await;
        }
        assert_eq!(dump(&db), was);
    }
}

/// The scripts that only report work in any transaction.
#[tokio::test]
async fn reports_need_no_right_to_write() {
    let db = installed();
    let session = open(&db).await;
    for begin in [
        "begin isolation level serializable read only",
        "begin isolation level repeatable read",
    ] {
        for script in [Script::Check, Script::Indexes] {
            session.run(begin).await;
            let rows = session.rows(&filled(script, &db)).await.unwrap();
            assert!(!rows.is_empty());
            let xid = "select pg_current_xact_id_if_assigned() is null";
            assert_eq!(session.value(xid).await, "t", "{script}");
            session.run("commit").await;
        }
    }
}

#[tokio::test]
async fn settings_are_restored() {
    let db = app();
    let session = open(&db).await;
    // The first DO block of a session loads plpgsql, which adds settings.
    session.run("do $$ begin end $$").await;
    let all = "select string_agg(name || ' ' || setting, ', ' order by name) from pg_settings
        where name not in ('transaction_isolation', 'transaction_read_only')";
    for script in IN_ORDER {
        for change in [
            "",
            "set local search_path = pg_temp; set local lock_timeout = '7s'; \
            set local client_min_messages = error; set local quote_all_identifiers = on; set local row_security = off",
        ] {
            session.run(&format!("begin; {change}")).await;
            let was = session.value(all).await;
            session.rows(&filled(script, &db)).await.unwrap();
            assert_eq!(session.value(all).await, was, "{script}");
            session.run("commit").await;
        }
    }
}

/// Part of a text, as after a cut connection or an incomplete copy.
#[tokio::test]
async fn half_a_text_does_nothing() {
    for script in CHANGING {
        let db = before(script);
        let was = dump(&db);
        let session = open(&db).await;
        let text = filled(script, &db);
        let body = text.find("DO $").unwrap();
        for part in 1..24 {
            let mut end = body + 3 + part * (text.trim_end().len() - 3 - body) / 24;
            while !text.is_char_boundary(end) {
                end += 1;
            }
            assert_eq!(session.code(&text[..end]).await, "42601", "{script} {end}");
        }
        assert_eq!(dump(&db), was, "{script}");
    }
}

#[tokio::test]
async fn a_session_killed_in_the_middle_leaves_nothing() {
    for script in [Script::Install, Script::Uninstall] {
        let db = before(script);
        let was = dump(&db);
        let (writer, session) = open_two(&db).await;
        let pid = session.value("select pg_backend_pid()").await;
        // The script has locked some tables when it waits for this one.
        writer.run("begin; insert into odds_snapshots_d2 (event_id, bookmaker_id, captured_at) select 1, 1, '2025-01-02' where false").await;
        let text = script.fill(&[("lock_timeout", "0")]).unwrap();
        let running = tokio::spawn(async move { session.code(&text).await });
        until(&db, &format!("select exists (select from pg_locks where pid = {pid} and relation = 'odds_snapshots_d2'::regclass and not granted)")).await;
        db.psql(&format!("select pg_terminate_backend({pid})"));
        assert_eq!(running.await.unwrap(), "57P01");
        writer.run("rollback").await;
        assert_eq!(dump(&db), was, "{script}");
    }
}

/// Each error says what is wrong and what to do, and nothing is changed.
#[tokio::test]
async fn a_wrong_schema_or_role_is_named() {
    let db = installed();
    let stranger = format!("stranger_{}", db.name);
    db.psql(&format!("create role {stranger} login"));
    let was = dump(&db);
    for [role, script, setting, value, said] in cases(
        "postgres => install => app_schema => nowhere => schema nowhere does not exist Name the application's
         postgres => grants => app_schema => nowhere => missing: nowhere.events,
         postgres => grants => cache_schema => nowhere
             => missing: nowhere.change_log, nowhere.log_state Run install.sql first
         postgres => indexes => app_schema => nowhere
             => missing in schema nowhere: odds_snapshots, competitor_odds_snapshots Name
         postgres => grants => prune => perhaps => invalid input syntax for type boolean: \"perhaps\"
         postgres => uninstall => lock_timeout => soon => invalid value for parameter \"lock_timeout\": \"soon\"
         stranger => install => app_schema => public => events belongs to postgres
         stranger => grants => app_schema => public => schema oddscache belongs to postgres,
         stranger => grants => role => stranger => events belongs to postgres
         stranger => uninstall => app_schema => public => schema oddscache belongs to postgres Run this script as the owner",
    ) {
        let named = |name| if name == "stranger" { &*stranger } else { name };
        let script: Script = script.parse().unwrap();
        let text = script.fill(&[(setting, named(value))]).unwrap();
        let session = open_as(&db, named(role)).await;
        let (_, found) = fails_in(&session, &text).await;
        found.says(said);
        assert_eq!(dump(&db), was, "{script} {setting} {value}");
    }
    // uninstall.sql succeeds where nothing is installed, and says so.
    let nowhere = [("cache_schema", "nowhere"), ("app_schema", "nowhere")];
    run(&db, Script::Uninstall, &nowhere).says("nothing to remove: the feed in schema nowhere");
    assert_eq!(dump(&db), was);
}

/// The functions also contain these settings, so an edit of the head alone is not enough.
#[tokio::test]
async fn half_an_edit_is_refused() {
    let db = app();
    let was = dump(&db);
    let session = open(&db).await;
    for name in ["cache_schema", "channel"] {
        let line = format!("{name} constant pg_catalog.text := 'oddscache';");
        let text = Script::Install.text();
        assert!(text.contains(&line));
        let edited = text.replace(&line, &line.replace("'oddscache'", "'mine'"));
        let (_, said) = fails_in(&session, &edited).await;
        said.says("Let the program fill in both names");
    }
    assert_eq!(dump(&db), was);
}

/// A script must not call another role's function with the caller's rights because the search path finds it first.
#[tokio::test]
async fn a_search_path_leads_no_script_astray() {
    let db = app();
    db.psql(
        "create schema trap; create table trap.caught (how pg_catalog.text);
         create function trap.caught() returns boolean language plpgsql as
             $$ begin insert into trap.caught values ('x'); return true; end $$;
         create domain trap.text as pg_catalog.text check (trap.caught());
         create domain trap.jsonb as pg_catalog.jsonb check (trap.caught());
         create domain trap.json as pg_catalog.json check (trap.caught());
         create domain trap.regclass as pg_catalog.regclass check (trap.caught());
         create function trap.set_config(pg_catalog.text, pg_catalog.text, boolean) returns pg_catalog.text language plpgsql as
             $$ begin perform trap.caught(); return ''; end $$;
         create function trap.current_setting(pg_catalog.text) returns pg_catalog.text language plpgsql as
             $$ begin perform trap.caught(); return '0'; end $$;
         create function trap.eq(pg_catalog.text, pg_catalog.text) returns boolean language plpgsql as
             $$ begin return trap.caught(); end $$;
         create operator trap.= (leftarg = pg_catalog.text, rightarg = pg_catalog.text, function = trap.eq);
         create function trap.ge(bigint, bigint) returns boolean language plpgsql as $$ begin return trap.caught(); end $$;
         create operator trap.<= (leftarg = bigint, rightarg = bigint, function = trap.ge)",
    );
    let session = open(&db).await;
    session
        .run("set search_path = trap, pg_temp, public, pg_catalog")
        .await;
    for script in [
        Script::Install,
        Script::Install,
        Script::Grants,
        Script::Indexes,
        Script::Check,
        Script::Uninstall,
    ] {
        session.rows(&filled(script, &db)).await.unwrap();
        assert_eq!(db.psql("select count(*) from trap.caught"), "0", "{script}");
    }
    // The trap works for a query that does not pin the search path.
    session.run("select 'x'::text").await;
    assert_eq!(db.psql("select count(*) > 0 from trap.caught"), "t");
}
