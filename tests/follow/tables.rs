//! Rust and each script list the tables and their keys. A real server shows that the lists agree.

use oddscache::sql::Table;
use oddscache_testkit::{Database, psql};

#[test]
fn the_installed_feed_logs_the_keys_of_these_tables() {
    let database = Database::seeded();
    let mut names: Vec<&str> = Table::ALL.map(Table::name).to_vec();
    names.sort_unstable();
    // All tables with triggers of the feed, except partitions.
    let watched = "select string_agg(distinct c.relname, ' ' order by c.relname) from pg_class c join pg_trigger t on t.tgrelid = c.oid
        join pg_proc p on p.oid = t.tgfoid where p.proname = 'log_change' and not c.relispartition";
    assert_eq!(database.psql(watched), names.join(" "));
    for table in Table::ALL {
        let (name, key) = (table.name(), table.key());
        assert_eq!(Table::of_name(name), Some(table));
        let logged = format!(
            "begin; update {name} set {key} = {key};
             select array_agg(k order by k) = (select array_agg(distinct {key}::int8 order by {key}::int8) from {name} where {key} is not null)
               and count(*) > 0 and count(distinct l.table_name) = 1 and min(l.table_name) = '{name}'
             from oddscache.change_log l, unnest(l.keys) k where l.xid = pg_current_xact_id(); commit"
        );
        assert_eq!(database.psql(&logged), "t", "{name}.{key}");
    }
}

/// The role that grants.sql creates may read these tables and those that have only names, and no others.
#[test]
fn the_granted_role_may_read_these_tables() {
    let database = Database::with_feed();
    psql(&database.name, &["-qf", "sql/grants.sql"]);
    let readable =
        "select string_agg(c.relname, ' ' order by c.relname) from pg_class c where c.relnamespace = 'public'::regnamespace
         and c.relkind in ('r', 'p') and not c.relispartition and has_table_privilege('oddscache', c.oid, 'SELECT')";
    let mut names: Vec<&str> = Table::ALL.map(Table::name).to_vec();
    names.extend(["bookmakers", "sports", "tournaments"]);
    names.sort_unstable();
    assert_eq!(database.psql(readable), names.join(" "));
}

#[test]
fn the_report_is_about_these_tables() {
    let database = Database::with_feed();
    let report = psql(&database.name, &["-qAt", "-f", "sql/check.sql"]);
    let triggers: Vec<&str> = report
        .lines()
        .filter(|line| line.starts_with("trigger|"))
        .collect();
    for table in Table::ALL {
        let object = format!("|public.{}|", table.name());
        let found = triggers
            .iter()
            .any(|line| line.contains(&object) && line.contains("|ok|"));
        assert!(found, "{object}: {report}");
    }
}
