//! Are the feed's functions those that this binary would install? What it would install is computed by the server from the
//! text of `sql/install.sql` itself, by the very statement that installs them, cut off before it does.

use std::collections::BTreeMap;

use oddscache::sql::{FEED_VERSION, FEED_VERSIONS, Script, Step, Variables};
use serde::Deserialize;

use super::{context::Context, finding::Finding, tables::constants};
use crate::server::session::{Session, Trouble, identifier, literal};

const WHY: &str = "what the functions write to the log is what the cache relies on";
const INSTALL: &str = "oddscache sql install --apply (sql/install.sql), as the owner of the tables";

pub(super) async fn check(context: &Context<'_>) -> Result<Vec<Finding>, Trouble> {
    let session = context.session().await?;
    let functions = functions(context, &session).await?;
    let mut findings: Vec<Finding> = match followed_version(context, &session, &functions).await? {
        // Its functions have other bodies than this binary's.
        Some(older) => vec![older],
        None => functions
            .iter()
            .flat_map(|function| judge(function, context.cache_schema))
            .collect(),
    };
    if findings.is_empty() {
        let what = format!(
            "all {} functions are as this binary installs them",
            functions.len()
        );
        findings.push(Finding::ok("feed.function", what));
    }
    findings.extend(owners(&functions, context.cache_schema));
    findings.extend(strangers(context, &session, &functions).await?);
    Ok(findings)
}

/// A finding if the feed is of an older version that this binary follows.
async fn followed_version(
    context: &Context<'_>,
    session: &Session,
    functions: &[Function],
) -> Result<Option<Finding>, Trouble> {
    #[derive(Deserialize)]
    struct Installed {
        version: i32,
    }
    let mut there = functions.iter().filter(|function| function.there);
    if !there.any(|function| function.name == "feed_version") {
        return Ok(None);
    }
    let cache = identifier(context.cache_schema);
    let sql = format!("SELECT {cache}.feed_version() AS version");
    let Installed { version } = session.row(&sql).await?;
    if version == FEED_VERSION || !FEED_VERSIONS.contains(&version) {
        return Ok(None);
    }
    let what = format!("is of version {version}; this binary installs version {FEED_VERSION}");
    Ok(Some(
        Finding::warn("feed.version", what)
            .object(format!("schema {}", context.cache_schema))
            .why(
                "caches of this version follow it, but the next version may not; running caches keep on while it is upgraded",
            )
            .fix(INSTALL),
    ))
}

/// A function as it should be, beside what there is.
#[derive(Debug, Deserialize)]
struct Function {
    name: String,
    there: bool,
    /// The body is the binary's.
    same_body: Option<bool>,
    same_language: Option<bool>,
    /// Returns what it should.
    same_result: Option<bool>,
    /// SECURITY DEFINER where it should be, and only there.
    same_definer: Option<bool>,
    /// Settings of its own, of which search_path keeps strangers' objects out.
    same_settings: Option<bool>,
    /// It should run with its owner's rights.
    is_definer: bool,
    owner: Option<String>,
    owner_is_superuser: Option<bool>,
    owns_a_table: Option<bool>,
}

/// All functions that the binary would install.
async fn functions(context: &Context<'_>, session: &Session) -> Result<Vec<Function>, Trouble> {
    let cache = context.cache_schema;
    let state = format!(
        "SELECT s.channel AS channel FROM {}.log_state AS s",
        identifier(cache)
    );
    #[derive(Deserialize)]
    struct State {
        channel: String,
    }
    let state: State = session.row(&state).await?;
    let before = expectation(context.app_schema, cache, &state.channel).map_err(Trouble::new)?;
    let sql = format!(
        "SELECT want.name, p.oid IS NOT NULL AS there, p.prosrc = want.body AS same_body, \
           want.attributes LIKE 'LANGUAGE ' || l.lanname || ' %' AS same_language, \
           p.prorettype = to_regtype(want.returns) AS same_result, \
           want.attributes LIKE '%SECURITY DEFINER%' AS is_definer, \
           p.prosecdef = (want.attributes LIKE '%SECURITY DEFINER%') AS same_definer, \
           p.proconfig IS NOT DISTINCT FROM want.config AS same_settings, \
           p.proowner::regrole::text AS owner, r.rolsuper AS owner_is_superuser, \
           EXISTS (SELECT FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace \
             WHERE n.nspname = {app} AND c.relname IN ({tables}) AND c.relowner = p.proowner) AS owns_a_table \
         FROM jsonb_to_recordset(current_setting('oddscache.functions')::jsonb) \
           AS want (name text, types text, returns text, attributes text, config text[], body text) \
         LEFT JOIN pg_proc AS p ON p.oid = to_regprocedure(format('%I.%I(%s)', {cache}::text, want.name, want.types)) \
         LEFT JOIN pg_language AS l ON l.oid = p.prolang \
         LEFT JOIN pg_roles AS r ON r.oid = p.proowner ORDER BY want.name",
        cache = literal(cache),
        app = literal(context.app_schema),
        tables = constants(),
    );
    let functions: Vec<Function> = session.rows_after(&before, &sql).await?;
    if functions.is_empty() {
        return Err(Trouble::new("install.sql was found to install no function"));
    }
    Ok(functions)
}

/// The statements after which `oddscache.functions` holds, as JSON, the functions that `install.sql` would make with these
/// names; or what is not as expected in it.
fn expectation(app_schema: &str, cache_schema: &str, channel: &str) -> Result<String, String> {
    let variables = Variables::from([
        ("app_schema".to_owned(), app_schema.to_owned()),
        ("cache_schema".to_owned(), cache_schema.to_owned()),
        ("channel".to_owned(), channel.to_owned()),
    ]);
    let steps = Script::Install
        .steps(&variables)
        .map_err(|error| error.to_string())?;
    let mut statements = vec!["BEGIN READ ONLY".to_owned()];
    let mut block = None;
    for step in steps {
        match step {
            Step::Statement(sql) if sql.starts_with("SET LOCAL ") => statements.push(sql),
            Step::Statement(sql) if sql.starts_with("DO $functions$") => block = Some(sql),
            _ => {}
        }
    }
    let block = block.ok_or("install.sql has no block that makes the functions")?;
    statements.push(
        cut_off(&block).ok_or("install.sql does not make its functions in one loop over a list")?,
    );
    Ok(statements.join("; "))
}

/// The block with its list kept instead of gone through.
fn cut_off(block: &str) -> Option<String> {
    let (before, rest) = block.split_once("FOR f IN")?;
    // The bodies may well have loops; what follows the list's columns is this one's.
    let end = rest.find(") AS v (name,")?;
    let end = end + rest[end..].find("LOOP")?;
    let list = &rest[..end];
    Some(format!(
        "{before}PERFORM set_config('oddscache.functions', \
         (SELECT coalesce(jsonb_agg(to_jsonb(listed)), '[]')::text FROM ({list}) AS listed), true); END $functions$"
    ))
}

fn judge(function: &Function, cache_schema: &str) -> Vec<Finding> {
    let name = format!("{}.{}", cache_schema, function.name);
    let fault = |what: &str| {
        let finding = Finding::fail("feed.function", what).object(&*name);
        finding.why(WHY).fix(INSTALL)
    };
    if !function.there {
        return vec![fault("is missing, or has other arguments")];
    }
    let mut findings = Vec::new();
    let parts = [
        (
            function.same_body,
            "its body is not what this binary installs",
        ),
        (function.same_language, "it is written in another language"),
        (function.same_result, "it returns something else"),
        (
            function.same_definer,
            "SECURITY DEFINER is not as installed",
        ),
        (
            function.same_settings,
            "its settings are not as installed: a search_path of its own keeps strangers' objects out",
        ),
    ];
    let faults = parts.iter().filter(|(same, _)| *same == Some(false));
    findings.extend(faults.map(|(_, what)| fault(what)));
    findings
}

/// Who owns what runs with its owner's rights.
fn owners(functions: &[Function], cache_schema: &str) -> Vec<Finding> {
    let definers = functions.iter().filter(|function| function.is_definer);
    let mut owners: BTreeMap<&str, (&Function, Vec<&str>)> = BTreeMap::new();
    for function in definers {
        if let Some(owner) = &function.owner {
            let (_, names) = owners.entry(owner).or_insert((function, Vec::new()));
            names.push(&function.name);
        }
    }
    let mut findings = Vec::new();
    for (owner, (function, names)) in owners {
        let names = names.join(", ");
        if function.owner_is_superuser == Some(true) {
            let what = format!("the superuser {owner} owns {names}, which run with its rights");
            findings.push(
                Finding::info("feed.owner", what)
                    .object(format!("schema {cache_schema}"))
                    .why("log_change() casts columns whose types the tables' owner chooses: let it run as that owner rather")
                    .fix("ALTER SCHEMA, TABLE and FUNCTION ... OWNER TO the tables' owner, for all that is in the schema"),
            );
        } else if function.owns_a_table == Some(false) {
            let what = format!("{owner}, who owns none of the tables, owns {names}");
            findings.push(
                Finding::warn("feed.owner", what)
                    .object(format!("schema {cache_schema}"))
                    .why("whoever owns them can put anything in their place, and they run within the application's transactions")
                    .fix("ALTER SCHEMA, TABLE and FUNCTION ... OWNER TO the tables' owner, unless this one is to be trusted"),
            );
        }
    }
    findings
}

/// Functions in the schema that the binary does not know.
async fn strangers(
    context: &Context<'_>,
    session: &Session,
    known: &[Function],
) -> Result<Vec<Finding>, Trouble> {
    #[derive(Deserialize)]
    struct Stranger {
        name: String,
    }
    let known: Vec<String> = known.iter().map(|known| literal(&known.name)).collect();
    let sql = format!(
        "SELECT p.oid::regprocedure::text AS name FROM pg_proc AS p JOIN pg_namespace AS n ON n.oid = p.pronamespace \
         WHERE n.nspname = {} AND (p.proname NOT IN ({known}) OR EXISTS (SELECT FROM pg_proc AS o \
           WHERE o.pronamespace = n.oid AND o.proname = p.proname AND o.oid < p.oid)) ORDER BY 1",
        literal(context.cache_schema),
        known = known.join(", ")
    );
    let strangers: Vec<Stranger> = session.rows(&sql).await?;
    let told = |stranger: Stranger| {
        Finding::warn("feed.stranger", "is no function of the feed's")
            .why("the schema is meant for the feed alone; a name found there may be taken for one of its own")
            .fix(format!("DROP FUNCTION {}, unless somebody needs it", stranger.name))
            .object(stranger.name)
    };
    Ok(strangers.into_iter().map(told).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_is_found_in_the_script() {
        let statements = expectation("public", "oddscache", "bell").unwrap();
        assert!(statements.contains("SET LOCAL oddscache.channel = 'bell'"));
        assert!(!statements.contains("CREATE OR REPLACE"), "{statements}");
        for function in ["'feed_version'", "'prune'", "'log_change'"] {
            assert!(statements.contains(function), "{function}");
        }
        assert_eq!(cut_off("DO $functions$ BEGIN END $functions$"), None);
    }
}
