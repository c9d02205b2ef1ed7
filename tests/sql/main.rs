//! The SQL scripts on a real server: run by psql, and as one query, as the program runs them.
#![allow(clippy::expect_used, clippy::unwrap_used)]

mod check;
mod clients;
mod forms;
mod grants;
mod heartbeat;
mod hostile;
mod indexes;
mod install;
mod log_care;
mod notifications;
mod prune;
mod publication;
mod refusals;
mod security;
mod transactions;
mod trigger;
mod trouble;
mod uninstall;

use std::{
    future::poll_fn,
    process::Output,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use oddscache::sql::Script;
use oddscache_testkit::{Database, TABLES, cases, cluster, server_has, server_version};
use tokio_postgres::{AsyncMessage, Client, NoTls, SimpleQueryMessage};

/// The application's tables with the columns that the feed uses, and with each kind of foreign key between them.
const APP: &str = "
    create table events (id int primary key, name text, kickoff timestamp not null default now());
    create table bookmakers (id int primary key, name text, slug text);
    create table odds_snapshots (
        id bigserial, event_id int not null references events on delete cascade, bookmaker_id int not null,
        captured_at timestamp not null default '2025-01-01 12:00', raw_response jsonb, last_confirmed_at timestamp,
        primary key (id, captured_at)
    ) partition by range (captured_at);
    create table odds_snapshots_d1 partition of odds_snapshots for values from ('2025-01-01') to ('2025-01-02');
    create table odds_snapshots_d2 partition of odds_snapshots for values from ('2025-01-02') to ('2025-01-03');
    create table odds_snapshots_default partition of odds_snapshots default;
    create table market_odds (id bigserial primary key, snapshot_id bigint not null, outcomes jsonb not null default '[]');
    create table competitor_events (
        id int primary key, source text not null default 'sportybet', betpawa_event_id int references events on delete set null,
        deleted_at timestamp);
    create table competitor_odds_snapshots (
        id serial primary key, competitor_event_id int not null references competitor_events on delete cascade,
        captured_at timestamp not null default now());
    create table competitor_market_odds (
        id bigserial primary key, snapshot_id int not null references competitor_odds_snapshots on delete cascade,
        outcomes jsonb not null default '[]');";

/// All scripts, in an order in which each has something to do.
const IN_ORDER: [Script; 5] = [
    Script::Install,
    Script::Grants,
    Script::Indexes,
    Script::Check,
    Script::Uninstall,
];

/// Events 1-3 with snapshots 1-3 (in d1), competitor events 11-13 linked to them with snapshots 1-3, and markets of
/// all.
const ROWS: &str = "
    insert into events select g from generate_series(1, 3) g;
    insert into odds_snapshots (event_id, bookmaker_id) select g, 1 from generate_series(1, 3) g;
    insert into market_odds (snapshot_id) select g from generate_series(1, 3) g;
    insert into competitor_events (id, betpawa_event_id) select 10 + g, g from generate_series(1, 3) g;
    insert into competitor_odds_snapshots (competitor_event_id) select 10 + g from generate_series(1, 3) g;
    insert into competitor_market_odds (snapshot_id) select g from generate_series(1, 3) g;";

/// A database with the application's tables.
fn app() -> Database {
    let db = Database::empty();
    db.psql(APP);
    db
}

/// The same with the feed installed and nothing logged yet.
fn installed() -> Database {
    let db = app();
    db.psql(ROWS);
    run(&db, Script::Install, &[]);
    db
}

/// The feed's role for a database, made by grants.sql.
fn cache_role(db: &Database) -> String {
    let role = format!("cache_{}", db.name);
    run(db, Script::Grants, &[("role", &role)]);
    role
}

/// Those of the settings that the script has.
fn settings_of<'s>(script: Script, all: &[(&'s str, &'s str)]) -> Vec<(&'s str, &'s str)> {
    let known = |(name, _): &&(&str, _)| script.settings().contains(name);
    all.iter().filter(known).copied().collect()
}

/// Fails the test if the role exists.
#[track_caller]
fn has_no_role(db: &Database, role: &str) {
    let sql = format!("select count(*) from pg_roles where rolname = '{role}'");
    assert_eq!(db.psql(&sql), "0", "{role}");
}

/// What a script printed: its rows, notices and errors.
#[derive(Debug)]
struct Said(String);

impl Said {
    /// Fails the test unless it contains this text.
    #[track_caller]
    fn says(&self, text: impl AsRef<str>) -> &Said {
        let (text, said) = (text.as_ref(), &self.0);
        assert!(said.contains(text), "{text} is not in {said}");
        self
    }

    /// Fails the test if it contains this text.
    #[track_caller]
    fn lacks(&self, text: impl AsRef<str>) -> &Said {
        let (text, said) = (text.as_ref(), &self.0);
        assert!(!said.contains(text), "{text} is in {said}");
        self
    }

    /// Fails the test if check.sql found a fault.
    #[track_caller]
    fn is_sound(&self) -> &Said {
        self.lacks("|FAIL|").lacks("|warn|")
    }

    /// The first line that starts with this text. Fails the test if there is none.
    #[track_caller]
    fn line(&self, start: impl AsRef<str>) -> &str {
        let (start, said) = (start.as_ref(), &self.0);
        let line = said.lines().find(|line| line.starts_with(start));
        line.unwrap_or_else(|| panic!("no line starts with {start} in {said}"))
    }
}

impl std::fmt::Display for Said {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl std::ops::Deref for Said {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

/// Runs a script with psql, which must succeed.
#[track_caller]
fn run(db: &Database, script: Script, settings: &[(&str, &str)]) -> Said {
    run_as("postgres", db, script, settings)
}

/// Runs a script with psql, which must fail.
#[track_caller]
fn fails(db: &Database, script: Script, settings: &[(&str, &str)]) -> Said {
    let output = psql_file_as("postgres", db, script, settings);
    let text = text(&output);
    assert!(!output.status.success(), "{script} succeeded: {text}");
    text
}

/// Runs a script with psql as another role, which must succeed.
#[track_caller]
fn run_as(role: &str, db: &Database, script: Script, settings: &[(&str, &str)]) -> Said {
    let output = psql_file_as(role, db, script, settings);
    let text = text(&output);
    assert!(output.status.success(), "{script} as {role}: {text}");
    text
}

/// Runs check.sql.
#[track_caller]
fn check(db: &Database) -> Said {
    run(db, Script::Check, &[])
}

/// Runs check.sql for the cache's role.
#[track_caller]
fn check_role(db: &Database, role: &str) -> Said {
    run(db, Script::Check, &[("role", role)])
}

fn psql_file_as(role: &str, db: &Database, script: Script, settings: &[(&str, &str)]) -> Output {
    let mut output = psql_text(role, db, &script.fill(settings).unwrap());
    if script == Script::Indexes && output.status.success() {
        let more = psql_text(role, db, &String::from_utf8_lossy(&output.stdout));
        output.status = more.status;
        output.stderr.extend(more.stderr);
    }
    output
}

/// Runs a text as `psql -f` does.
fn psql_text(role: &str, db: &Database, text: &str) -> Output {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("script.sql");
    std::fs::write(&file, text).unwrap();
    // psql uses the last `-d`.
    let dsn = cluster().dsn_as(role, &db.name);
    let file = file.to_str().unwrap();
    let args = ["-qAt", "-v", "VERBOSITY=verbose", "-d", &dsn, "-f", file];
    cluster().psql(&db.name, &args).unwrap()
}

fn text(output: &Output) -> Said {
    let [errors, rows] =
        [&output.stderr, &output.stdout].map(|bytes| String::from_utf8_lossy(bytes));
    Said(errors.into_owned() + &rows)
}

type Answer = Result<Said, tokio_postgres::Error>;

/// Runs a script as one query, which must succeed. Returns its notices and rows.
async fn apply(db: &Database, script: Script, settings: &[(&str, &str)]) -> Said {
    open(db).await.script(script, settings).await.unwrap()
}

/// Runs a script, as one query or by psql, as this role.
async fn run_by(
    one_query: bool,
    role: &str,
    db: &Database,
    script: Script,
    settings: &[(&str, &str)],
) -> Said {
    match one_query {
        true => {
            let session = open_as(db, role).await;
            session.script(script, settings).await.unwrap()
        }
        false => run_as(role, db, script, settings),
    }
}

/// A session of the superuser.
async fn open(db: &Database) -> Session {
    Session::open(&db.dsn()).await
}

/// Two sessions of the superuser.
async fn open_two(db: &Database) -> (Session, Session) {
    (open(db).await, open(db).await)
}

async fn open_as(db: &Database, role: &str) -> Session {
    Session::open(&cluster().dsn_as(role, &db.name)).await
}

/// A connection that keeps the server's notices and notifications.
struct Session {
    client: Client,
    notifications: tokio::sync::mpsc::UnboundedReceiver<String>,
    /// Each with its hint.
    notices: Arc<Mutex<String>>,
}

impl Session {
    async fn open(dsn: &str) -> Session {
        let (client, mut connection) = tokio_postgres::connect(dsn, NoTls).await.unwrap();
        let (send, notifications) = tokio::sync::mpsc::unbounded_channel();
        let notices = Arc::new(Mutex::new(String::new()));
        let kept = Arc::clone(&notices);
        tokio::spawn(async move {
            while let Some(Ok(message)) = poll_fn(|cx| connection.poll_message(cx)).await {
                match message {
                    AsyncMessage::Notification(notice) => {
                        let _ = send.send(format!("{}:{}", notice.channel(), notice.payload()));
                    }
                    AsyncMessage::Notice(notice) => {
                        let hint = notice.hint().unwrap_or_default();
                        let (severity, said) = (notice.severity(), notice.message());
                        let line = format!("{severity}:  {said}\nHINT:  {hint}\n");
                        kept.lock().unwrap().push_str(&line);
                    }
                    _ => {}
                }
            }
        });
        Session {
            client,
            notifications,
            notices,
        }
    }

    /// Runs a script as one query. Returns its notices and rows, or the error.
    async fn script(&self, script: Script, settings: &[(&str, &str)]) -> Answer {
        let rows = self.rows(&script.fill(settings).unwrap()).await?;
        let mut text = std::mem::take(&mut *self.notices.lock().unwrap());
        for row in rows {
            text.push_str(&(row.join("|") + "\n"));
            if script == Script::Indexes {
                self.rows(&row[0]).await?;
            }
        }
        Ok(Said(text))
    }

    async fn rows(&self, sql: &str) -> Result<Vec<Vec<String>>, tokio_postgres::Error> {
        let messages = self.client.simple_query(sql).await?;
        let row = |message: &SimpleQueryMessage| match message {
            SimpleQueryMessage::Row(row) => {
                let field = |at| row.get(at).unwrap_or_default().to_owned();
                Some((0..row.len()).map(field).collect())
            }
            _ => None,
        };
        Ok(messages.iter().filter_map(row).collect())
    }

    async fn run(&self, sql: &str) {
        if let Err(error) = self.client.batch_execute(sql).await {
            panic!("{sql}: {error:?}");
        }
    }

    async fn value(&self, sql: &str) -> String {
        self.rows(sql).await.unwrap()[0][0].clone()
    }

    /// Takes the lock that makes writers notify, as a waiting follower does.
    async fn wait_for_notifications(&self, cache_schema: &str) {
        let name = cache_schema.replace('\'', "''");
        self.run(&format!(
            "select pg_advisory_lock_shared(hashtextextended('oddscache listener {name}', 0))"
        ))
        .await;
    }

    /// Fails the test unless each query has this answer: `query => answer`, one a line.
    async fn answers(&self, queries: &str) {
        for [sql, answer] in cases(queries) {
            assert_eq!(self.value(sql).await, answer, "{sql}");
        }
    }

    /// Fails the test unless each statement fails with this SQLSTATE: `statement => SQLSTATE`, one a line.
    async fn fails(&self, statements: &str) {
        for [sql, code] in cases(statements) {
            assert_eq!(self.code(sql).await, code, "{sql}");
        }
    }

    /// Runs SQL that must fail. Returns the SQLSTATE.
    async fn code(&self, sql: &str) -> String {
        let error = self.client.batch_execute(sql).await.unwrap_err();
        error.code().unwrap().code().to_owned()
    }
}

/// Creates a role without superuser rights that owns the application's tables and can create schemas.
fn owner(db: &Database) -> String {
    let role = format!("owner_{}", db.name);
    db.psql(&format!(
        "create role {role} login; grant create on database {name} to {role}; grant all on schema public to {role};
         do $$ declare t text; begin for t in select oid::regclass from pg_class
           where relnamespace = 'public'::regnamespace and relkind in ('r', 'p') loop
           execute format('alter table %s owner to {role}', t); end loop; end $$",
        name = db.name
    ));
    role
}

/// A database in which such an owner has installed the feed. Returns also the role and its session.
async fn owned() -> (Database, String, Session) {
    let db = Database::empty();
    let owner = format!("owner_{}", db.name);
    db.psql(&format!(
        "create role {owner} login; grant create on database {} to {owner}; grant create on schema public to {owner};
         set role {owner}; {APP} {ROWS}",
        db.name
    ));
    let session = install_as(&db, &owner).await;
    (db, owner, session)
}

/// Installs the feed as this role, and returns the session that did it.
async fn install_as(db: &Database, role: &str) -> Session {
    let session = open_as(db, role).await;
    session.script(Script::Install, &[]).await.unwrap();
    session
}

/// Waits until the query returns `t`. Fails the test after a minute, which is long because other tests share the
/// server.
async fn until(db: &Database, sql: &str) {
    let session = open(db).await;
    let deadline = Instant::now() + Duration::from_secs(60);
    while session.value(sql).await != "t" {
        assert!(Instant::now() < deadline, "never true: {sql}");
        tokio::task::yield_now().await;
    }
}

/// All log rows in order, as `table OP keys note`. `*` means the whole table.
fn log(db: &Database) -> Vec<String> {
    let rows = db.psql(
        "select concat_ws(' ', table_name, op, coalesce((select string_agg(k::text, ',' order by k) from unnest(keys) k), '*'), \
         note) from oddscache.change_log order by id",
    );
    rows.lines().map(str::to_owned).collect()
}

/// A database with the feed.
trait Feed {
    /// Fails the test unless each statement, run as the superuser, logs these rows: `statement => row; row`, one a line.
    fn logs(&self, statements: &str);
}

impl Feed for Database {
    #[track_caller]
    fn logs(&self, statements: &str) {
        for [sql, rows] in cases(statements) {
            assert_eq!(logs(self, sql).join("; "), rows, "{sql}");
        }
    }
}

/// Runs SQL as the superuser, and returns what it logged.
fn logs(db: &Database, sql: &str) -> Vec<String> {
    db.psql("delete from oddscache.change_log");
    db.psql(sql);
    log(db)
}

/// The whole schema as SQL, without the parts that differ from run to run.
fn dump(db: &Database) -> String {
    let mut pg_dump = cluster().client("pg_dump").unwrap();
    pg_dump.args(["--schema-only", "-d", &db.dsn()]);
    let output = pg_dump.output().unwrap();
    assert!(output.status.success(), "{}", text(&output));
    let text = String::from_utf8_lossy(&output.stdout);
    let lines = text.lines().filter(|line| !line.contains("restrict "));
    lines.collect::<Vec<_>>().join("\n")
}
