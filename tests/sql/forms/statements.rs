//! The forms of statement.

/// What one form does.
pub(super) struct Form {
    pub(super) name: &'static str,
    pub(super) steps: &'static [Step],
    /// The first version of PostgreSQL that has it.
    pub(super) since: u32,
    /// What the log must have of it.
    pub(super) log: Log,
    /// Whether the test rolls it back, because it changes the tables' definitions.
    pub(super) undo: bool,
    /// Whether it names partitions or children. The log has nothing of those on another server.
    pub(super) direct: bool,
}

#[derive(Clone, Copy)]
pub(super) enum Step {
    /// SQL, as one message of the simple protocol.
    Sql(&'static str),
    /// COPY FROM STDIN, and the data that the client sends.
    Load(&'static str, &'static str),
    /// A prepared statement of the extended protocol, seven times.
    Prepared(&'static str),
}

#[derive(Clone, Copy, PartialEq)]
pub(super) enum Log {
    /// The keys. The whole table only if the kind of table requires it.
    Keys,
    /// The keys or the whole table.
    Whole,
    /// The triggers do not see it. A cache compares the catalog to find it.
    Catalog,
}

use Log::{Catalog, Keys, Whole};
use Step::{Load, Prepared, Sql};

const fn form(name: &'static str, steps: &'static [Step]) -> Form {
    Form {
        name,
        steps,
        since: 0,
        log: Keys,
        undo: false,
        direct: false,
    }
}

const fn whole(name: &'static str, steps: &'static [Step]) -> Form {
    Form {
        log: Whole,
        ..form(name, steps)
    }
}

const fn direct(form: Form) -> Form {
    Form {
        direct: true,
        ..form
    }
}

const fn since(since: u32, form: Form) -> Form {
    Form { since, ..form }
}

/// A change of the tables' definitions, and statements after it.
const fn ddl(name: &'static str, log: Log, steps: &'static [Step]) -> Form {
    Form {
        log,
        undo: true,
        ..form(name, steps)
    }
}

/// `{s}` is the column of `market_odds` that a writer sets, `{events@1}` the place of row 1.
pub(super) const FORMS: &[Form] = &[
    form("INSERT", &[
        Sql("insert into events (id, name) values (4, 'n'), (5, 'n')"),
        Sql("insert into competitor_events (id, betpawa_event_id) values (14, 1), (15, null)"),
        Sql("insert into odds_snapshots (event_id) values (1), (2), (1)"),
        Sql("insert into competitor_odds_snapshots (competitor_event_id) values (13)"),
        Sql("insert into market_odds ({s}) values (1), (4)"),
        Sql("insert into competitor_market_odds (snapshot_id) values (3)"),
    ]),
    form("INSERT ... SELECT", &[
        Sql("insert into odds_snapshots (event_id) select id from events order by id"),
        Sql("insert into market_odds ({s}) select id from odds_snapshots order by id"),
    ]),
    form("INSERT ... RETURNING", &[
        Sql("insert into market_odds ({s}) values (2), (3) returning id, snapshot_id, outcomes"),
        Sql("insert into odds_snapshots (event_id) values (3) returning id, tableoid::regclass"),
    ]),
    form("INSERT of no rows", &[Sql("insert into events select * from events where false"), Sql("insert into market_odds ({s}) select 1 where false")]),
    form("INSERT ... ON CONFLICT DO UPDATE", &[
        Sql("insert into events (id, name) values (1, 'c'), (4, 'c') on conflict (id) do update set name = excluded.name"),
        Sql("insert into competitor_events (id, betpawa_event_id) values (11, 2), (14, 3)
             on conflict (id) do update set betpawa_event_id = excluded.betpawa_event_id returning id, betpawa_event_id"),
        Sql("insert into market_odds (id, {s}) values (1, 2) on conflict (id) do update set outcomes = '[2]'"),
    ]),
    form("INSERT ... ON CONFLICT DO NOTHING", &[
        Sql("insert into events (id) values (1), (4) on conflict do nothing"),
        Sql("insert into market_odds (id, {s}) values (1, 1), (9, 3) on conflict do nothing returning id"),
    ]),
    form("UPDATE", &[
        Sql("update events set name = 'u' where id > 1"),
        Sql("update odds_snapshots set last_confirmed_at = '2025-01-01 13:00' where event_id <> 2"),
        Sql("update market_odds set outcomes = '[1]' returning id, snapshot_id"),
        Sql("update competitor_market_odds set outcomes = '[1]' where snapshot_id = 3"),
        Sql("update competitor_events set deleted_at = '2025-01-01'"),
        Sql("update competitor_odds_snapshots set captured_at = '2025-01-02'"),
    ]),
    form("UPDATE of the key", &[
        Sql("update market_odds set {s} = {s} + 1"),
        Sql("update odds_snapshots set event_id = event_id % 3 + 1"),
        Sql("update competitor_events set betpawa_event_id = 4 - betpawa_event_id where id <> 12"),
        Sql("update events set id = 7 where id = 3"),
        Sql("update competitor_market_odds set snapshot_id = 1 where snapshot_id = 2"),
    ]),
    form("UPDATE that moves rows to another partition", &[
        Sql("update odds_snapshots set captured_at = captured_at + interval '1 day' where event_id < 3"),
        Sql("update odds_snapshots set event_id = 3 - event_id where event_id < 3"),
        Sql("update market_odds set {s} = 2 where {s} = 1 returning snapshot_id"),
    ]),
    form("UPDATE of no rows", &[Sql("update events set name = 'x' where id < 0"), Sql("update market_odds set outcomes = '[]' where false")]),
    form("UPDATE ONLY", &[Sql("update only market_odds set outcomes = '[1]'"), Sql("update only events set name = 'only'")]),
    form("UPDATE ... FROM", &[
        Sql("update market_odds m set outcomes = to_jsonb(array[o.event_id]) from odds_snapshots o where o.id = m.snapshot_id and o.event_id > 1"),
        Sql("update odds_snapshots o set bookmaker_id = 2 from events e where e.id = o.event_id and e.id <> 2"),
    ]),
    form("DELETE", &[
        Sql("delete from market_odds where {s} <> 2"),
        Sql("delete from competitor_market_odds returning snapshot_id"),
        Sql("delete from odds_snapshots where event_id = 3"),
    ]),
    form("DELETE of no rows", &[Sql("delete from events where id < 0"), Sql("delete from market_odds where false")]),
    form("DELETE FROM ONLY", &[Sql("delete from only market_odds"), Sql("delete from only odds_snapshots")]),
    form("DELETE ... USING", &[
        Sql("delete from market_odds m using odds_snapshots o where o.id = m.snapshot_id and o.event_id > 1"),
        Sql("delete from odds_snapshots o using events e where e.id = o.event_id and e.id = 1 returning o.id, e.name"),
    ]),
    form("WHERE CURRENT OF", &[Sql(
        "begin; declare c cursor for select * from events where id < 3 order by id for update; fetch c; update events set name = 'c' where current of c;
         fetch c; delete from events where current of c; commit",
    )]),
    since(15, form("MERGE", &[
        Sql("merge into events e using (values (1), (2), (4)) v (id) on e.id = v.id
             when matched and v.id = 1 then update set name = 'm' when matched then delete when not matched then insert (id) values (v.id)"),
        Sql("merge into market_odds m using (values (1), (2), (4)) v (s) on m.snapshot_id = v.s
             when matched and v.s = 1 then update set outcomes = '[7]' when matched then delete when not matched then insert ({s}) values (v.s)"),
        Sql("merge into odds_snapshots o using events e on o.event_id = e.id and e.id <> 2
             when matched and e.id = 1 then update set captured_at = '2025-01-02 01:00' when matched then do nothing
             when not matched then insert (event_id) values (e.id)"),
    ])),
    since(17, form("MERGE ... RETURNING", &[
        Sql("merge into market_odds m using (values (1), (4)) v (s) on m.snapshot_id = v.s
             when matched then update set outcomes = '[7]' when not matched then insert ({s}) values (v.s) returning merge_action(), m.*"),
        Sql("merge into market_odds m using (values (2)) v (s) on m.snapshot_id = v.s
             when not matched by source and m.snapshot_id = 3 then delete when matched then do nothing returning merge_action(), m.*"),
    ])),
    since(18, form("RETURNING OLD and NEW", &[
        Sql("update market_odds set {s} = {s} + 1 returning old.snapshot_id, new.snapshot_id"),
        Sql("delete from odds_snapshots where event_id = 1 returning old.id"),
    ])),
    form("COPY", &[
        Load("copy events (id, name) from stdin", "4\tcopied\n5\tcopied\n"),
        Load("copy odds_snapshots (event_id) from stdin", "1\n2\n1\n"),
        Load("copy market_odds ({s}) from stdin", "1\n2\n4\n"),
        Load("copy competitor_market_odds (snapshot_id) from stdin with (format csv)", "3\n3\n"),
    ]),
    direct(form("COPY to a partition or child", &[
        Load("copy {odds_snapshots@1} (event_id) from stdin", "1\n1\n"),
        Load("copy {market_odds@1} ({s}) from stdin", "1\n"),
        Load("copy {market_odds@3} ({s}) from stdin", "3\n"),
    ])),
    direct(whole("COPY ... FREEZE", &[
        Sql("begin"), Sql("truncate {market_odds@1}"), Load("copy {market_odds@1} ({s}) from stdin (freeze)", "1\n1\n"), Sql("commit"),
        Sql("begin"), Sql("truncate {odds_snapshots@1}"), Load("copy {odds_snapshots@1} (event_id) from stdin (freeze)", "1\n"), Sql("commit"),
    ])),
    whole("TRUNCATE", &[Sql("truncate market_odds"), Sql("truncate odds_snapshots"), Sql("truncate only competitor_market_odds")]),
    whole("TRUNCATE of several", &[Sql("truncate market_odds, competitor_market_odds restart identity"), Sql("insert into market_odds ({s}) values (1)")]),
    whole("TRUNCATE ... CASCADE", &[Sql("truncate events cascade")]),
    direct(whole("TRUNCATE of a partition or child", &[Sql("truncate {odds_snapshots@1}"), Sql("truncate {market_odds@3}"), Sql("truncate {competitor_market_odds@1}")])),
    form("foreign key: delete cascades", &[Sql("delete from events where id = 1"), Sql("delete from competitor_events where id >= 12")]),
    form("foreign key: delete sets null", &[Sql("delete from odds_snapshots"), Sql("delete from events where id > 1")]),
    form("CTEs that write", &[
        Sql("with a as (update events set name = 'a' where id = 1 returning id), b as (delete from market_odds where {s} = 3 returning id),
                  c as (insert into competitor_market_odds (snapshot_id) select 2 returning id)
             insert into odds_snapshots (event_id) select a.id from a, b, c"),
        Sql("with moved as (delete from competitor_market_odds returning *) insert into market_odds (id, {s}) select id + 50, snapshot_id from moved"),
    ]),
    form("CTEs that write to the same table", &[
        Sql("with a as (update events set name = '1' where id = 1), b as (update events set name = '2' where id = 2),
                  c as (insert into events (id) values (4)), d as (insert into events (id) values (5)), e as (delete from events where id = 3)
             select count(*) from events"),
        Sql("with a as (update market_odds set {s} = 2 where {s} = 1), b as (update market_odds set {s} = 8 where {s} = 3) select 1"),
    ]),
    form("a block with EXCEPTION", &[Sql(
        "do $$ begin
            begin insert into events (id) values (4); raise 'no'; exception when others then null; end;
            begin update events set name = 'b' where id = 1; exception when others then null; end;
            begin insert into odds_snapshots (event_id) values (2); perform 1 / 0; exception when division_by_zero then
                insert into odds_snapshots (event_id) values (3); end;
        end $$",
    )]),
    form("many blocks with EXCEPTION", &[Sql(
        "do $$ begin for i in 1 .. 20 loop
            begin update market_odds set outcomes = to_jsonb(i) where {s} = 1 + i % 3; if i % 2 = 0 then raise 'no'; end if;
            exception when others then null; end;
        end loop; end $$",
    )]),
    form("ROW_COUNT, FOUND and a loop over RETURNING", &[Sql("select counts()")]),
    form("a procedure that commits", &[Sql("call commits()")]),
    form("SAVEPOINT, rolled back", &[Sql(
        "begin; insert into events (id) values (4); savepoint s; insert into events (id) values (5); update market_odds set outcomes = '[1]';
         rollback to s; insert into events (id) values (6); savepoint t; delete from market_odds where {s} = 1; release t; commit",
    )]),
    form("ROLLBACK", &[Sql("begin; delete from market_odds; insert into events (id) values (4); rollback"), Sql("update events set name = 'after' where id = 1")]),
    form("an error after it", &[Sql("begin; update events set name = 'x'; select 1 / 0; commit"), Sql("update events set name = 'y' where id = 2; select 1 / 0")]),
    direct(form("to a partition or child", &[
        Sql("insert into {odds_snapshots@1} (event_id) values (1) returning event_id"),
        Sql("insert into {market_odds@3} (id, {s}) values (60, 3)"),
        Sql("update {market_odds@1} set outcomes = '[4]'"),
        Sql("update {market_odds@3} set outcomes = '[5]'"),
        Sql("update {events@2} set name = 'direct'"),
        Sql("update {odds_snapshots@3} set bookmaker_id = 9"),
        Sql("delete from {competitor_market_odds@1}"),
        Sql("delete from {competitor_market_odds@3} where snapshot_id = 3"),
    ])),
    form("a view that can be updated", &[
        Sql("insert into plain_view (snapshot_id) values (1)"),
        Sql("update plain_view set outcomes = '[2]' where snapshot_id = 2"),
        Sql("delete from plain_view where snapshot_id = 3"),
        Load("copy plain_view (snapshot_id) from stdin", "1\n"),
    ]),
    form("a view WITH CHECK OPTION", &[
        Sql("insert into checked_view (snapshot_id) values (3)"),
        Sql("update checked_view set snapshot_id = 2 where snapshot_id = 1 returning *"),
    ]),
    form("a view with rules", &[
        Sql("insert into ruled_view (snapshot_id) values (1)"),
        Sql("update ruled_view set outcomes = '[2]' where snapshot_id = 2"),
        Sql("delete from ruled_view where snapshot_id = 3"),
    ]),
    form("a view with INSTEAD OF triggers", &[
        Sql("insert into triggered_view (snapshot_id) values (1)"),
        Sql("update triggered_view set outcomes = '[2]' where snapshot_id = 2"),
        Sql("delete from triggered_view where snapshot_id = 3"),
        Load("copy triggered_view (snapshot_id) from stdin", "1\n"),
    ]),
    form("SELECT ... FOR UPDATE beside it", &[
        Sql("begin; select id from events where id = 1 for update; select id from market_odds for no key update; update events set name = 'l' where id = 1; commit"),
    ]),
    form("a prepared statement", &[
        Prepared("update market_odds set outcomes = outcomes || '[1]' where {s} = 2"),
        Prepared("insert into odds_snapshots (event_id) values (1)"),
        Prepared("delete from events where id = 3"),
    ]),
    form("PREPARE TRANSACTION without a notification", &[
        Sql("begin; set local oddscache.notify = off; update events set name = 'p'; insert into market_odds ({s}) values (2); prepare transaction '{transaction}'"),
        Sql("commit prepared '{transaction}'"),
    ]),
    form("SET CONSTRAINTS", &[Sql("begin; set constraints all immediate; insert into odds_snapshots (event_id) values (1); commit")]),
    form("isolation levels", &[
        Sql("begin isolation level serializable; update events set name = 's' where id = 1; insert into market_odds ({s}) values (1); commit"),
        Sql("begin isolation level repeatable read; update events set name = 'r' where id = 2; delete from odds_snapshots where event_id = 2; commit"),
        Sql("begin read only; update events set name = 'no'; commit"),
    ]),
    // Changes of the tables' definitions.
    ddl("ALTER TABLE ... ADD COLUMN", Keys, &[
        Sql("alter table market_odds add extra int default 1; update market_odds set extra = 2, outcomes = '[2]' where {s} = 2;
             insert into market_odds ({s}, extra) values (4, 3); alter table market_odds drop extra"),
    ]),
    ddl("ALTER TABLE ... DROP COLUMN", Keys, &[Sql("alter table market_odds add extra int; update market_odds set extra = 1; alter table market_odds drop extra; delete from market_odds where {s} = 2")]),
    ddl("ALTER COLUMN ... TYPE that rewrites", Keys, &[
        Sql("update market_odds set outcomes = '[3]' where {s} = 1; alter table market_odds alter outcomes type text; update market_odds set outcomes = 'x' where {s} = 3"),
    ]),
    ddl("ALTER COLUMN ... TYPE of the key", Keys, &[
        Sql("update competitor_events set deleted_at = '2025-01-01' where id = 11;
             alter table competitor_events alter betpawa_event_id type bigint; update competitor_events set deleted_at = '2025-01-02' where id = 12"),
    ]),
    ddl("CREATE TABLE ... PARTITION OF afterwards", Keys, &[
        Sql("create table late partition of odds_snapshots {bound}; insert into odds_snapshots (event_id, captured_at) values (3, '2025-02-02')"),
    ]),
    ddl("ATTACH PARTITION", Catalog, &[
        Sql("create table late (like odds_snapshots); insert into late values (70, 3, 1, '2025-02-02'); alter table odds_snapshots attach partition late {bound}"),
    ]),
    ddl("DETACH PARTITION", Catalog, &[
        Sql("alter table odds_snapshots detach partition {odds_snapshots@1}; insert into {odds_snapshots@1} (event_id) values (1); drop table {odds_snapshots@1}"),
    ]),
    ddl("INHERIT and NO INHERIT", Catalog, &[
        Sql("create table late (like market_odds including defaults including generated); alter table late inherit market_odds; insert into late ({s}) values (3);
             update market_odds set outcomes = '[8]'; alter table late no inherit market_odds; insert into late ({s}) values (2)"),
    ]),
    ddl("a child made afterwards, through the parent", Keys, &[
        Sql("create table late () inherits (market_odds)"), Sql("update market_odds set outcomes = '[8]' where {s} = 3; delete from market_odds where {s} = 1"),
    ]),
    ddl("DISABLE and ENABLE TRIGGER USER", Catalog, &[
        Sql("alter table market_odds disable trigger user; insert into market_odds ({s}) values (3); alter table market_odds enable trigger user;
             update market_odds set outcomes = '[8]'"),
    ]),
    ddl("SET UNLOGGED, CLUSTER, RENAME", Keys, &[
        Sql("alter table market_odds set unlogged; update market_odds set outcomes = '[8]'; alter table market_odds set logged; delete from market_odds where {s} = 1"),
    ]),
    ddl("a statement and TRUNCATE and DROP in a transaction", Whole, &[
        Sql("update market_odds set outcomes = '[8]'; truncate market_odds; insert into market_odds ({s}) values (3); truncate market_odds; create index on market_odds ({s})"),
    ]),
];
