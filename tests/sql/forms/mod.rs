//! No writer is harmed: each statement that worked before the install works after it, and the log has its keys.
//!
//! Each form of statement runs on each kind of table, in a database without the feed and in one with it. Both must give
//! the same answer and then hold the same rows. The test computes the changed keys from the rows, and the log must have
//! them.

mod habits;
mod kinds;
mod limits;
mod settings;
mod statements;

use std::{
    collections::{BTreeMap, BTreeSet},
    future::poll_fn,
    sync::Once,
};

use bytes::Bytes;
use futures_util::SinkExt;
use kinds::Kind;
use statements::{FORMS, Form, Log, Step};

use super::*;

/// Owns the tables and installs the feed.
const OWNER: &str = "forms_owner";
/// Has SELECT, INSERT, UPDATE, DELETE and TRUNCATE on the tables, and no right on the feed.
const WRITER: &str = "forms_writer";

/// The key column of each table.
const KEYS: [&str; 6] = [
    "id",
    "betpawa_event_id",
    "event_id",
    "competitor_event_id",
    "snapshot_id",
    "snapshot_id",
];

/// The rows of the six tables, as table, key and text, with the number of equal rows.
type Rows = BTreeMap<(String, Option<i64>, String), u32>;

/// A session of the superuser, which sets other roles.
struct Side {
    client: Client,
    said: tokio::sync::mpsc::UnboundedReceiver<String>,
    feed: bool,
    db: Database,
    /// The database that the foreign tables are in.
    far: Option<Client>,
}

/// What the application sees of a form: the answer to each step, the notices, and the rows afterwards.
#[derive(Debug, PartialEq)]
struct Seen {
    answers: Vec<String>,
    notices: Vec<String>,
    rows: Rows,
}

/// What the log has of a form: the keys of each table, the tables that changed as a whole, and the notes.
#[derive(Debug, Default)]
struct Logged {
    keys: BTreeMap<String, BTreeSet<i64>>,
    whole: BTreeSet<String>,
    notes: Vec<String>,
}

impl Side {
    async fn open(kind: &Kind, feed: bool) -> Side {
        static ROLES: Once = Once::new();
        ROLES.call_once(|| {
            let roles = format!("create role {OWNER}; create role {WRITER}");
            oddscache_testkit::psql("postgres", &["-qc", &roles]);
        });
        let far = kind.far.as_ref().map(|tables| {
            let far = Database::empty();
            far.psql(tables);
            far
        });
        let db = Database::empty();
        db.psql(&kind.setup(&db.name, far.as_ref().map(|far| far.name.as_str())));
        if feed {
            install(&db);
        }
        let (client, said) = connect(&db).await;
        let far = match far {
            Some(far) => Some(oddscache_testkit::connect(&far.dsn()).await),
            None => None,
        };
        Side {
            client,
            said,
            feed,
            db,
            far,
        }
    }

    fn install(&self) {
        install(&self.db);
    }

    async fn run(&self, sql: &str) {
        if let Err(error) = self.client.batch_execute(sql).await {
            panic!("{sql}: {error:?}");
        }
    }

    async fn query(&self, sql: &str) -> Vec<Vec<Option<String>>> {
        let messages = self.client.simple_query(sql).await;
        let messages = messages.unwrap_or_else(|error| panic!("{sql}: {error:?}"));
        let fields = |message: &SimpleQueryMessage| match message {
            SimpleQueryMessage::Row(row) => {
                let field = |at| row.get(at).map(str::to_owned);
                Some((0..row.len()).map(field).collect())
            }
            _ => None,
        };
        messages.iter().filter_map(fields).collect()
    }

    /// Restores rows 1 to 3, and empties the log.
    async fn reset(&mut self, kind: &Kind) {
        if let Some(far) = &self.far {
            let delete: String = TABLES.map(|table| format!("delete from {table};")).concat();
            far.batch_execute(&delete).await.unwrap();
        }
        self.run(&kind.rows()).await;
        if self.feed {
            self.run("delete from oddscache.change_log").await;
        }
        while self.said.try_recv().is_ok() {}
    }

    async fn rows(&self) -> Rows {
        let tables = TABLES.iter().zip(KEYS).map(|(table, key)| {
            format!("select '{table}', {key}::bigint, t::text from public.{table} as t")
        });
        let all = tables.collect::<Vec<_>>().join(" union all ");
        let mut rows = Rows::new();
        for row in self.query(&all).await {
            let key = row[1].as_ref().map(|key| key.parse().unwrap());
            let row = (row[0].clone().unwrap(), key, row[2].clone().unwrap());
            *rows.entry(row).or_default() += 1;
        }
        rows
    }

    async fn logged(&self) -> Logged {
        let mut logged = Logged::default();
        if !self.feed {
            return logged;
        }
        let log = "select table_name, array_to_string(keys, ','), note from oddscache.change_log";
        for row in self.query(log).await {
            let table = row[0].clone().unwrap();
            match &row[1] {
                Some(keys) => {
                    let keys = keys.split(',').map(|key| key.parse::<i64>().unwrap());
                    logged.keys.entry(table).or_default().extend(keys);
                }
                None => {
                    logged.whole.insert(table);
                }
            }
            logged.notes.extend(row[2].clone());
        }
        logged
    }

    /// Runs one step. Returns the answer as text, or the SQLSTATE.
    async fn step(&self, step: Step, kind: &Kind) -> Result<String, String> {
        let fill = |sql: &str| kind.fill(sql).replace("{transaction}", &self.db.name);
        let answer = match step {
            Step::Sql(sql) => self.ask(&fill(sql)).await,
            Step::Load(sql, data) => self.copy(&fill(sql), data).await,
            Step::Prepared(sql) => self.seven_times(&fill(sql)).await,
        };
        answer.map_err(|error| match error.code() {
            Some(code) => code.code().to_owned(),
            None => panic!("{}, {}: {error:?}", kind.name, self.db.name),
        })
    }

    /// The numbers of rows, and the rows in sorted order, because the server's order depends on where it found room.
    async fn ask(&self, sql: &str) -> Result<String, tokio_postgres::Error> {
        let (mut counts, mut rows) = (String::new(), Vec::new());
        for message in self.client.simple_query(sql).await? {
            match message {
                SimpleQueryMessage::CommandComplete(n) => counts.push_str(&format!("{n} rows; ")),
                SimpleQueryMessage::Row(row) => {
                    let fields = (0..row.len()).map(|at| row.get(at).unwrap_or("null"));
                    rows.push(format!("({}) ", fields.collect::<Vec<_>>().join(", ")));
                }
                _ => {}
            }
        }
        rows.sort();
        Ok(rows.concat() + &counts)
    }

    async fn copy(&self, sql: &str, data: &'static str) -> Result<String, tokio_postgres::Error> {
        let mut sink = std::pin::pin!(self.client.copy_in(sql).await?);
        sink.send(Bytes::from_static(data.as_bytes())).await?;
        Ok(format!("{} rows", sink.finish().await?))
    }

    async fn seven_times(&self, sql: &str) -> Result<String, tokio_postgres::Error> {
        let statement = self.client.prepare(sql).await?;
        let mut text = String::new();
        for _ in 0..7 {
            let rows = self.client.execute(&statement, &[]).await?;
            text.push_str(&format!("{rows} rows; "));
        }
        Ok(text)
    }

    async fn begin(&self, role: &str, around: &Around<'_>) {
        for setting in around.before {
            self.run(setting).await;
        }
        self.run(&format!("set session authorization {role}")).await;
    }

    /// Runs a form as a role.
    async fn try_form(
        &mut self,
        kind: &Kind,
        form: &Form,
        role: &str,
        around: &Around<'_>,
    ) -> (Seen, Logged) {
        self.begin(role, around).await;
        if form.undo {
            self.run("begin").await;
        }
        self.run(around.begin).await;
        let whole = form.undo || !around.begin.is_empty();
        let mut answers = Vec::new();
        let mut failed = false;
        for step in form.steps {
            match self.step(*step, kind).await {
                Ok(answer) => answers.push(answer),
                Err(code) => {
                    answers.push(code);
                    if matches!(step, Step::Load(..)) {
                        // The client cannot continue after a COPY that the server refused.
                        (self.client, self.said) = connect(&self.db).await;
                        self.begin(role, around).await;
                    }
                    self.run("rollback").await;
                    failed = whole;
                }
            }
            if failed {
                break;
            }
        }
        if !around.begin.is_empty() && !form.undo && !failed {
            answers.push(match self.client.simple_query("commit").await {
                Ok(_) => "committed".to_owned(),
                Err(error) => error.code().unwrap().code().to_owned(),
            });
        }
        self.run("reset session authorization; reset client_min_messages")
            .await;
        for before in around.before {
            let name = before.split(' ').nth(1).unwrap();
            self.run(&format!("reset {name}")).await;
        }
        let (rows, logged) = (self.rows().await, self.logged().await);
        if form.undo {
            self.run("rollback; reset session authorization").await;
        }
        let mut notices = Vec::new();
        while let Ok(notice) = self.said.try_recv() {
            // ROLLBACK says so outside of a transaction.
            if !notice.contains("there is no transaction in progress") {
                notices.push(notice);
            }
        }
        let seen = Seen {
            answers,
            notices,
            rows,
        };
        (seen, logged)
    }
}

/// Installs the feed, as the owner of the tables.
fn install(db: &Database) {
    let role = format!("set role {OWNER}");
    let args = ["-qAt", "-c", &role, "-f", "sql/install.sql"];
    oddscache_testkit::psql(&db.name, &args);
}

/// A connection that keeps the server's notices.
async fn connect(db: &Database) -> (Client, tokio::sync::mpsc::UnboundedReceiver<String>) {
    let (client, mut connection) = tokio_postgres::connect(&db.dsn(), NoTls).await.unwrap();
    let (send, said) = tokio::sync::mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Some(Ok(message)) = poll_fn(|cx| connection.poll_message(cx)).await {
            if let AsyncMessage::Notice(notice) = message {
                let _ = send.send(format!("{}: {}", notice.severity(), notice.message()));
            }
        }
    });
    (client, said)
}

/// What surrounds a form: the superuser's settings, and how the transaction begins.
#[derive(Debug)]
struct Around<'a> {
    before: &'a [&'a str],
    begin: &'a str,
}

const NOTHING: Around<'_> = Around {
    before: &[],
    begin: "",
};

/// The keys of all rows that were inserted, deleted or changed.
fn changed(before: &Rows, after: &Rows) -> BTreeMap<String, BTreeSet<i64>> {
    let mut changed: BTreeMap<String, BTreeSet<i64>> = BTreeMap::new();
    for (row, n) in before.iter().chain(after) {
        if before.get(row) == Some(n) && after.get(row) == Some(n) {
            continue;
        }
        if let (table, Some(key), _) = row {
            changed.entry(table.clone()).or_default().insert(*key);
        }
    }
    changed
}

/// What is wrong with a form on a kind of table, if anything is.
fn judge(
    kind: &Kind,
    form: &Form,
    before: &Rows,
    without: &Seen,
    with: &Seen,
    logged: &Logged,
) -> Vec<String> {
    let mut wrong = Vec::new();
    if without != with {
        wrong.push(format!(
            "the install changes what the application sees:\nwithout {without:?}\nwith {with:?}"
        ));
    }
    if form.log == Log::Catalog {
        return wrong;
    }
    for (table, keys) in changed(before, &with.rows) {
        let known = logged.keys.get(&table).cloned().unwrap_or_default();
        let missing: Vec<&i64> = keys
            .difference(&known)
            .filter(|key| !(form.direct && kind.is_far(**key)))
            .collect();
        if !logged.whole.contains(&table) && !missing.is_empty() {
            wrong.push(format!("the log lacks {missing:?} of {table}: {logged:?}"));
        }
    }
    if form.log == Log::Keys && !kind.whole && !logged.whole.is_empty() {
        wrong.push(format!("the log has the whole table: {logged:?}"));
    }
    wrong
}

/// The same tables without the feed and with it.
struct Pair {
    kind: Kind,
    without: Side,
    with: Side,
}

impl Pair {
    async fn open(kind: Kind) -> Pair {
        let without = Side::open(&kind, false).await;
        let with = Side::open(&kind, true).await;
        Pair {
            kind,
            without,
            with,
        }
    }

    /// Tries a form on both, if the server has it. Returns what is wrong.
    async fn faults(&mut self, form: &Form, role: &str, around: &Around<'_>) -> Vec<String> {
        let Pair {
            kind,
            without,
            with,
        } = self;
        if form.since > server_version() {
            return Vec::new();
        }
        without.reset(kind).await;
        with.reset(kind).await;
        let before = without.rows().await;
        assert_eq!(before, with.rows().await, "{}", kind.name);
        let (seen_without, _) = without.try_form(kind, form, role, around).await;
        let (seen_with, logged) = with.try_form(kind, form, role, around).await;
        let what = format!("{} | {} | {role}", form.name, kind.name);
        println!("{what} | {around:?} | {:?} | {logged:?}", seen_with.answers);
        let faults = judge(kind, form, &before, &seen_without, &seen_with, &logged);
        faults
            .into_iter()
            .map(|fault| format!("{what}: {fault}"))
            .collect()
    }
}

fn assert_none(faults: &[String]) {
    let count = faults.len();
    assert!(
        faults.is_empty(),
        "{count} faults:\n{}",
        faults.join("\n\n")
    );
}

/// Tries all forms on a kind of table, as both roles.
async fn no_form_is_harmed(kind: Kind) {
    if kind.far.is_some() && !kinds::foreign_tables_work() {
        return;
    }
    let mut pair = Pair::open(kind).await;
    let mut wrong = Vec::new();
    for role in [OWNER, WRITER] {
        // Only the owner may change the tables.
        for form in FORMS.iter().filter(|form| !form.undo || role == OWNER) {
            wrong.extend(pair.faults(form, role, &NOTHING).await);
        }
    }
    assert_none(&wrong);
}

macro_rules! kinds {
    ($($name:ident: $kind:ident,)*) => { $(
        #[tokio::test]
        async fn $name() {
            no_form_is_harmed(Kind::$kind()).await;
        }
    )* };
}

kinds! {
    plain_tables: plain,
    unlogged_tables: unlogged,
    partitions_by_range: range,
    partitions_by_list: list,
    partitions_by_hash: hash,
    partitions_of_partitions: nested,
    partitions_with_their_columns_in_another_order: shuffled,
    foreign_partitions: foreign_partitions,
    children: inherited,
    foreign_children: foreign_children,
    row_security: row_security,
    a_generated_key: generated,
    keys_of_two_bytes: small_ids,
    keys_of_eight_bytes: large_ids,
    triggers_of_the_applications_own: own_triggers,
}
