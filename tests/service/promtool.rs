//! The files for Prometheus and Grafana in `examples/deploy`, checked with promtool and compared with `/metrics`.

use std::{
    collections::BTreeSet,
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use serde_json::Value;

use oddscache_testkit::{programs::optional, service::Ended};

use super::served;

fn file(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn read(path: &str) -> String {
    fs::read_to_string(file(path)).expect(path)
}

/// Runs promtool. Fails the test if it reports a problem. Returns its output; `None` where promtool is not installed.
fn promtool(arguments: &[&str], input: &str) -> Option<String> {
    let mut command = Command::new(optional(&["promtool"], "prometheus")?);
    command.args(arguments).stdin(Stdio::piped());
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("promtool runs");
    let mut stdin = child.stdin.take().expect("piped");
    stdin.write_all(input.as_bytes()).expect("it reads");
    drop(stdin);
    let said = Ended::of(&child.wait_with_output().expect("it ends")).ok();
    Some(said.out + &said.errors)
}

/// The names of metrics in a text.
fn named(text: &str) -> BTreeSet<&str> {
    let words = text.split(|letter: char| !(letter.is_ascii_alphanumeric() || letter == '_'));
    words
        .filter(|word| word.starts_with("oddscache_") || word.starts_with("process_"))
        .collect()
}

/// The comparisons of labels in an expression, as `key="value"`, which is the form in `/metrics`.
fn labels(expression: &str) -> Vec<String> {
    let mut found = Vec::new();
    for selector in expression.split('{').skip(1) {
        let selector = selector.split('}').next().expect("its end");
        for matcher in selector.split("\",") {
            let Some((key, values)) = matcher.split_once('=') else {
                continue;
            };
            let key = key.trim_end_matches('!').trim();
            let values = values.trim_matches(['~', '"']);
            // Skip labels that Prometheus adds, and a variable of Grafana.
            if !["job", "instance", "alertname", "alertstate"].contains(&key) {
                let label = |value: &str| format!("{key}=\"{}\"", value.replace(".id.", "{id}"));
                found.extend(values.split('|').map(label));
            }
        }
    }
    found
}

/// The titles of panels and the expressions that Grafana sends to Prometheus, where a user has chosen this `instance`, a
/// regular expression.
pub(super) fn queries(dashboard: &Value, instance: &str) -> Vec<(String, String)> {
    let mut queries = Vec::new();
    for panel in dashboard["panels"].as_array().expect("panels") {
        for target in panel["targets"].as_array().into_iter().flatten() {
            let title = panel["title"].as_str().expect("a title");
            let text = target["expr"].as_str().expect("an expression");
            let text = text.replace("$__rate_interval", "1m");
            queries.push((title.to_owned(), text.replace("$instance", instance)));
        }
    }
    queries
}

/// The expressions of the dashboard.
fn expressions(dashboard: &Value) -> Vec<String> {
    let queries = queries(dashboard, ".*").into_iter();
    queries.map(|(_, expression)| expression).collect()
}

pub(super) fn dashboard() -> Value {
    serde_json::from_str(&read("examples/deploy/dashboard.json")).expect("JSON")
}

/// An alert on a metric that does not exist never fires.
#[tokio::test]
async fn alerts_and_dashboard_name_existing_metrics_and_labels() {
    let (_database, served) = served(&[]).await;
    let (_, metrics) = served.get("/metrics").await;
    promtool(&["check", "metrics"], &metrics);

    let there = named(&metrics);
    let alerts = read("examples/deploy/alerts.yml");
    let panels = expressions(&dashboard()).join("\n");
    let tests = read("tests/service/alerts.test.yml");
    for (what, text, least) in [
        ("alerts.yml", &alerts, 20),
        ("dashboard.json", &panels, 35),
        ("the alerts' test", &tests, 15),
    ] {
        let named = named(text);
        assert!(named.len() >= least, "{what}: {named:?}");
        let missing: Vec<_> = named.difference(&there).collect();
        assert!(missing.is_empty(), "{what}: /metrics lacks {missing:?}");
        for label in labels(text) {
            let is_there = label.starts_with("le=") || metrics.contains(&label);
            assert!(is_there, "{what}: no metric has {label}");
        }
    }
}

/// `alerts.test.yml` makes each alert fire, and every alert says what to do.
#[test]
fn every_alert_fires_in_a_test() {
    let alerts = read("examples/deploy/alerts.yml");
    let tests = read("tests/service/alerts.test.yml");
    for rule in alerts.split("- alert: ").skip(1) {
        let name = rule.lines().next().expect("a name");
        let is_tested = tests.contains(&format!("alertname=\"{name}\", instance="));
        assert!(is_tested, "{name} fires in no test");
        for part in ["severity: ", "summary: ", "action: "] {
            assert!(rule.contains(part), "{name} has no {part}");
        }
    }

    let on = |arguments: [&str; 2], path: &str| {
        let file = file(path);
        let file = file.to_str().expect("a path");
        promtool(&[arguments[0], arguments[1], file], "")
    };
    let count = alerts.matches("- alert: ").count();
    let Some(said) = on(["check", "rules"], "examples/deploy/alerts.yml") else {
        return;
    };
    let found = format!("{count} rules found");
    assert!(count >= 12 && said.contains(&found), "{said}");
    on(["check", "config"], "examples/deploy/prometheus.yml");
    on(["test", "rules"], "tests/service/alerts.test.yml");
}

/// Panels have their own ids and places, a unit, and a data source that the user chooses.
#[test]
fn grafana_can_import_the_dashboard() {
    let dashboard = dashboard();
    assert_eq!(dashboard["templating"]["list"][0]["type"], "datasource");
    let panels = dashboard["panels"].as_array().expect("panels");
    let (mut ids, mut places) = (BTreeSet::new(), BTreeSet::new());
    for panel in panels {
        let is_new = ids.insert(panel["id"].as_u64());
        assert!(is_new, "{panel}: another panel has the same id");
        let place = |name: &str| panel["gridPos"][name].as_u64().expect("a place");
        assert!(place("x") + place("w") <= 24, "{panel}");
        for (x, y) in (0..place("w")).flat_map(|x| (0..place("h")).map(move |y| (x, y))) {
            let free = places.insert((place("x") + x, place("y") + y));
            assert!(free, "{}: overlaps another panel", panel["title"]);
        }
        if panel["type"] != "row" {
            assert_eq!(panel["datasource"]["uid"], "${datasource}", "{panel}");
            let unit = &panel["fieldConfig"]["defaults"]["unit"];
            assert!(unit.is_string(), "{panel}");
        }
    }
    // Make rules of them, so that promtool parses the expressions.
    let mut rules = String::from("groups:\n  - name: dashboard\n    rules:\n");
    for (number, expr) in expressions(&dashboard).iter().enumerate() {
        let expr = Value::from(expr.as_str());
        let rule = format!("      - {{record: \"panel:{number}\", expr: {expr}}}\n");
        rules.push_str(&rule);
    }
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("rules.yml");
    fs::write(&path, rules).expect("written");
    promtool(&["check", "rules", path.to_str().expect("a path")], "");
}
