//! The kinds of table that the six tables can be, with three rows each.

use oddscache_testkit::{cluster, programs::missing};

use super::{OWNER, TABLES, WRITER};

/// How a kind lays out the six tables. The owner of the tables runs `tables`.
pub(super) struct Kind {
    pub(super) name: &'static str,
    /// Makes the tables.
    tables: String,
    /// Makes the tables that the foreign tables stand for, in another database. Without this there is no such database.
    pub(super) far: Option<String>,
    /// The relation that holds row `n` of a table.
    place: fn(&str, u32) -> String,
    /// The column of `market_odds` that a writer sets to choose the key.
    pub(super) settable: &'static str,
    /// The bounds of one more partition of `odds_snapshots`.
    bound: &'static str,
    /// Whether a statement that names the table is logged as a change of the whole table.
    pub(super) whole: bool,
}

/// The differences between kinds in the columns of the six tables.
struct Columns {
    /// The text between CREATE and TABLE.
    create: &'static str,
    /// The type of the ids.
    id: &'static str,
    /// The column of `market_odds` that says what changed.
    snapshot: &'static str,
    /// Whether there are primary and foreign keys.
    keys: bool,
    /// For each table, the column that it is partitioned by, with the primary key. Empty if it is not partitioned.
    by: fn(&str) -> Option<(String, &'static str)>,
}

const PLAIN: Columns = Columns {
    create: "create table",
    id: "int",
    snapshot: "snapshot_id bigint not null",
    keys: true,
    by: |_| None,
};

/// The column that a table is partitioned by with LIST or HASH.
fn column(table: &str) -> &'static str {
    match table {
        "odds_snapshots" => "event_id",
        "market_odds" | "competitor_market_odds" => "snapshot_id",
        _ => "id",
    }
}

fn primary_key(table: &str) -> &'static str {
    match table {
        "odds_snapshots" => "id, event_id",
        "market_odds" | "competitor_market_odds" => "id, snapshot_id",
        _ => "id",
    }
}

fn list(table: &str) -> Option<(String, &'static str)> {
    let by = format!("partition by list ({})", column(table));
    Some((by, primary_key(table)))
}

fn hash(table: &str) -> Option<(String, &'static str)> {
    let by = format!("partition by hash ({})", column(table));
    Some((by, primary_key(table)))
}

fn range(table: &str) -> Option<(String, &'static str)> {
    let by = "partition by range (captured_at)".to_owned();
    (table == "odds_snapshots").then_some((by, "id, captured_at"))
}

fn nested(table: &str) -> Option<(String, &'static str)> {
    let by = "partition by range (snapshot_id)".to_owned();
    match table {
        "market_odds" | "competitor_market_odds" => Some((by, "id, snapshot_id")),
        _ => range(table),
    }
}

/// The columns of a table.
fn columns(of: &Columns, table: &str) -> String {
    let Columns { id, snapshot, .. } = of;
    match table {
        "events" => format!("id {id} not null, name text, kickoff timestamp default '2025-01-01'"),
        "competitor_events" => format!("id {id} not null, source text default 'sportybet', betpawa_event_id {id}, deleted_at timestamp"),
        "odds_snapshots" => format!(
            "id bigint not null default nextval('odds_ids'), event_id {id} not null, bookmaker_id int not null default 1,
             captured_at timestamp not null default '2025-01-01 12:00', raw_response jsonb, last_confirmed_at timestamp"
        ),
        "competitor_odds_snapshots" => format!(
            "id int not null default nextval('competitor_ids'), competitor_event_id {id} not null, captured_at timestamp default '2025-01-01'"
        ),
        "market_odds" => format!("id bigint not null default nextval('market_ids'), {snapshot}, outcomes jsonb not null default '[]'"),
        _ => "id bigint not null default nextval('market_ids'), snapshot_id int not null, outcomes jsonb not null default '[]'".to_owned(),
    }
}

/// The six tables.
fn six(of: &Columns) -> String {
    let mut sql =
        "create sequence odds_ids; create sequence competitor_ids; create sequence market_ids;"
            .to_owned();
    for table in TABLES {
        let (partition, key) = (of.by)(table).unwrap_or((String::new(), "id"));
        let foreign = match table {
            "competitor_events" => "betpawa_event_id) references events on delete set null",
            "odds_snapshots" => "event_id) references events on delete cascade",
            "competitor_odds_snapshots" => {
                "competitor_event_id) references competitor_events on delete cascade"
            }
            "competitor_market_odds" => {
                "snapshot_id) references competitor_odds_snapshots on delete cascade"
            }
            _ => "",
        };
        let keys = match (of.keys, foreign) {
            (false, _) => String::new(),
            (true, "") => format!(", primary key ({key})"),
            (true, foreign) => format!(", primary key ({key}), foreign key ({foreign}"),
        };
        let columns = columns(of, table);
        sql.push_str(&format!(
            "{} {table} ({columns}{keys}) {partition};\n",
            of.create
        ));
    }
    sql
}

/// SQL for each table.
fn each(sql: impl Fn(&str) -> String) -> String {
    TABLES.iter().map(|table| sql(table)).collect()
}

fn itself(table: &str, _: u32) -> String {
    table.to_owned()
}

/// The list's partitions: `_1` and `_2` hold rows 1 and 2, the third holds row 3.
fn in_list(table: &str, n: u32) -> String {
    format!("{table}_{n}")
}

/// The child holds row 3.
fn in_child(table: &str, n: u32) -> String {
    match n {
        3 => format!("{table}_child"),
        _ => table.to_owned(),
    }
}

const RANGES: &str = "
    create table odds_snapshots_1 partition of odds_snapshots for values from ('2025-01-01') to ('2025-01-02');
    create table odds_snapshots_2 partition of odds_snapshots for values from ('2025-01-02') to ('2025-01-03');
    create table odds_snapshots_default partition of odds_snapshots default;";

/// Whether foreign tables work. postgres_fdw sets the time zone UTC, for which a small system may have no file.
pub(super) fn foreign_tables_work() -> bool {
    let set = cluster().psql("postgres", &["-qc", "set timezone = 'UTC'"]);
    let works = set.expect("psql runs").status.success();
    if !works {
        missing("the time zone UTC", "apt-get install tzdata");
    }
    works
}

/// Makes the server `far` stand for another database of the cluster.
pub(super) fn far_server(database: &str) -> String {
    format!(
        "create extension postgres_fdw;
         create server far foreign data wrapper postgres_fdw options (host '{}', port '{}', dbname '{database}');
         create user mapping for public server far options (user 'postgres', password_required 'false');
         grant usage on foreign server far to {OWNER};",
        cluster().socket_dir().display(),
        cluster().port()
    )
}

impl Kind {
    fn new(name: &'static str, tables: String) -> Kind {
        Kind {
            name,
            tables,
            far: None,
            place: itself,
            settable: "snapshot_id",
            bound: "default",
            whole: false,
        }
    }

    pub(super) fn plain() -> Kind {
        Kind::new("plain", six(&PLAIN))
    }

    pub(super) fn unlogged() -> Kind {
        let tables = six(&Columns {
            create: "create unlogged table",
            ..PLAIN
        });
        Kind::new("unlogged", tables)
    }

    /// The tables as the application has them.
    pub(super) fn range() -> Kind {
        let tables = six(&Columns { by: range, ..PLAIN }) + RANGES;
        Kind {
            place: |table, _| match table {
                "odds_snapshots" => "odds_snapshots_1".to_owned(),
                _ => table.to_owned(),
            },
            bound: "for values from ('2025-02-01') to ('2025-03-01')",
            ..Kind::new("range", tables)
        }
    }

    pub(super) fn list() -> Kind {
        let tables = six(&Columns { by: list, ..PLAIN })
            + &each(|table| {
                format!(
                    "create table {table}_1 partition of {table} for values in (1, 11);
                     create table {table}_2 partition of {table} for values in (2, 12);
                     create table {table}_3 partition of {table} default;"
                )
            });
        Kind {
            place: in_list,
            bound: "for values in (40)",
            ..Kind::new("list", tables)
        }
    }

    pub(super) fn hash() -> Kind {
        let tables = six(&Columns { by: hash, ..PLAIN })
            + &each(|table| {
                (0..2)
                    .map(|n| format!("create table {table}_{n} partition of {table} for values with (modulus 2, remainder {n});"))
                    .collect()
            });
        Kind::new("hash", tables)
    }

    /// Partitions of partitions.
    pub(super) fn nested() -> Kind {
        let tables = six(&Columns { by: nested, ..PLAIN })
            + "create table odds_snapshots_1 partition of odds_snapshots for values from ('2025-01-01') to ('2025-01-02') partition by hash (captured_at);
               create table odds_snapshots_2 partition of odds_snapshots default;
               create table odds_snapshots_1_0 partition of odds_snapshots_1 for values with (modulus 1, remainder 0);"
            + &["market_odds", "competitor_market_odds"]
                .map(|table| {
                    format!(
                        "create table {table}_1 partition of {table} for values from (1) to (3) partition by list (snapshot_id);
                         create table {table}_1_1 partition of {table}_1 for values in (1);
                         create table {table}_1_default partition of {table}_1 default;
                         create table {table}_default partition of {table} default;"
                    )
                })
                .concat();
        Kind {
            place: |table, n| match (table, n) {
                ("odds_snapshots", _) => "odds_snapshots_1_0".to_owned(),
                ("market_odds" | "competitor_market_odds", 1) => format!("{table}_1_1"),
                ("market_odds" | "competitor_market_odds", 2) => format!("{table}_1_default"),
                ("market_odds" | "competitor_market_odds", _) => format!("{table}_default"),
                _ => table.to_owned(),
            },
            bound: "for values from ('2025-02-01') to ('2025-03-01')",
            ..Kind::new("nested", tables)
        }
    }

    /// Partitions whose columns have another order, and one of whose columns was dropped.
    pub(super) fn shuffled() -> Kind {
        let tables = six(&Columns {
            by: list,
            keys: false,
            ..PLAIN
        }) + &each(|table| {
            let columns = columns(&PLAIN, table);
            let reversed: Vec<&str> = columns.rsplit(", ").collect();
            format!(
                "create table {table}_1 (gone int, {}); alter table {table}_1 drop gone;
                     alter table {table} attach partition {table}_1 for values in (1, 11);
                     create table {table}_2 partition of {table} for values in (2, 12);
                     create table {table}_3 (gone int, {0}); alter table {table}_3 drop gone;
                     alter table {table} attach partition {table}_3 default;",
                reversed.join(", ")
            )
        });
        Kind {
            place: in_list,
            bound: "for values in (40)",
            ..Kind::new("shuffled", tables)
        }
    }

    /// Tables with a child each, which holds row 3.
    pub(super) fn inherited() -> Kind {
        let tables = six(&PLAIN)
            + &each(|table| format!("create table {table}_child () inherits ({table});"));
        Kind {
            place: in_child,
            ..Kind::new("inherited", tables)
        }
    }

    /// The tables that the foreign tables stand for. The local server fills in the defaults.
    fn behind() -> String {
        each(|table| {
            let mut columns = columns(&PLAIN, table);
            for ids in ["odds_ids", "competitor_ids", "market_ids"] {
                columns = columns.replace(&format!("default nextval('{ids}')"), "");
            }
            format!("create table {table} ({columns});")
        })
    }

    /// Partitions on another server, which hold row 3.
    pub(super) fn foreign_partitions() -> Kind {
        let tables = six(&Columns {
            by: list,
            keys: false,
            ..PLAIN
        }) + &each(|table| {
            format!(
                    "create table {table}_1 partition of {table} for values in (1, 11);
                     create table {table}_2 partition of {table} default;
                     create foreign table {table}_3 partition of {table} for values in (3, 4, 13, 14) server far options (table_name '{table}');"
                )
        });
        Kind {
            far: Some(Kind::behind()),
            place: in_list,
            bound: "for values in (40)",
            whole: true,
            ..Kind::new("foreign partition", tables)
        }
    }

    /// Children on another server, which hold row 3.
    pub(super) fn foreign_children() -> Kind {
        let tables = six(&Columns {
            keys: false,
            ..PLAIN
        }) + &each(|table| {
            format!(
                "create foreign table {table}_child () inherits ({table}) server far options (table_name '{table}');"
            )
        });
        Kind {
            far: Some(Kind::behind()),
            place: in_child,
            whole: true,
            ..Kind::new("foreign child", tables)
        }
    }

    /// Policies that hide rows from a writer, and from the owner, too.
    pub(super) fn row_security() -> Kind {
        let tables = six(&PLAIN)
            + &each(|table| {
                format!(
                    "alter table {table} enable row level security; alter table {table} force row level security;
                     create policy reads on {table} using ({}::int <> 2) with check (true);",
                    column(table)
                )
            });
        Kind::new("row security", tables)
    }

    /// The key is computed from another column.
    pub(super) fn generated() -> Kind {
        let tables = six(&Columns {
            snapshot: "base bigint not null, snapshot_id bigint generated always as (base + 0) stored",
            ..PLAIN
        });
        Kind {
            settable: "base",
            ..Kind::new("generated key", tables)
        }
    }

    pub(super) fn small_ids() -> Kind {
        let tables = six(&Columns {
            id: "smallint",
            snapshot: "snapshot_id smallint not null",
            ..PLAIN
        });
        Kind::new("int2 keys", tables)
    }

    pub(super) fn large_ids() -> Kind {
        let tables = six(&Columns {
            id: "bigint",
            ..PLAIN
        });
        Kind::new("int8 keys", tables)
    }

    /// The application has its own triggers. One changes the key, one skips rows, one writes at the end of the
    /// transaction, and one reads the rows of the statement.
    pub(super) fn own_triggers() -> Kind {
        let tables = six(&PLAIN)
            + "create table seen (what text);
               create function other_key() returns trigger language plpgsql as $$ begin
                   if new.outcomes = '[9]' then return null; end if;
                   if new.snapshot_id = 4 then new.snapshot_id := 5; end if;
                   return new; end $$;
               create trigger a before insert or update on market_odds for each row execute function other_key();
               create function at_the_end() returns trigger language plpgsql security definer as $$ begin
                   update events set kickoff = '2025-03-03' where id = new.event_id; return null; end $$;
               create constraint trigger b after insert or update on odds_snapshots deferrable initially deferred
                   for each row execute function at_the_end();
               create function sees() returns trigger language plpgsql security definer as $$ begin
                   insert into seen select count(*) || ' at ' || pg_trigger_depth() || tg_op from changed;
                   insert into market_odds (snapshot_id) select 6 from changed limit 1; return null; end $$;
               create trigger z after update on events referencing new table as changed for each statement execute function sees();
               create trigger a after delete on events referencing old table as changed for each statement execute function sees();";
        Kind::new("own triggers", tables.to_owned())
    }

    /// The superuser's SQL, and then the owner's.
    pub(super) fn setup(&self, database: &str, far: Option<&str>) -> String {
        format!(
            "set client_min_messages = warning; {}
             grant create on database {database} to {OWNER}; grant create, usage on schema public to {OWNER};
             set role {OWNER};
             {}
             create view plain_view as select * from competitor_market_odds;
             create view checked_view as select * from competitor_market_odds where snapshot_id < 3 with check option;
             create view ruled_view as select * from competitor_market_odds;
             create rule i as on insert to ruled_view do instead insert into competitor_market_odds (snapshot_id) values (new.snapshot_id);
             create rule d as on delete to ruled_view do instead delete from competitor_market_odds where id = old.id;
             create rule u as on update to ruled_view do instead (
                 update competitor_market_odds set outcomes = new.outcomes where id = old.id; update events set name = 'rule' where id = 1);
             create view triggered_view as select * from competitor_market_odds;
             create function instead() returns trigger language plpgsql as $$ begin
                 if tg_op = 'INSERT' then insert into competitor_market_odds (snapshot_id) values (new.snapshot_id); return new; end if;
                 if tg_op = 'UPDATE' then update competitor_market_odds set outcomes = new.outcomes where id = old.id; return new; end if;
                 delete from competitor_market_odds where id = old.id; return old; end $$;
             create trigger i instead of insert or update or delete on triggered_view for each row execute function instead();
             create procedure commits() language plpgsql as $$ begin
                 for i in 1 .. 7 loop update events set name = 'p' || i where id = 1; if i % 3 = 0 then commit; end if; end loop; end $$;
             create function counts() returns text language plpgsql as $$ declare n int; said text := ''; sum int := 0; r record; begin
                 insert into events (id) values (4); get diagnostics n = row_count; said := said || n || found;
                 update events set name = 'f' where id < 0; get diagnostics n = row_count; said := said || n || found;
                 delete from market_odds where id < 3; get diagnostics n = row_count; said := said || n || found;
                 for r in delete from competitor_market_odds returning snapshot_id loop sum := sum + r.snapshot_id; end loop;
                 return said || sum || found; end $$;
             grant select, insert, update, delete, truncate on all tables in schema public to {WRITER};
             grant usage on all sequences in schema public to {WRITER}; grant usage on schema public to {WRITER};",
            far.map(far_server).unwrap_or_default(),
            self.tables
        )
    }

    /// Restores rows 1 to 3 and no others, without firing the application's triggers.
    pub(super) fn rows(&self) -> String {
        let mut places = Vec::new();
        let mut rows = String::new();
        for table in TABLES {
            let column = match table {
                "events" => "name",
                "competitor_events" => "betpawa_event_id",
                "odds_snapshots" => "event_id",
                "competitor_odds_snapshots" => "competitor_event_id",
                "market_odds" => self.settable,
                _ => "snapshot_id",
            };
            for n in 1..=3 {
                let values = match table {
                    "competitor_events" => format!("1{n}, {n}"),
                    "competitor_odds_snapshots" => format!("{n}, 1{n}"),
                    "events" => format!("{n}, 'e{n}'"),
                    _ => format!("{n}, {n}"),
                };
                let place = (self.place)(table, n);
                rows.push_str(&format!(
                    "insert into {place} (id, {column}) values ({values});"
                ));
                places.push(place);
            }
        }
        if !self.whole {
            places.extend(TABLES.map(str::to_owned));
        }
        places.sort();
        places.dedup();
        // Without ONLY this also empties partitions and children that have no row in the beginning.
        let only = if self.whole { "only " } else { "" };
        let delete = |place: &String| format!("delete from {only}{place};");
        let deletes: String = places.iter().map(delete).collect();
        // A statement may have filled these foreign tables.
        let others = match self.name {
            "foreign partition" => each(|table| format!("delete from {table}_2;")),
            _ => String::new(),
        };
        format!(
            "set session_replication_role = replica; {deletes} {others} {rows}
             select setval('odds_ids', 100), setval('competitor_ids', 100), setval('market_ids', 100);
             reset session_replication_role;"
        )
    }

    /// Whether a row of this key lies on another server.
    pub(super) fn is_far(&self, key: i64) -> bool {
        self.far.is_some() && matches!(key, 3 | 4 | 13 | 14)
    }

    /// Fills the kind's names into a statement: `{events@1}` is the relation that holds row 1 of `events`.
    pub(super) fn fill(&self, sql: &str) -> String {
        let mut sql = sql
            .replace("{s}", self.settable)
            .replace("{bound}", self.bound);
        for table in TABLES {
            for n in 1..=3 {
                sql = sql.replace(&format!("{{{table}@{n}}}"), &(self.place)(table, n));
            }
        }
        sql
    }
}
