//! What install.sql refuses, and what it warns of.

use super::*;

/// Runs the script by psql with a part of its text replaced. So it can meet a server of another version.
fn with_text(db: &Database, from: &str, to: &str) -> Output {
    let script = Script::Install.text();
    assert!(script.contains(from), "{from}");
    psql_text("postgres", db, &script.replace(from, to))
}

#[test]
fn a_server_that_is_too_old_is_refused() {
    let db = app();
    let output = with_text(&db, "server < 140000", "server < 990000");
    let said = text(&output);
    assert!(!output.status.success(), "{said}");
    said.says("the feed needs PostgreSQL 14 or newer");
    assert_eq!(db.psql("select to_regnamespace('oddscache') is null"), "t");
}

#[test]
fn a_server_newer_than_any_tested_is_warned_of() {
    let db = app();
    let output = with_text(&db, "server >= 190000", "server >= 140000");
    let said = text(&output);
    assert!(output.status.success(), "{said}");
    assert_eq!(said.matches("WARNING").count(), 1, "{said}");
}

/// A trigger cannot see such a column, so each statement made caches read everything again.
#[test]
fn a_virtual_generated_key_is_refused() {
    let db = app();
    if db.psql("select current_setting('server_version_num')::int >= 180000") == "f" {
        return; // PostgreSQL 18 brought them.
    }
    db.psql(
        "alter table market_odds rename column snapshot_id to snapshot;
         alter table market_odds add column snapshot_id bigint generated always as (snapshot) virtual",
    );
    fails(&db, Script::Install, &[])
        .says("market_odds has the virtual generated column snapshot_id");
    db.psql(
        "alter table market_odds drop column snapshot_id;
         alter table market_odds add column snapshot_id bigint generated always as (snapshot) stored",
    );
    run(&db, Script::Install, &[]);
    db.logs("insert into market_odds (snapshot) values (7) => market_odds INSERT 7");
}

#[test]
fn a_table_that_inherits_from_two_of_them_is_refused() {
    let db = app();
    db.psql("create table both_kinds () inherits (events, competitor_events)");
    fails(&db, Script::Install, &[]).says("both_kinds inherits from competitor_events and events");
}

#[test]
fn a_limit_of_temporary_files_is_warned_of() {
    let db = app();
    let role = format!("limited_{}", db.name);
    db.psql(&format!(
        "create role {role}; alter role {role} in database {} set temp_file_limit = '8MB'",
        db.name
    ));
    run(&db, Script::Install, &[]).says(format!("temp_file_limit is 8MB for {role}"));
    db.psql(&format!(
        "alter role {role} in database {} reset temp_file_limit",
        db.name
    ));
    run(&db, Script::Install, &[]).lacks("temp_file_limit");
}

/// The new table belonged to the superuser. `prune()` runs as the owner of the other tables, so it failed for good.
#[test]
fn after_an_upgrade_by_a_superuser_prune_still_works() {
    let db = app();
    let owner = format!("keeper_{}", db.name);
    run(&db, Script::Install, &[]);
    db.psql(&format!(
        "create role {owner}; alter table events owner to {owner}; alter schema oddscache owner to {owner}; drop table oddscache.log_horizon;
         alter table oddscache.change_log owner to {owner}; alter table oddscache.log_state owner to {owner};
         alter function oddscache.prune(interval) owner to {owner}"
    ));
    run(&db, Script::Install, &[]);
    db.psql("select oddscache.prune('0')");
    check(&db).lacks("it cannot prune");
    db.psql(&format!(
        "alter table oddscache.log_horizon owner to postgres; revoke all on oddscache.log_horizon from {owner}"
    ));
    check(&db).says("it cannot prune");
}

/// A statement that names a table above one of the six fires none of its triggers.
#[test]
fn a_table_above_one_of_the_six_is_named() {
    let db = app();
    db.psql("create table entity (id int not null); alter table events inherit entity");
    run(&db, Script::Install, &[]).says("statements that name public.entity");
    check(&db).says("trigger|public.events|parent|FAIL");
}

/// The same for a child's second parent: an UPDATE of that parent changes rows that a reader of `market_odds` sees.
#[test]
fn a_second_parent_of_a_child_is_named() {
    let db = app();
    db.psql("create table other (note text); create table child () inherits (market_odds, other)");
    run(&db, Script::Install, &[]).says("statements that name public.other, of which public.child");
    db.logs(
        "insert into child (snapshot_id) values (5) => market_odds INSERT 5
         update other set note = 'unseen' => ",
    );
    check(&db).says("trigger|public.child|parent|FAIL|inherits from public.other, too");
}
