//! grants.sql: the role has enough rights, and needs each of them.

use super::*;

const FOLLOW: &str = "begin isolation level repeatable read read only;
    lock table events, competitor_events, odds_snapshots, competitor_odds_snapshots, market_odds, competitor_market_odds,
        oddscache.change_log, oddscache.log_state in access share mode;
    select pg_current_snapshot(), pruned_below from oddscache.log_state; select * from oddscache.change_log;
    select oddscache.feed_version();
    select * from events, competitor_events, odds_snapshots, competitor_odds_snapshots, market_odds, competitor_market_odds; commit";

fn granted(variables: &[(&str, &str)]) -> (Database, String) {
    let db = installed();
    let role = format!("cache_{}", db.name);
    let settings = [&[("role", &*role)], variables].concat();
    run(&db, Script::Grants, &settings);
    (db, role)
}

#[tokio::test]
async fn the_role_has_enough_rights_and_needs_each() {
    let (db, role) = granted(&[]);
    // An administrator may have revoked a right from PUBLIC that the role had through it.
    db.psql("revoke usage on schema public from public");
    run(&db, Script::Grants, &[("role", &role)]);
    let session = open_as(&db, &role).await;
    session.run(FOLLOW).await;
    let schemas = ["schema public", "schema oddscache"].map(|schema| format!("usage on {schema}"));
    let logs = ["change_log", "log_state"].map(|table| format!("select on oddscache.{table}"));
    let tables = TABLES.map(|table| format!("select on public.{table}"));
    for right in schemas.into_iter().chain(logs).chain(tables) {
        db.psql(&format!("revoke {right} from {role}"));
        let error = session.client.batch_execute(FOLLOW).await.unwrap_err();
        let code = error.code().unwrap().code();
        // Without USAGE on a schema its tables are not found.
        assert!(
            code == "42501" || (code == "42P01" && right == "usage on schema public"),
            "{right}: {error:?}"
        );
        session.run("rollback").await;
        let (name, object) = right.split_once(" on ").unwrap();
        let name = name.to_uppercase();
        check_role(&db, &role).says(format!("right|{object}|{name}|FAIL|{role} lacks it"));
        // Run again, the script grants exactly this.
        let text = run(&db, Script::Grants, &[("role", &role)]);
        assert_eq!(text.matches("granted ").count(), 1, "{text}");
        session.run(FOLLOW).await;
    }
    // Column rights are not enough for LOCK TABLE.
    db.psql(&format!(
        "revoke select on events from {role}; grant select (id, name, kickoff) on events to {role}"
    ));
    assert_eq!(session.code(FOLLOW).await, "42501");
}

/// The cache works without the names of bookmakers and tournaments, so nothing fails without these rights.
#[tokio::test]
async fn the_names_are_granted_where_there_are_tables() {
    let (db, role) = granted(&[]);
    let session = open_as(&db, &role).await;
    session.run("select * from bookmakers").await;
    db.psql("create table tournaments (id int)");
    db.psql(&format!("revoke select on bookmakers from {role}"));
    let warning = |table: &str| format!("right|public.{table}|SELECT|warn|{role} lacks it");
    check_role(&db, &role)
        .says(warning("bookmakers"))
        .says(warning("tournaments"))
        .lacks("sports");
    let text = run(&db, Script::Grants, &[("role", &role)]);
    assert_eq!(text.matches("granted ").count(), 2, "{text}");
    check_role(&db, &role).lacks(warning("bookmakers"));
    db.psql("drop table bookmakers, tournaments");
    let text = run(&db, Script::Grants, &[("role", &role)]);
    assert!(text.contains("already in place"), "{text}");
}

#[tokio::test]
async fn the_role_can_do_nothing_else() {
    let (db, role) = granted(&[]);
    // Before PostgreSQL 15 every role can do this. check.sql names the statement that ends it.
    if server_version() < 15 {
        db.psql("revoke create on schema public from public");
    }
    let session = open_as(&db, &role).await;
    let logs = ["change_log", "log_state", "log_horizon"].map(|table| format!("oddscache.{table}"));
    for table in TABLES
        .map(|table| format!("public.{table}"))
        .into_iter()
        .chain(logs)
    {
        for sql in [
            format!("delete from {table}"),
            format!("insert into {table} default values"),
            format!("truncate {table}"),
            format!("do $$ begin lock table {table} in row exclusive mode; end $$"),
        ] {
            assert_eq!(session.code(&sql).await, "42501", "{sql}");
        }
    }
    for sql in [
        "insert into bookmakers values (9)",
        "select * from oddscache.log_horizon",
        "update oddscache.log_state set channel = 'x'",
        "select oddscache.prune()",
        "create table public.t ()",
        "create table oddscache.t ()",
        "create role other",
        "drop table events",
    ] {
        assert_eq!(session.code(sql).await, "42501", "{sql}");
    }
    assert_eq!(
        db.psql(&format!(
            "select a.rolsuper, a.rolcreaterole, a.rolcreatedb, a.rolreplication, a.rolbypassrls, a.rolcanlogin, a.rolpassword is null,
                    r.rolconfig is null, a.rolvaliduntil is null
               from pg_authid a join pg_roles r using (rolname) where rolname = '{role}'"
        )),
        "f|f|f|f|f|t|t|t|t"
    );
    db.answers(&format!(
        "select count(*) from pg_auth_members where member = '{role}'::regrole => 0"
    ));
}

#[tokio::test]
async fn pruning_is_granted_on_demand() {
    let (db, role) = granted(&[("prune", "on")]);
    let session = open_as(&db, &role).await;
    session.run("select oddscache.prune()").await;
    session
        .fails("delete from oddscache.change_log => 42501")
        .await;
    run(&db, Script::Grants, &[("role", &role), ("prune", "on")]).says("already in place");
}

#[test]
fn grants_needs_install_and_check_names_what_is_too_much() {
    let db = app();
    fails(&db, Script::Grants, &[("role", "nobody_at_all")])
        .says("missing: oddscache.change_log, oddscache.log_state")
        .says("install.sql");
    db.answers("select count(*) from pg_roles where rolname = 'nobody_at_all' => 0");
    run(&db, Script::Install, &[]);
    db.psql("alter table events enable row level security");
    let role = format!("cache_{}", db.name);
    run(&db, Script::Grants, &[("role", &role)]).says("row-level security is on: public.events");
    check_role(&db, &role).says("right|public.events|row-level security|warn|");
    db.psql(&format!("grant update on market_odds to {role}; alter role {role} createdb; grant create on schema oddscache to {role}"));
    check_role(&db, &role)
        .says(format!(
            "right|public.market_odds|UPDATE|info|{role} has it"
        ))
        .says(format!("right|role {role}|CREATEDB|info|"))
        .says("right|schema oddscache|CREATE|info|");
}

/// The statement that check.sql names revokes the right from the role that was granted it. Then the line is gone.
#[tokio::test]
async fn check_names_each_superfluous_right_and_its_source() {
    let by_public = "PUBLIC was granted it, so every role has it";
    let mut faults = cases(
        "
        grant create on schema public to public => schema public|CREATE => {by public}
        grant create on schema public to {role}
            => schema public|CREATE => does not need it|REVOKE CREATE ON SCHEMA public FROM {role}
        grant create on database {db} to public => database {db}|CREATE => {by public}
        grant temporary on database {db} to {role} => database {db}|TEMPORARY => does not need it|REVOKE TEMPORARY
        grant update on market_odds to public => public.market_odds|UPDATE => {by public}
        grant insert, delete on oddscache.change_log to {group}
            => oddscache.change_log|INSERT, DELETE => it is a member of {group}|REVOKE {group} FROM {role}
        grant execute on function oddscache.resync(text) to public => oddscache.resync(text)|EXECUTE => {by public}
        grant execute on function oddscache.resync(text) to {group}
            => oddscache.resync(text)|EXECUTE => it is a member of {group}
        grant pg_write_all_data to {group}
            => public.events|INSERT, UPDATE, DELETE => it is a member of {group}, and so of pg_write_all_data
        alter role {group} createdb => role {role}|CREATEDB => by SET ROLE {group}
        alter role {role} createrole => role {role}|CREATEROLE => ALTER ROLE {role} NOCREATEROLE
        grant insert on events to {group} with grant option; set role {group}; grant insert on events to {role}; reset role; revoke {group} from {role}
            => public.events|INSERT => SET ROLE {group}; REVOKE INSERT ON public.events FROM {role}
        ",
    );
    if server_version() >= 17 {
        faults.extend(cases(
            "grant maintain on events to public => public.events|MAINTAIN => {by public}
             grant pg_maintain to {role} => public.events|MAINTAIN => it is a member of pg_maintain",
        ));
    }
    for [fault, object, told] in faults {
        let (db, role) = granted(&[]);
        let group = format!("group_{}", db.name);
        let named = |text: &str| {
            let text = text.replace("{role}", &role).replace("{db}", &db.name);
            let text = text.replace("{group}", &group);
            text.replace("{by public}", by_public)
        };
        db.psql(&named("create role {group}; grant {group} to {role}"));
        db.psql(&named(fault));
        let (line, told) = (named(&format!("right|{object}|")), named(told));
        let found = || {
            let report = check_role(&db, &role);
            let lines = report
                .lines()
                .filter(|at| at.starts_with(&line) && at.contains(&told));
            lines.map(str::to_owned).collect::<Vec<_>>()
        };
        let before = found();
        let [only] = &before[..] else {
            panic!("{fault}: not one line {line} ... {told}: {before:?}")
        };
        db.psql(only.rsplit_once('|').unwrap().1);
        assert_eq!(found(), [""; 0], "{fault}: {only}");
    }
}

/// A default right of the server is no fault of the database.
#[test]
fn what_public_has_by_default_is_no_warning() {
    let (db, role) = granted(&[]);
    let line = format!("right|database {}|TEMPORARY|ok|{role} has it", db.name);
    check_role(&db, &role).says(line);
    // The tests' databases are created without this default of older servers.
    db.psql("grant create on schema public to public");
    let line = format!("right|schema public|CREATE|info|{role} has it");
    check_role(&db, &role).says(line);
}
