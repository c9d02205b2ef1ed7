//! The limits of the promise to writers: `temp_file_limit`, and what pg_dump needs.

use super::*;

/// The server keeps the rows of a statement for the trigger until the statement ends. Beyond `work_mem` it uses a
/// temporary file. INSERT keeps the new rows, UPDATE the old and the new, DELETE the old. A row takes its bytes and 40
/// more. An old row keeps a value compressed or out of line, as the table has it. A new row of an INSERT has the whole
/// value.
#[tokio::test]
async fn a_statement_fails_at_a_temp_file_limit_below_what_its_rows_take() {
    const KILOBYTE: usize = 1024;
    let kind = Kind::plain();
    let mut without = Side::open(&kind, false).await;
    let mut with = Side::open(&kind, true).await;
    let fill = "insert into market_odds (snapshot_id, outcomes) select 1, to_jsonb(repeat('x', 1500)) from generate_series(1, 40) a, generate_series(1, 100) b";
    let large = "insert into market_odds (snapshot_id, outcomes) select 1, to_jsonb(repeat('x', 20000)) from generate_series(1, 1000)";
    let update = "update market_odds set outcomes = outcomes where id > 100";
    let delete = "delete from market_odds where id > 100";
    let filled = 4000 * (1500 + 40) / KILOBYTE;
    for (before, statement, kilobytes) in [
        // Each row takes 240 bytes in the table.
        ("", large, 1000 * (20000 + 40) / KILOBYTE),
        ("", fill, filled),
        (fill, update, 2 * filled),
        (fill, delete, filled),
    ] {
        for (feed, limit, answer) in [
            (false, 0, "ok"),
            (true, kilobytes - kilobytes / 50, "53400"),
            (true, kilobytes + kilobytes / 50, "ok"),
        ] {
            let side = if feed { &mut with } else { &mut without };
            side.run("reset session authorization; reset temp_file_limit; truncate market_odds")
                .await;
            side.reset(&kind).await;
            side.run(&format!("{before}; set work_mem = '64kB'; set temp_file_limit = {limit}; set session authorization {WRITER}")).await;
            let answered = match side.ask(statement).await {
                Ok(_) => "ok".to_owned(),
                Err(error) => error.code().unwrap().code().to_owned(),
            };
            assert_eq!(answered, answer, "{statement}: feed {feed}, {limit} kB");
        }
    }
}

/// Within `work_mem` the server needs no temporary file.
#[tokio::test]
async fn a_statement_whose_rows_fit_into_work_mem_needs_no_temporary_file() {
    let mut side = Side::open(&Kind::plain(), true).await;
    side.reset(&Kind::plain()).await;
    side.run(&format!(
        "set work_mem = '4MB'; set temp_file_limit = 0; set session authorization {WRITER}"
    ))
    .await;
    side.run("insert into market_odds (snapshot_id) select g from generate_series(1, 10000) g")
        .await;
    side.run("update market_odds set outcomes = '[1]'; delete from market_odds")
        .await;
}

/// Collecting the keys takes temporary files, too, but the trigger catches that error.
#[tokio::test]
async fn keys_that_need_larger_temporary_files_than_allowed_ask_for_everything() {
    let mut side = Side::open(&Kind::plain(), true).await;
    side.reset(&Kind::plain()).await;
    // The rows take 800 kB. Their distinct keys take as much again.
    side.run(&format!(
        "set work_mem = '64kB'; set temp_file_limit = 1000; set session authorization {WRITER}"
    ))
    .await;
    side.run("insert into market_odds (snapshot_id) select g from generate_series(1, 18000) g")
        .await;
    side.run("reset session authorization; reset temp_file_limit")
        .await;
    let logged = side.logged().await;
    assert!(logged.whole.contains("market_odds"), "{logged:?}");
    assert!(logged.notes[0].starts_with("53400 "), "{logged:?}");
}

fn pg_dump(dsn: &str, args: &[&str]) -> Output {
    let mut command = cluster().client("pg_dump").unwrap();
    command.args(args).args(["-d", dsn]).output().unwrap()
}

fn dumped(side: &Side, args: &[&str]) -> tempfile::NamedTempFile {
    let output = pg_dump(&side.db.dsn(), args);
    assert!(output.status.success(), "{args:?}: {}", text(&output));
    // A newer pg_dump sets a parameter that an older server does not know.
    let dump = String::from_utf8(output.stdout).unwrap();
    let dump = dump.replace("SET transaction_timeout = 0;", "");
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), dump).unwrap();
    file
}

/// Restores in one transaction, as `pg_restore --single-transaction` does.
fn restores(dump: &tempfile::NamedTempFile, database: &str) -> bool {
    let file = dump.path().to_str().unwrap();
    let args = ["-q1", "-o", "/dev/null", "-f", file];
    cluster().psql(database, &args).unwrap().status.success()
}

/// The log's rows are useless in another cluster, and its state exists there already.
#[tokio::test]
async fn a_dump_of_data_is_restored_beside_a_feed_if_it_leaves_the_feed_out() {
    let kind = Kind::plain();
    let (mut from, to) = (Side::open(&kind, true).await, Side::open(&kind, true).await);
    from.reset(&kind).await;
    let all = dumped(&from, &["-a", "--disable-triggers"]);
    assert!(!restores(&all, &to.db.name));
    let without_feed = dumped(&from, &["-a", "--disable-triggers", "-N", "oddscache"]);
    assert!(restores(&without_feed, &to.db.name));
    assert_eq!(from.rows().await, to.rows().await);
    // ENABLE TRIGGER ALL made them ordinary triggers. Running install.sql again repairs that.
    let ordinary =
        "select count(*) from pg_trigger where tgname like 'oddscache%' and tgenabled = 'O'";
    assert_eq!(to.query(ordinary).await[0][0].as_deref(), Some("24"));
    to.install();
    assert_eq!(to.query(ordinary).await[0][0].as_deref(), Some("0"));
}

/// The triggers name a function in the feed's schema.
#[tokio::test]
async fn a_dump_of_the_applications_schema_is_restored_elsewhere_if_it_has_the_feeds_schema() {
    let from = Side::open(&Kind::plain(), true).await;
    for (args, fine) in [
        (&["-n", "public"][..], false),
        (&["-n", "public", "-n", "oddscache"], true),
    ] {
        let to = Database::empty();
        to.psql("drop schema public");
        assert_eq!(restores(&dumped(&from, args), &to.name), fine, "{args:?}");
    }
}

/// A role with rights on all other tables has none on the log.
#[tokio::test]
async fn a_role_that_dumps_needs_rights_on_the_log_or_leaves_it_out() {
    let side = Side::open(&Kind::plain(), true).await;
    let role = format!("dumps_{}", side.db.name);
    side.run(&format!(
        "create role {role} login; grant usage on schema public to {role};
         grant select on all tables in schema public to {role}; grant select on all sequences in schema public to {role}"
    ))
    .await;
    let dsn = cluster().dsn_as(&role, &side.db.name);
    let dumps = |args: &[&str]| pg_dump(&dsn, args).status.success();
    assert!(!dumps(&[]));
    assert!(dumps(&["-N", "oddscache"]));
    side.run(&format!(
        "grant usage on schema oddscache to {role}; grant select on all tables in schema oddscache to {role};
         grant select on all sequences in schema oddscache to {role}"
    ))
    .await;
    assert!(dumps(&[]));
}
