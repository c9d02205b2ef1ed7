//! The functions that `sql/install.sql` creates.

use super::fill::schema_name;

/// A function of the feed. Its body is in `sql/install.sql`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Function {
    /// Its name, without the schema.
    pub name: &'static str,
    /// The types of its arguments, as `regprocedure` shows them.
    pub arguments: &'static str,
    /// The type of its result.
    pub result: &'static str,
    /// The language of its body.
    pub language: &'static str,
    /// Whether it is SECURITY DEFINER, so that it runs with the rights of its owner. `install.sql` revokes EXECUTE on
    /// such a function from PUBLIC.
    pub security_definer: bool,
    /// The settings in its definition (`SET ...`), as `pg_proc.proconfig` has them.
    pub settings: &'static [&'static str],
}

/// All functions of the feed.
pub const FUNCTIONS: [Function; 5] = [
    Function {
        name: "feed_version",
        arguments: "",
        result: "integer",
        language: "sql",
        security_definer: false,
        settings: &[],
    },
    definer("prune", "interval", "bigint", BOTH),
    definer("heartbeat", "", "void", BOTH),
    definer("resync", "text", "void", BOTH),
    definer(
        "log_change",
        "",
        "trigger",
        &[SEARCH_PATH, LOCK_TIMEOUT, "exit_on_error=off"],
    ),
];

/// Keeps the function from finding objects of other roles.
const SEARCH_PATH: &str = "search_path=pg_catalog, pg_temp";
/// Bounds how long a caller, such as a writer, can wait for a lock.
const LOCK_TIMEOUT: &str = "lock_timeout=500ms";
const BOTH: &[&str] = &[SEARCH_PATH, LOCK_TIMEOUT];

const fn definer(
    name: &'static str,
    arguments: &'static str,
    result: &'static str,
    settings: &'static [&'static str],
) -> Function {
    Function {
        name,
        arguments,
        result,
        language: "plpgsql",
        security_definer: true,
        settings,
    }
}

impl Function {
    /// Whether `install` gives the function exactly this body (`pg_proc.prosrc`). `install` is the text of
    /// [`Script::Install`](super::Script::Install), filled in with this schema and the feed's channel.
    #[must_use]
    pub fn has_body(&self, body: &str, install: &str, cache_schema: &str) -> bool {
        let head = format!("{}.{}(", schema_name(cache_schema), self.name);
        install
            .split("CREATE OR REPLACE FUNCTION ")
            .any(|made| made.starts_with(&head) && made.contains(&format!("${body}$")))
    }
}
