//! The bugs that the campaign must find.

/// A bug.
pub(crate) struct Plant {
    pub(crate) name: &'static str,
    /// File, text that occurs in it exactly once, and what to put in its place.
    pub(crate) edits: &'static [(&'static str, &'static str, &'static str)],
}

pub(crate) const PLANTS: &[Plant] = &[
    Plant {
        name: "skip a log row",
        edits: &[(
            "src/read/change_log.rs",
            "        rows += 1;\n",
            "        rows += 1;\n        if rows % 5 == 4 {\n            continue;\n        }\n",
        )],
    },
    Plant {
        name: "leave out log rows beyond a limit",
        edits: &[(
            "src/read/change_log.rs",
            "limit = MOST_ROWS + 1,",
            "limit = 2,",
        )],
    },
    Plant {
        name: "forget what was in progress (xip)",
        edits: &[(
            "src/read/change_log.rs",
            "            format!(\"{{{}}}\", in_progress.join(\",\")),\n",
            "            format!(\"{{{}}}\", in_progress.join(\",\").get(..0).unwrap_or_default()),\n",
        )],
    },
    Plant {
        name: "begin one transaction too late (xmax)",
        edits: &[(
            "src/read/change_log.rs",
            "WHERE xid >= $1::xid8 AND xid <",
            "WHERE xid > $1::xid8 AND xid <",
        )],
    },
    Plant {
        name: "cursor over the greatest log id seen",
        edits: &[
            (
                "src/read/change_log.rs",
                "const COLUMNS: &str = \"table_name, keys, note, xid, at\";",
                "const COLUMNS: &str = \"table_name, keys, note, xid, at, id\";\n\
                 static LAST: std::sync::atomic::AtomicI64 = std::sync::atomic::AtomicI64::new(0);",
            ),
            (
                "src/read/change_log.rs",
                "        rows += 1;\n",
                "        rows += 1;\n        LAST.fetch_max(row.get(5), std::sync::atomic::Ordering::Relaxed);\n",
            ),
            (
                "src/read/change_log.rs",
                "let args = [Arg::Text(&xmax), Arg::Text(&in_progress)];",
                "let last = LAST.load(std::sync::atomic::Ordering::Relaxed).to_string();\n    let _ = &xmax;\n    \
                 let args = [Arg::Text(&last), Arg::Text(&in_progress)];",
            ),
            (
                "src/read/change_log.rs",
                "WHERE xid >= $1::xid8 AND xid <",
                "WHERE id > $1::int8 AND xid <",
            ),
            (
                "src/read/change_log.rs",
                "            format!(\"{{{}}}\", in_progress.join(\",\")),\n",
                "            format!(\"{{{}}}\", in_progress.join(\",\").get(..0).unwrap_or_default()),\n",
            ),
        ],
    },
    Plant {
        name: "take null keys for none",
        edits: &[(
            "src/read/change_log.rs",
            "keys.ok_or_else(|| Reload::WholeTable(table_name.to_owned()))?;",
            "keys.unwrap_or_default();",
        )],
    },
    Plant {
        name: "publish in two steps",
        edits: &[
            (
                "src/store/state.rs",
                "impl Proof {\n",
                "impl Proof {\n    pub(crate) fn again(&self) -> Proof {\n        Proof(ArcSwap::new(self.0.load_full()))\n    }\n\n",
            ),
            (
                "src/store/publish.rs",
                "    pub(crate) fn publish(&mut self, mut state: State, mut change: Change) {\n",
                "    pub(crate) fn publish(&mut self, mut state: State, mut change: Change) {\n        let old = self.shared.load_full();\n        \
                 let mut table = state.table.clone();\n        for event in old.table.iter().step_by(2) {\n            \
                 table.insert(Arc::clone(event));\n        }\n        let half = State {\n            table,\n            \
                 epoch: state.epoch,\n            version: state.version,\n            stats: state.stats.clone(),\n            proof: state.proof.again(),\n        };\n        \
                 self.shared.state.store(Arc::new(half));\n        std::thread::sleep(std::time::Duration::from_millis(2));\n",
            ),
        ],
    },
    Plant {
        name: "wait for the bell without polling",
        edits: &[(
            "src/follow/mod.rs",
            "match timeout(quiet, select(rung, asked)).await {",
            "match timeout(quiet * 100_000, select(rung, asked)).await {",
        )],
    },
    Plant {
        name: "resume from the cursor after a lost connection",
        edits: &[
            (
                "src/follow/mod.rs",
                "    ended: bool,\n}\n",
                "    ended: bool,\n    kept: Option<Known>,\n}\n",
            ),
            (
                "src/follow/mod.rs",
                "            ended: false,\n",
                "            ended: false,\n            kept: None,\n",
            ),
            (
                "src/follow/mod.rs",
                "let mut known = self.warm_up(&reader, reason).await?;",
                "let mut known = match self.kept.take() {\n            Some(known) => known,\n            \
                 None => self.warm_up(&reader, reason).await?,\n        };",
            ),
            (
                "src/follow/mod.rs",
                "                    self.give_way(&reader, &mut locks, error).await?;\n                    put_off",
                "                    if let Err(error) = self.give_way(&reader, &mut locks, error).await {\n                        \
                 self.kept = Some(known);\n                        return Err(error);\n                    }\n                    put_off",
            ),
            (
                "src/read/mod.rs",
                "if begun.server != known.server {",
                "if false {",
            ),
        ],
    },
    Plant {
        name: "resume from the cursor into a new epoch",
        edits: &[
            (
                "src/follow/mod.rs",
                "    ended: bool,\n}\n",
                "    ended: bool,\n    kept: Option<Known>,\n}\n",
            ),
            (
                "src/follow/mod.rs",
                "            ended: false,\n",
                "            ended: false,\n            kept: None,\n",
            ),
            (
                "src/follow/mod.rs",
                "let mut known = self.warm_up(&reader, reason).await?;",
                "let mut known = match self.kept.take() {\n            Some(known) => {\n                self.epoch += 1;\n                \
                 let change = self.draft.change(Arc::clone(&known.cut), self.epoch);\n                \
                 let state = self.draft.state(known.cut.clone(), self.epoch, crate::view::Moment::now(), None);\n                \
                 self.publisher.publish(state, change);\n                known\n            }\n            \
                 None => self.warm_up(&reader, reason).await?,\n        };",
            ),
            (
                "src/follow/mod.rs",
                "                    self.give_way(&reader, &mut locks, error).await?;\n                    put_off",
                "                    if let Err(error) = self.give_way(&reader, &mut locks, error).await {\n                        \
                 self.kept = Some(known);\n                        return Err(error);\n                    }\n                    put_off",
            ),
            (
                "src/read/mod.rs",
                "if begun.server != known.server {",
                "if false {",
            ),
        ],
    },
    Plant {
        name: "READ COMMITTED instead of REPEATABLE READ",
        edits: &[(
            "src/read/schema.rs",
            "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; \\\n",
            "BEGIN ISOLATION LEVEL READ COMMITTED READ ONLY; \\\n",
        )],
    },
    Plant {
        name: "take no locks",
        edits: &[(
            "src/read/schema.rs",
            "LOCK TABLE {} IN ACCESS SHARE MODE; SET LOCAL",
            "/* {} */ SET LOCAL",
        )],
    },
    Plant {
        name: "ignore the fingerprint of the catalog",
        edits: &[(
            "src/read/mod.rs",
            "if fingerprint != known.fingerprint {",
            "if false {",
        )],
    },
    Plant {
        name: "ignore the low-water mark",
        edits: &[(
            "src/read/mod.rs",
            "if cursor.is_pruned(begun.pruned_below) {",
            "if false {",
        )],
    },
    Plant {
        name: "measure the age from after the snapshot",
        edits: &[
            (
                "src/read/transaction.rs",
                "    let began = Moment::now();\n    let locks",
                "    let locks",
            ),
            (
                "src/read/transaction.rs",
                "    let mut begun = Begun::read(config, row, began)?;\n",
                "    let began = Moment::now();\n    let mut begun = Begun::read(config, row, began)?;\n",
            ),
        ],
    },
    Plant {
        name: "measure the age from publishing",
        edits: &[(
            "src/follow/mod.rs",
            "let state = self.draft.state(cut, self.epoch, done.began, warmup);",
            "let state = self.draft.state(cut, self.epoch, crate::view::Moment::now(), warmup);",
        )],
    },
    Plant {
        name: "prove a view current by a read that failed",
        edits: &[
            (
                "src/follow/mod.rs",
                "        add(&self.publisher.counters().failures, 1);\n        let pause = backoff.next();\n        tracing::info!",
                "        add(&self.publisher.counters().failures, 1);\n        \
             self.publisher.prove(View(self.publisher.state()).cut(), crate::view::Moment::now());\n        \
             let pause = backoff.next();\n        tracing::info!",
            ),
            (
                "src/store/publish.rs",
                "    pub(crate) fn counters(&self) -> &Counting {",
                "    pub(crate) fn state(&self) -> Arc<State> {\n        self.shared.load_full()\n    }\n\n    \
             pub(crate) fn counters(&self) -> &Counting {",
            ),
        ],
    },
    Plant {
        name: "evict by the local clock",
        edits: &[
            (
                "src/read/mod.rs",
                "let evicted = draft.evict(begun.window_start);",
                "let evicted = draft.evict(Micros(chrono::Utc::now().timestamp_micros()).minus(config.lookback));",
            ),
            (
                "src/read/mod.rs",
                "let evicted = draft.evict(known.window_start);",
                "let evicted = draft.evict(Micros(chrono::Utc::now().timestamp_micros()).minus(config.lookback));",
            ),
        ],
    },
    Plant {
        name: "evict nothing",
        edits: &[
            (
                "src/read/mod.rs",
                "let evicted = draft.evict(begun.window_start);",
                "let evicted = 0;",
            ),
            (
                "src/read/mod.rs",
                "let evicted = draft.evict(known.window_start);",
                "let evicted = 0;",
            ),
        ],
    },
    Plant {
        name: "keep a body whose markets changed",
        edits: &[(
            "src/read/plan.rs",
            "held.snapshot_id == id && !dirty_markets.contains(&id);",
            "held.snapshot_id == id && dirty_markets.len() < 1_000_000;",
        )],
    },
    Plant {
        name: "take the kickoff of a changed event for known",
        edits: &[(
            "src/read/changed.rs",
            "match dirty.events.contains(&event_id) {",
            "match dirty.events.contains(&event_id) && event_id < 0 {",
        )],
    },
    Plant {
        name: "read an event that enters the window in part",
        edits: &[(
            "src/read/plan.rs",
            "        self.betpawa.extend(new.clone());\n        self.competitors.extend(new);\n",
            "        self.betpawa.extend(new);\n",
        )],
    },
    Plant {
        name: "leave out the events that a competitor event is linked to",
        edits: &[(
            "src/read/plan.rs",
            ".chain(linked_events)",
            ".chain(&linked_events[..0])",
        )],
    },
    Plant {
        name: "leave out the events whose competitors' markets changed",
        edits: &[(
            "src/read/plan.rs",
            ".chain(markets.flat_map(|id| draft.competitor_owners(*id)))",
            ".chain(markets.flat_map(|id| draft.competitor_owners(*id)).take(0))",
        )],
    },
    Plant {
        name: "hold on to an event that left the window",
        edits: &[(
            "src/read/plan.rs",
            "                draft.remove(event_id);\n",
            "",
        )],
    },
    Plant {
        name: "latest by captured_at instead of id",
        edits: &[(
            "src/read/schema.rs",
            "s.bookmaker_id, s.id DESC, s.captured_at DESC",
            "s.bookmaker_id, s.captured_at DESC, s.id DESC",
        )],
    },
    Plant {
        name: "ignore soft deletes",
        edits: &[(
            "src/read/schema.rs",
            "Some(_) => \"c.deleted_at IS NULL AND \",",
            "Some(_) => \"\",",
        )],
    },
    Plant {
        name: "keep the epoch",
        edits: &[(
            "src/follow/mod.rs",
            "self.epoch + u64::from(reason.is_new_epoch())",
            "self.epoch.max(u64::from(reason.is_new_epoch()))",
        )],
    },
    Plant {
        name: "write into a page that views share",
        edits: &[
            (
                "Cargo.toml",
                "unsafe_code = \"forbid\"",
                "unsafe_code = \"allow\"",
            ),
            (
                "src/store/table.rs",
                "        std::mem::replace(&mut Arc::make_mut(&mut page.events)[at], event)",
                "        let events = Arc::as_ptr(&page.events).cast_mut();\n        \
                 unsafe { std::mem::replace(&mut (&mut (*events))[at], event) }",
            ),
        ],
    },
    Plant {
        name: "mend what the audit finds without counting it",
        edits: &[(
            "src/follow/mod.rs",
            "add(&counters.audit_mismatches, mismatches.len());",
            "",
        )],
    },
    Plant {
        name: "audit without comparing",
        edits: &[(
            "src/read/mod.rs",
            "audit::compare(draft, &read, ids);",
            "audit::compare(draft, &read, ids).into_iter().take(0).collect();",
        )],
    },
    Plant {
        name: "drop changes silently when a subscriber lags",
        edits: &[(
            "src/store/changes.rs",
            "Err(RecvError::Lagged(missed)) => Some(Err(Lagged { missed })),",
            "Err(RecvError::Lagged(_)) => Some(Ok(Arc::default())),",
        )],
    },
    Plant {
        name: "leave kickoffs out of changes",
        edits: &[(
            "src/store/changes.rs",
            "            self.kickoffs.push(event_id);\n",
            "",
        )],
    },
    Plant {
        name: "forget what was in progress when waited for",
        edits: &[(
            "src/read/change_log.rs",
            " && xid < self.xmax && !self.in_progress.contains(&xid)",
            " && xid < self.xmax",
        )],
    },
    Plant {
        name: "wait for the transaction before",
        edits: &[(
            "src/cache.rs",
            "|state: &State| state.proof.cut().shows(xid);",
            "|state: &State| state.proof.cut().shows(xid - 1);",
        )],
    },
    Plant {
        name: "drop a snapshot for a malformed row",
        edits: &[
            (
                "src/read/rows.rs",
                "    malformed: usize,\n",
                "    malformed: usize,\n    dropped: Vec<i64>,\n",
            ),
            (
                "src/read/rows.rs",
                "            malformed: 0,\n",
                "            malformed: 0,\n            dropped: Vec::new(),\n",
            ),
            (
                "src/read/rows.rs",
                "            self.malformed += 1;\n",
                "            self.malformed += 1;\n            self.dropped.push(snapshot_id);\n",
            ),
            (
                "src/read/rows.rs",
                "        packing.end(self.tally);\n        let bodies = bodies.finish();\n",
                "        let mut bodies = bodies.finish();\n        bodies.retain(|id, _| !packing.dropped.contains(id));\n",
            ),
            (
                "src/read/rows.rs",
                "            found.extend(bodies.finish());\n",
                "            found.extend(bodies.finish());\n            found.retain(|id, _| !packing.dropped.contains(id));\n",
            ),
        ],
    },
];
