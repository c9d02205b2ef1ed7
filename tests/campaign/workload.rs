//! The application: clients that draw their transactions from a seed.
//!
//! Every transaction keeps three invariants:
//! - Generations: the markets `gen` of all events of a group have the same number, in `market_odds` (bookmaker 1) and
//!   in `competitor_market_odds` (sportybet). Each transaction writes a new, greater number.
//! - Sums: the markets `amount` of a group, of bookmaker 2 and of bet9ja together, have a constant sum.
//! - Presence: all events of a group are inside the window, or none.

use std::{
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use fastrand::Rng;
use futures_util::SinkExt;
use tokio::{task::JoinHandle, time::sleep};
use tokio_postgres::{Client, NoTls, SimpleQueryMessage};

use crate::{
    free,
    kinds::{Kind, draw, name},
    pause::CATCH_UP,
    plan::Kind as Fault,
    readers,
    statements::{self as sql, Part},
    world::{GROUPS, World, members},
};

/// Why a transaction failed.
#[derive(Debug)]
pub(crate) enum Failed {
    /// The server refused a statement, for a lock, a key, a conflict, or because it shuts down.
    Refused,
    /// The connection was lost.
    Lost,
}

/// The codes with which the server may refuse a statement. Any other code means that the triggers harmed the
/// application.
const EXPECTED: &[&str] = &[
    "55P03", "40P01", "40001", "57014", "57P01", "57P02", "57P03", "23503", "23505", "23514",
    "42P01", "42809", "42P16", "25P02", "55006", "25P03",
];

/// One connection of the application.
pub(crate) struct Application {
    world: Arc<World>,
    number: usize,
    client: Option<Client>,
    prepared: u64,
    ids: free::Ids,
}

/// The applications while they write.
pub(crate) struct Writing(Vec<JoinHandle<Application>>);

impl Writing {
    /// Ends the round. Returns the applications once no transaction is open.
    pub(crate) async fn end(self, world: &World) -> Vec<Application> {
        world.round_over.store(true, Ordering::Relaxed);
        let mut all = Vec::new();
        for task in self.0 {
            all.push(task.await.expect("no application panics"));
        }
        all
    }
}

impl Application {
    pub(crate) fn new(world: &Arc<World>, number: usize) -> Application {
        Application {
            world: Arc::clone(world),
            number,
            client: None,
            prepared: 0,
            ids: free::Ids::new(number),
        }
    }

    /// Lets all write, until the returned value ends them.
    pub(crate) fn begin(world: &World, all: &mut Vec<Application>, seed: u64) -> Writing {
        world.round_over.store(false, Ordering::Relaxed);
        let play = |mut application: Application| {
            tokio::spawn(async move {
                application.play(seed).await;
                application
            })
        };
        Writing(all.drain(..).map(play).collect())
    }

    /// Runs transactions until the round is over. On return none is open.
    pub(crate) async fn play(&mut self, seed: u64) {
        let mut rng = Rng::with_seed(seed ^ (self.number as u64).wrapping_mul(0x9E37_79B9));
        while !self.world.round_over.load(Ordering::Relaxed) && !self.world.is_over() {
            let bias = *self.world.bias.lock().expect("not poisoned");
            let is_quick = self.world.quick.load(Ordering::Relaxed) && rng.u8(..10) < 8;
            let mut kind = match is_quick {
                true => Kind::InPlace,
                false => draw(&mut rng, bias),
            };
            // These kinds cause a reload, which would hide that the follower missed a change.
            if self.world.ordinary.load(Ordering::Relaxed)
                && matches!(kind, Kind::Truncate | Kind::ManyKeys)
            {
                kind = Kind::Batch;
            }
            // The transaction has its own random numbers. So the way it ends does not influence the transactions after
            // it.
            let mut own = rng.fork();
            let pause = Duration::from_millis(rng.u64(..8));
            let pause = (!is_quick).then_some(pause);
            let Some(client) = self.connected().await else {
                sleep(Duration::from_millis(30)).await;
                continue;
            };
            let ended = self.transaction(&client, kind, &mut own).await;
            let committed = ended.is_ok() && kind != Kind::Rollback;
            let rows = *ended.as_ref().unwrap_or(&0);
            let report = &self.world.report;
            report.transaction(name(kind), committed, rows);
            match ended {
                Err(Failed::Lost) => {}
                Err(Failed::Refused) => {
                    if client.batch_execute("rollback").await.is_ok() {
                        self.client = Some(client);
                    }
                }
                Ok(_) => self.client = Some(client),
            }
            if let Some(pause) = pause {
                sleep(pause).await;
            }
        }
        // Connecting again rolls back a transaction that is still prepared.
        self.client = self.connected().await;
    }

    /// The connection, opened if necessary, without an open or prepared transaction.
    async fn connected(&mut self) -> Option<Client> {
        if let Some(client) = self.client.take().filter(|client| !client.is_closed()) {
            return Some(client);
        }
        let connected = tokio_postgres::connect(&self.world.dsn(), NoTls).await;
        let (client, connection) = connected.ok()?;
        tokio::spawn(connection);
        let begin = "set lock_timeout = '2s'; set deadlock_timeout = '200ms'; set client_min_messages = error";
        client.batch_execute(begin).await.ok()?;
        // A transaction that was prepared when the connection was lost still holds its locks.
        let mine = format!(
            "select gid from pg_prepared_xacts where gid like 'c{}\\_%'",
            self.number
        );
        for row in client.query(&mine, &[]).await.ok()? {
            let gid: String = row.get(0);
            let rollback = format!("rollback prepared '{gid}'");
            client.batch_execute(&rollback).await.ok()?;
        }
        Some(client)
    }

    async fn run(&self, client: &Client, text: &str) -> Result<u64, Failed> {
        let answer = client.simple_query(text).await;
        let answer = answer.map_err(|error| self.failed(text, &error))?;
        let rows = answer.iter().map(|message| match message {
            SimpleQueryMessage::CommandComplete(rows) => *rows,
            _ => 0,
        });
        Ok(rows.sum())
    }

    fn failed(&self, text: &str, error: &tokio_postgres::Error) -> Failed {
        match error.code() {
            None => Failed::Lost,
            Some(code) => {
                if !EXPECTED.contains(&code.code()) {
                    let what = format!("{error:?} for {text}");
                    self.world.violate("writers never suffer", what);
                }
                Failed::Refused
            }
        }
    }

    /// Runs one transaction. Returns the number of rows it wrote.
    async fn transaction(
        &mut self,
        client: &Client,
        kind: Kind,
        rng: &mut Rng,
    ) -> Result<u64, Failed> {
        let mut begin = String::from("begin");
        let began = self.world.durability();
        if !began.is_multiple_of(2) {
            begin.push_str("; set local synchronous_commit = off");
        }
        let two_phase = kind == Kind::TwoPhase || kind == Kind::Free && rng.u8(..10) == 0;
        if two_phase || kind == Kind::BellOff || rng.u8(..12) == 0 {
            begin.push_str("; set local oddscache.notify = off");
        }
        if kind == Kind::Replica {
            begin.push_str("; set local session_replication_role = replica");
        }
        self.run(client, &begin).await?;
        if kind == Kind::Late {
            self.run(client, "select pg_current_xact_id()").await?;
            sleep(Duration::from_millis(rng.u64(10..400))).await;
        }
        match kind {
            Kind::Transfer => self.transfer(client, two_phase, rng).await,
            Kind::Confirm | Kind::Free => self.free(client, kind, two_phase, rng).await,
            _ => self.prices(client, kind, two_phase, began, rng).await,
        }
    }

    /// Gives one group, or all groups, a new generation.
    async fn prices(
        &mut self,
        client: &Client,
        kind: Kind,
        two_phase: bool,
        began: u64,
        rng: &mut Rng,
    ) -> Result<u64, Failed> {
        let groups: Vec<usize> = match kind {
            Kind::Truncate => (0..GROUPS).collect(),
            _ => vec![rng.usize(..GROUPS)],
        };
        let list: Vec<String> = groups.iter().map(usize::to_string).collect();
        let lock = format!(
            "select from campaign.groups where id in ({}) order by id for update",
            list.join(", ")
        );
        self.run(client, &lock).await?;
        // Take the generation under the lock, so that generations grow in the order of the commits.
        let generation = self.world.ledger.begin(&groups);
        let mut rows = 0;
        let mut all_present = true;
        for group in &groups {
            let mut parts = sql::prices(kind, *group, generation, rng);
            let present = self.window(client, kind, *group, &mut parts, rng).await?;
            if groups.len() == 1 {
                all_present = present;
            }
            for part in parts {
                rows += self.part(client, part).await?;
            }
        }
        if kind == Kind::Truncate {
            // Some groups may be outside the window. They stay there, so the ledger needs an entry for each group.
            return self
                .end_many(client, &groups, generation, began, rows)
                .await;
        }
        if kind == Kind::Rollback {
            self.run(client, "rollback").await?;
            return Ok(rows);
        }
        let xid = match rng.u8(..10) {
            0 => Some(self.xid(client).await?),
            _ => None,
        };
        self.world.ledger.sending(&groups, generation, all_present);
        self.end(client, two_phase, rng).await?;
        let durable = self.world.is_durable(began);
        if durable {
            self.world.ledger.returned(&groups, generation);
        }
        if let Some(xid) = xid.filter(|_| durable) {
            self.read_own_write(xid, groups[0], generation);
        }
        Ok(rows)
    }

    async fn xid(&self, client: &Client) -> Result<u64, Failed> {
        let text = "select pg_current_xact_id()::text";
        let row = client.query_one(text, &[]).await;
        let row = row.map_err(|error| self.failed(text, &error))?;
        row.get::<_, String>(0).parse().map_err(|_| Failed::Refused)
    }

    /// Waits until the cache shows a transaction, and checks that the view contains its rows. Does nothing around a
    /// crash with asynchronous commits or a failover. Either can undo the commit, and the server may then give the id
    /// to another transaction. Does nothing while triggers are missing: the view may then lack rows of the transaction.
    fn read_own_write(&self, xid: u64, group: usize, generation: u64) {
        let excused = [Fault::AsyncCrash, Fault::Failover, Fault::TriggerStates];
        let faults = self.world.active.now();
        let is_excused = faults.iter().any(|fault| excused.contains(fault));
        let Some(cache) = self.world.cache.get().cloned().filter(|_| !is_excused) else {
            return;
        };
        let world = Arc::clone(&self.world);
        tokio::spawn(async move {
            let view = match cache.wait_for(xid, CATCH_UP).await {
                Ok(view) => view,
                Err(error) => return world.violate("read your writes", error),
            };
            world.report.figures().waited_for += 1;
            let shown = readers::group(&view, group);
            if !shown.is_ok_and(|shown| world.ledger.contains(group, shown, generation)) {
                let what = format!(
                    "group {group} lacks generation {generation} in {view:?}, the view that wait_for returned"
                );
                world.violate("read your writes", what);
            }
        });
    }

    async fn end_many(
        &mut self,
        client: &Client,
        groups: &[usize],
        generation: u64,
        began: u64,
        rows: u64,
    ) -> Result<u64, Failed> {
        for group in groups {
            let present = self.is_present(client, *group).await?;
            self.world.ledger.sending(&[*group], generation, present);
        }
        self.run(client, "commit").await?;
        if self.world.is_durable(began) {
            self.world.ledger.returned(groups, generation);
        }
        Ok(rows)
    }

    async fn is_present(&self, client: &Client, group: usize) -> Result<bool, Failed> {
        let text = format!(
            "select kickoff > now() at time zone 'UTC' - interval '2 hours' from events where id = {}",
            members(group).0
        );
        let row = client.query_one(&text, &[]).await;
        let row = row.map_err(|error| self.failed(&text, &error))?;
        Ok(row.get(0))
    }

    /// Sometimes moves a group's events out of the window or back into it. Returns whether they are inside afterwards.
    async fn window(
        &self,
        client: &Client,
        kind: Kind,
        group: usize,
        parts: &mut Vec<Part>,
        rng: &mut Rng,
    ) -> Result<bool, Failed> {
        let present = self.is_present(client, group).await?;
        let moves = match (present, kind) {
            (_, Kind::Window) => true,
            (_, Kind::Truncate) | (true, _) => false,
            (false, _) => rng.u8(..10) < 6,
        };
        if moves {
            // Insert it only at the start or at the end. In between it could fall into a savepoint that is rolled back.
            let at = if rng.bool() { 0 } else { parts.len() };
            parts.insert(at, Part::Sql(sql::kickoffs(group, !present)));
        }
        Ok(present != moves)
    }

    async fn part(&self, client: &Client, part: Part) -> Result<u64, Failed> {
        match part {
            Part::Sql(text) => self.run(client, &text).await,
            Part::Sleep(duration) => {
                sleep(duration).await;
                Ok(0)
            }
            Part::Copy { target, rows } => {
                let found = client.simple_query(&rows).await;
                let found = found.map_err(|error| self.failed(&rows, &error))?;
                let mut lines = String::new();
                for message in &found {
                    if let SimpleQueryMessage::Row(row) = message {
                        lines.push_str(row.get(0).unwrap_or_default());
                        lines.push('\n');
                    }
                }
                let count = lines.lines().count() as u64;
                let sink = client.copy_in::<_, bytes::Bytes>(&target).await;
                let sink = sink.map_err(|error| self.failed(&target, &error))?;
                let mut sink = std::pin::pin!(sink);
                let sent = sink.send(bytes::Bytes::from(lines)).await;
                sent.map_err(|error| self.failed(&target, &error))?;
                let done = sink.as_mut().finish().await;
                done.map_err(|error| self.failed(&target, &error))?;
                Ok(count)
            }
        }
    }

    async fn end(&mut self, client: &Client, two_phase: bool, rng: &mut Rng) -> Result<(), Failed> {
        if !two_phase {
            self.run(client, "commit").await?;
            return Ok(());
        }
        self.prepared += 1;
        let gid = format!("c{}_{}", self.number, self.prepared);
        self.run(client, &format!("prepare transaction '{gid}'"))
            .await?;
        sleep(Duration::from_millis(rng.u64(..150))).await;
        let began = Instant::now();
        loop {
            let text = format!("commit prepared '{gid}'");
            match self.run(client, &text).await {
                Ok(_) => return Ok(()),
                // The prepared transaction holds its locks until it is committed, so try again.
                Err(Failed::Refused) if began.elapsed() < Duration::from_secs(20) => {}
                Err(failed) => return Err(failed),
            }
        }
    }

    async fn transfer(
        &mut self,
        client: &Client,
        two_phase: bool,
        rng: &mut Rng,
    ) -> Result<u64, Failed> {
        let group = rng.usize(..GROUPS);
        let lock = format!("select pg_advisory_xact_lock(5, {group})");
        self.run(client, &lock).await?;
        let mut rows = 0;
        for part in sql::transfer(group, rng) {
            rows += self.part(client, part).await?;
        }
        self.end(client, two_phase, rng).await?;
        Ok(rows)
    }

    async fn free(
        &mut self,
        client: &Client,
        kind: Kind,
        two_phase: bool,
        rng: &mut Rng,
    ) -> Result<u64, Failed> {
        let statements = match kind {
            Kind::Confirm => vec![sql::confirm(rng)],
            _ => {
                let ordinary = self.world.ordinary.load(Ordering::Relaxed);
                free::transaction(rng, &mut self.ids, !two_phase && !ordinary)
            }
        };
        let mut rows = 0;
        for text in statements {
            rows += self.run(client, &text).await?;
        }
        if rng.u8(..10) == 0 {
            self.run(client, "rollback").await?;
            return Ok(0);
        }
        self.end(client, two_phase, rng).await?;
        Ok(rows)
    }
}
