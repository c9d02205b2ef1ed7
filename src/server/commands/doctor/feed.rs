//! Checks that the feed's functions are those that this binary would install.

use std::collections::BTreeMap;

use oddscache::sql::{FEED_VERSION, FEED_VERSIONS, FUNCTIONS, Function, Script};
use serde::Deserialize;

use super::{
    context::{Context, tables},
    finding::{Finding, or_ok},
    script::run,
};
use crate::server::session::{Session, Trouble, identifier, literal};

const WHY: &str = "the cache relies on what these functions write to the log";

pub(super) async fn check(context: &Context<'_>) -> Result<Vec<Finding>, Trouble> {
    let session = context.session().await?;
    let found = found(context, &session).await?;
    // The functions of an older version have other bodies than this binary's.
    let mut findings = match is_older(context, &session, &found).await? {
        true => Vec::new(),
        false => or_ok(
            judge_all(&found, context.cache_schema)?,
            "feed.function",
            || {
                let all = FUNCTIONS.len();
                format!("all {all} functions are as this binary installs them")
            },
        ),
    };
    findings.extend(owners(&found, context.cache_schema));
    findings.extend(strangers(&found));
    Ok(findings)
}

/// Whether the feed has an older version that this binary still follows. `check.sql` reports it.
async fn is_older(
    context: &Context<'_>,
    session: &Session,
    found: &[Found],
) -> Result<bool, Trouble> {
    #[derive(Deserialize)]
    struct Installed {
        version: i32,
    }
    if !found
        .iter()
        .any(|found| found.name == "feed_version" && found.arguments.is_empty())
    {
        return Ok(false);
    }
    let cache = identifier(context.cache_schema);
    let sql = format!("SELECT {cache}.feed_version() AS version");
    let Installed { version } = session.row(&sql).await?;
    Ok(version < FEED_VERSION && FEED_VERSIONS.contains(&version))
}

/// A function in the feed's schema.
#[derive(Debug, Deserialize)]
struct Found {
    /// Its name with its schema and arguments, as in SQL.
    signature: String,
    name: String,
    arguments: String,
    result: String,
    language: String,
    security_definer: bool,
    settings: Vec<String>,
    body: String,
    owner: String,
    owner_is_superuser: bool,
    owns_a_table: bool,
    /// The channel in the feed's `log_state`.
    channel: Option<String>,
}

impl Found {
    fn is(&self, function: &Function) -> bool {
        self.name == function.name && self.arguments == function.arguments
    }

    fn is_known(&self) -> bool {
        FUNCTIONS.iter().any(|function| self.is(function))
    }
}

async fn found(context: &Context<'_>, session: &Session) -> Result<Vec<Found>, Trouble> {
    let sql = format!(
        "SELECT p.oid::regprocedure::text AS signature, p.proname AS name, \
           (SELECT coalesce(string_agg(a::regtype::text, ',' ORDER BY n), '') \
              FROM unnest(p.proargtypes) WITH ORDINALITY AS a (a, n)) AS arguments, \
           p.prorettype::regtype::text AS result, l.lanname AS language, p.prosecdef AS security_definer, \
           coalesce(p.proconfig, '{{}}') AS settings, p.prosrc AS body, \
           r.rolname AS owner, r.rolsuper AS owner_is_superuser, \
           (SELECT s.channel FROM {schema}.log_state AS s) AS channel, \
           EXISTS (SELECT FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace \
             WHERE n.nspname = {app} AND c.relname IN ({tables}) AND c.relowner = p.proowner) AS owns_a_table \
         FROM pg_proc AS p JOIN pg_namespace AS n ON n.oid = p.pronamespace JOIN pg_language AS l ON l.oid = p.prolang \
         JOIN pg_roles AS r ON r.oid = p.proowner \
         WHERE n.nspname = {cache} ORDER BY p.oid",
        tables = tables(),
        app = literal(context.app_schema),
        cache = literal(context.cache_schema),
        schema = identifier(context.cache_schema),
    );
    session.rows(&sql).await
}

fn judge_all(found: &[Found], cache_schema: &str) -> Result<Vec<Finding>, Trouble> {
    let channel = found.iter().find_map(|found| found.channel.as_deref());
    let settings = [
        ("cache_schema", cache_schema),
        ("channel", channel.unwrap_or("oddscache")),
    ];
    let install = Script::Install.fill(&settings);
    let install = install.map_err(|error| Trouble::new(error.to_string()))?;
    let functions = FUNCTIONS.iter();
    Ok(functions
        .flat_map(|function| judge(function, found, &install, cache_schema))
        .collect())
}

fn judge(function: &Function, found: &[Found], install: &str, cache_schema: &str) -> Vec<Finding> {
    let name = format!("{}.{}", cache_schema, function.name);
    let fault = |what: &str| {
        let finding = Finding::fail("feed.function", what).object(&*name);
        finding.why(WHY).fix(run(Script::Install))
    };
    let Some(found) = found.iter().find(|found| found.is(function)) else {
        return vec![fault("is missing, or has other arguments")];
    };
    let parts = [
        (
            function.has_body(&found.body, install, cache_schema),
            "its body is not what this binary installs",
        ),
        (
            found.language == function.language,
            "it is written in another language",
        ),
        (found.result == function.result, "it returns something else"),
        (
            found.security_definer == function.security_definer,
            "SECURITY DEFINER is not as installed",
        ),
        (
            found.settings == function.settings,
            "its settings are not as installed; its search_path must keep out the objects of other roles",
        ),
    ];
    let faults = parts.iter().filter(|(same, _)| !same);
    faults.map(|(_, what)| fault(what)).collect()
}

/// The owners of the SECURITY DEFINER functions, which run with their owner's rights.
fn owners(found: &[Found], cache_schema: &str) -> Vec<Finding> {
    let mut owners: BTreeMap<&str, Vec<&Found>> = BTreeMap::new();
    for function in FUNCTIONS
        .iter()
        .filter(|function| function.security_definer)
    {
        for found in found.iter().filter(|found| found.is(function)) {
            owners.entry(&found.owner).or_default().push(found);
        }
    }
    let mut findings = Vec::new();
    for (owner, functions) in owners {
        let names: Vec<&str> = functions.iter().map(|found| &*found.name).collect();
        let names = names.join(", ");
        let schema = format!("schema {cache_schema}");
        if functions.iter().any(|found| found.owner_is_superuser) {
            let what = format!("the superuser {owner} owns {names}, which run with its rights");
            findings.push(
                Finding::info("feed.owner", what)
                    .object(schema)
                    .why("log_change() casts columns whose types the tables' owner chooses, so it should run as that owner")
                    .fix("ALTER SCHEMA, TABLE and FUNCTION ... OWNER TO the tables' owner, for the schema and everything in it"),
            );
        } else if !functions.iter().all(|found| found.owns_a_table) {
            let what = format!("{owner}, who owns none of the tables, owns {names}");
            findings.push(
                Finding::warn("feed.owner", what)
                    .object(schema)
                    .why("the owner can replace them, and they run within the application's transactions")
                    .fix("ALTER SCHEMA, TABLE and FUNCTION ... OWNER TO the tables' owner, unless you trust this role"),
            );
        }
    }
    findings
}

/// Functions in the feed's schema that are not the feed's.
fn strangers(found: &[Found]) -> impl Iterator<Item = Finding> {
    let unknown = found.iter().filter(|found| !found.is_known());
    unknown.map(|stranger| {
        Finding::warn("feed.stranger", "is not a function of the feed")
            .why("the schema is for the feed alone; a function in it may be taken for one of the feed's")
            .fix(format!(
                "DROP FUNCTION {}, unless somebody needs it",
                stranger.signature
            ))
            .object(&*stranger.signature)
    })
}
