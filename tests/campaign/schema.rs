//! Faults of the schema and of the data: rows that the server cannot send, publications, odd partitions, and settings.

use std::time::{Duration, Instant};

use fastrand::Rng;
use oddscache::{Fault, Status, View, sql::Script};
use oddscache_testkit::TABLES;
use tokio::time::sleep;

use crate::{
    faults::Scene,
    pause::{CATCH_UP, Wrong},
    plan::Kind,
    readers::BOUND,
    world::{GROUPS, QUIET, members},
};

/// Deletes the rows that cannot be read.
pub(crate) const DELETE_POISON: &str = "delete from market_odds where abs(line) > '1e300'::numeric";

/// Selects the id of the latest snapshot of an event and bookmaker.
fn newest(event: i64, bookmaker: i64) -> String {
    format!(
        "(select max(id) from odds_snapshots where event_id = {event} and bookmaker_id = {bookmaker})"
    )
}

impl Scene {
    pub(crate) fn is_poisoned(&self) -> bool {
        !self.poisoned().is_empty()
    }

    fn poisoned(&self) -> std::sync::MutexGuard<'_, Vec<i64>> {
        self.world.poisoned.lock().expect("not poisoned")
    }

    /// Sets lines out of the range of a double, in rows that are held. They stay until the next pause.
    pub(crate) async fn poison(&self, rng: &mut Rng, lasts: Duration) {
        let insert = |snapshot: &str, line: &str| {
            format!(
                "insert into market_odds (snapshot_id, betpawa_market_id, betpawa_market_name, line, outcomes) \
                 select {snapshot}, 'm' || n, '', case n when 2 then {line} else n::numeric end, '[]' from generate_series(1, 3) n"
            )
        };
        let quiet = newest(QUIET, 1);
        let sql = match rng.u8(..3) {
            // A new snapshot with a row that cannot be read.
            0 => format!(
                "insert into odds_snapshots (event_id, bookmaker_id) values ({QUIET}, 1); {}",
                insert(&quiet, "'1e400'")
            ),
            // A row that could be read until now.
            1 => format!(
                "{}\nupdate market_odds set line = '-1e400' where betpawa_market_id = 'm2' and snapshot_id = {quiet}",
                insert(&quiet, "2")
            ),
            _ => insert(&quiet, "'1e309'"),
        };
        self.world.admin(&sql).await;
        let group = rng.usize(..GROUPS);
        let (first, last) = members(group);
        let member = newest(rng.i64(first..=last), 1);
        self.world.admin(&format!(
            "update market_odds set line = '1e400' where betpawa_market_id = '3743' and snapshot_id = {member}"
        ))
        .await;
        let client = self.world.connect().await;
        let rows = format!(
            "select id from market_odds where snapshot_id = {quiet} and abs(line) > '1e300'::numeric"
        );
        let rows = client.query(&rows, &[]).await.expect("the rows");
        let ids: Vec<i64> = rows.iter().map(|row| row.get(0)).collect();
        *self.poisoned() = ids.clone();
        for id in ids {
            let is_it = |fault: &Fault| {
                fault.what.starts_with("cannot read market_odds id")
                    && fault.what.contains(&id.to_string())
            };
            self.noticed(&format!("market_odds {id} cannot be read"), is_it)
                .await;
        }
        sleep(lasts).await;
    }

    /// Corrects or deletes the rows that cannot be read. The comparison with the oracle came before.
    pub(crate) async fn correct(&self) -> Result<(), Wrong> {
        let status = self.embedded.cache.status();
        let named = status.to_string();
        let unnamed = self
            .poisoned()
            .iter()
            .find(|id| !named.contains(&id.to_string()))
            .copied();
        if let Some(id) = unnamed {
            let what = format!("market_odds {id} cannot be read, but the status is: {named}");
            return Err(("the status names what is not whole", what));
        }
        let is_even = self.poisoned().len().is_multiple_of(2) ^ self.world.seed.is_multiple_of(2);
        self.world
            .admin(match is_even {
                true => "update market_odds set line = 1 where abs(line) > '1e300'::numeric",
                false => DELETE_POISON,
            })
            .await;
        self.poisoned().clear();
        self.world.active.end(Kind::Poisoned);
        self.world.report.figures().poisoned += 1;
        Ok(())
    }

    /// Creates publications, with a replica identity with which the application's statements still work.
    pub(crate) async fn publications(&self, rng: &mut Rng, lasts: Duration) {
        let one = TABLES[rng.usize(..TABLES.len())];
        let create = match rng.u8(..3) {
            0 => "create publication campaign for all tables".to_owned(),
            1 => format!(
                "create publication campaign for table {}",
                TABLES.join(", ")
            ),
            _ => format!(
                "create publication campaign for table {one} with (publish_via_partition_root = true)"
            ),
        };
        let identity = ["full", "default"][rng.usize(..2)];
        self.world.admin(&format!(
            "alter table {one} replica identity {identity}\nset client_min_messages = error; {create}"
        ))
        .await;
        sleep(lasts).await;
        self.world.admin("drop publication campaign").await;
        let undo = format!("alter table {one} replica identity default");
        self.world.admin(&undo).await;
    }

    /// Runs a statement that writes a new snapshot of an event which no trigger sees. It must show within the bound that
    /// the status gives. Until then the view must be at least as old as the commit.
    pub(crate) async fn shows_unlogged(&self, event: i64, insert: &str) {
        let (world, cache) = (&self.world, &self.embedded.cache);
        let ids = |view: &View| -> Vec<i64> {
            let event = view.event(event);
            let own = event.iter().flat_map(|event| event.betpawa().iter());
            own.map(|(_, snapshot)| snapshot.snapshot_id()).collect()
        };
        let bound = |status: &Status| match status {
            Status::Degraded { bound, .. } => *bound,
            _ => None,
        };
        let before = ids(&cache.view());
        let mut longest = Duration::ZERO;
        self.world.admin(insert).await;
        let committed = Instant::now();
        while !world.is_over() {
            longest = longest.max(bound(&cache.status()).unwrap_or_default());
            let view = cache.view();
            let (age, elapsed) = (view.age(), committed.elapsed());
            if ids(&view) != before {
                world.report.figures().unlogged += 1;
                return;
            }
            // `elapsed` was taken after the age.
            let slack = Duration::from_millis(200);
            if age + slack < elapsed {
                let what = format!(
                    "a row was committed {elapsed:?} ago without a log row, and a view without it is {age:?} old: {}",
                    cache.status()
                );
                world.violate("age never understated", what);
            }
            if elapsed > longest + BOUND {
                let what = format!("a row shows not after {elapsed:?}: {}", cache.status());
                world.violate("degraded within its bound", what);
            }
            sleep(Duration::from_millis(5)).await;
        }
    }

    /// Adds a partition or a child table of an odd kind, writes to it directly, and removes it.
    pub(crate) async fn odd_partitions(&self, rng: &mut Rng, lasts: Duration) {
        let odd = "odds_snapshots_2017";
        let columns = "event_id, bookmaker_id, captured_at";
        let row = format!("values ({QUIET}, 3, timestamp '2017-02-01')");
        let id = "nextval(pg_get_serial_sequence('odds_snapshots', 'id'))";
        let attach = format!(
            "alter table odds_snapshots attach partition {odd} for values from ('2017-01-01') to ('2018-01-01')"
        );
        let kind = rng.u8(..5);
        let (create, written) = match kind {
            // Other columns, in another order, and one that was dropped.
            0 => (
                format!(
                    "create table {odd} (junk text, raw_response jsonb, captured_at timestamp not null, bookmaker_id int not null, \
                         gone int, last_confirmed_at timestamp, scrape_run_id int, event_id int not null, id bigint not null); \
                     alter table {odd} drop junk, drop gone\n{attach}"
                ),
                odd.to_owned(),
            ),
            // Partitions of a partition.
            1 | 2 => (
                format!(
                    "create table {odd} (like odds_snapshots including defaults) partition by range (captured_at); \
                     create table {odd}_a partition of {odd} for values from ('2017-01-01') to ('2017-07-01'); \
                     create table {odd}_b partition of {odd} {}\n{attach}",
                    match kind {
                        1 => "for values from ('2017-07-01') to ('2018-01-01')",
                        _ => "default",
                    }
                ),
                format!("{odd}_a"),
            ),
            // One with rows.
            3 => (
                format!(
                    "create table {odd} (like odds_snapshots including all); \
                     insert into {odd} ({columns}) {row}\n{attach}"
                ),
                odd.to_owned(),
            ),
            // A child table, which is no partition.
            _ => (
                "create table market_odds_child () inherits (market_odds)".to_owned(),
                "market_odds_child".to_owned(),
            ),
        };
        self.world.admin(&create).await;
        let is_it = |fault: &Fault| fault.what.contains(&written);
        self.noticed(&create, is_it).await;
        let child = format!(
            "insert into market_odds_child (snapshot_id, betpawa_market_id, betpawa_market_name, line, outcomes) \
             select {}, 'child', '', 7, '[]'",
            newest(QUIET, 1)
        );
        match kind {
            0..4 => {
                let insert = format!(
                    "insert into {written} (id, {columns}) select {id}, {QUIET}, 3, timestamp '2017-02-01'"
                );
                self.shows_unlogged(QUIET, &insert).await;
            }
            _ => self.world.admin(&child).await,
        }
        // From now on triggers log what is written directly.
        self.script(Script::Install, &[]).await;
        let write = match kind {
            0..4 => format!("update {written} set last_confirmed_at = now() at time zone 'UTC'"),
            _ => child,
        };
        self.world.admin(&write).await;
        sleep(lasts).await;
        match kind {
            // No partition can be detached like this from a table with a default partition. The lower level has none.
            1 => {
                let detach = format!("alter table {odd} detach partition {odd}_a");
                self.detach_concurrently(&detach).await;
                self.world.admin(&format!("drop table {odd}_a")).await;
                self.world.admin(&format!("drop table {odd}")).await;
            }
            _ if kind == 4 => self.world.admin("drop table market_odds_child").await,
            _ => self.world.admin(&format!("drop table {odd}")).await,
        }
    }

    /// Detaches a partition, and finishes that if a lock ended it half done.
    async fn detach_concurrently(&self, detach: &str) {
        let began = Instant::now();
        let client = self.world.connect().await;
        let set = "set lock_timeout = '1s'";
        client.batch_execute(set).await.expect("a setting");
        let mut done = client
            .batch_execute(&format!("{detach} concurrently"))
            .await;
        while let Err(error) = done {
            if began.elapsed() > CATCH_UP {
                let what = format!("{detach}: {error:?}");
                self.world.violate("the campaign itself", what);
                return;
            }
            sleep(Duration::from_millis(50)).await;
            done = client.batch_execute(&format!("{detach} finalize")).await;
            // Its first step was not done.
            if done
                .as_ref()
                .is_err_and(|error| error.code().is_some_and(|code| code.code() == "55000"))
            {
                done = client
                    .batch_execute(&format!("{detach} concurrently"))
                    .await;
            }
        }
    }

    /// Changes the settings of the followers' role or of the database, and ends the followers' sessions, so that new ones
    /// have them. The embedded follower must become current with them.
    pub(crate) async fn settings(&self, rng: &mut Rng, lasts: Duration) {
        let owner = match rng.bool() {
            true => "role oddscache",
            false => "role oddscache in database postgres",
        };
        let mut lines = Vec::new();
        for _ in 0..rng.u8(1..5) {
            let (name, value) = HOSTILE[rng.usize(..HOSTILE.len())];
            lines.push(format!("alter {owner} set {name} = {value}"));
        }
        if rng.bool() {
            let (name, value) = HARMLESS[rng.usize(..HARMLESS.len())];
            lines.push(format!("alter database postgres set {name} = {value}"));
        }
        self.admin_for_good(&lines.join("\n")).await;
        for whose in ["", "not"] {
            self.world.terminate(whose).await;
        }
        let began = Instant::now();
        loop {
            let asked = Instant::now();
            let proven = asked.checked_sub(self.embedded.cache.view().age());
            if proven.is_some_and(|proven| proven > began) || self.world.is_over() {
                break;
            }
            if began.elapsed() > CATCH_UP {
                let status = self.embedded.cache.status();
                let what = format!("{}: {status}", lines.join("; "));
                self.world.violate("hostile settings", what);
            }
            sleep(Duration::from_millis(10)).await;
        }
        sleep(lasts).await;
        self.admin_for_good(
            "alter role oddscache reset all\nalter role oddscache in database postgres reset all\n\
             alter database postgres reset all",
        )
        .await;
        for whose in ["", "not"] {
            self.world.terminate(whose).await;
        }
    }
}

/// Settings of the followers' role.
const HOSTILE: &[(&str, &str)] = &[
    ("quote_all_identifiers", "on"),
    ("datestyle", "'German, DMY'"),
    ("datestyle", "'SQL, MDY'"),
    ("intervalstyle", "'sql_standard'"),
    ("extra_float_digits", "-15"),
    ("timezone", "'Asia/Kathmandu'"),
    ("bytea_output", "'escape'"),
    ("default_transaction_isolation", "'serializable'"),
    ("default_transaction_isolation", "'read uncommitted'"),
    ("default_transaction_read_only", "on"),
    ("default_transaction_deferrable", "on"),
    ("search_path", "''"),
    ("search_path", "'pg_temp, campaign'"),
    ("statement_timeout", "'2s'"),
    ("idle_in_transaction_session_timeout", "'1s'"),
    ("enable_indexscan", "off"),
    ("enable_seqscan", "off"),
    ("enable_hashjoin", "off"),
    ("plan_cache_mode", "'force_generic_plan'"),
    ("plan_cache_mode", "'force_custom_plan'"),
    ("standard_conforming_strings", "off"),
    ("transform_null_equals", "on"),
    ("array_nulls", "off"),
    ("row_security", "off"),
    ("work_mem", "'64kB'"),
    ("jit_above_cost", "0"),
    ("max_parallel_workers_per_gather", "4"),
    ("parallel_setup_cost", "0"),
    ("synchronous_commit", "off"),
    ("constraint_exclusion", "off"),
];

/// Settings of the database. They may not change what the application's statements do.
const HARMLESS: &[(&str, &str)] = &[
    ("quote_all_identifiers", "on"),
    ("intervalstyle", "'iso_8601'"),
    ("extra_float_digits", "0"),
    ("bytea_output", "'escape'"),
    ("timezone", "'America/St_Johns'"),
    ("enable_indexscan", "off"),
    ("plan_cache_mode", "'force_generic_plan'"),
    ("parallel_tuple_cost", "0"),
];
