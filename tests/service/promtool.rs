//! What `examples/deploy` has for Prometheus and Grafana, held against Prometheus' own tool and against what `/metrics` says.

use std::{
    collections::BTreeSet,
    fmt::Write as _,
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use serde_json::Value;

use super::{Served, text, with_odds};

fn file(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn read(path: &str) -> String {
    fs::read_to_string(file(path)).expect(path)
}

/// Fails the test unless promtool finds nothing to say against it; returns what it said.
fn promtool(arguments: &[&str], input: &str) -> String {
    let mut command = Command::new("promtool");
    command.args(arguments).stdin(Stdio::piped());
    let child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let mut child =
        child.expect("promtool is in no directory of PATH; install it (Debian, Ubuntu: apt-get install prometheus)");
    let mut stdin = child.stdin.take().expect("piped");
    stdin.write_all(input.as_bytes()).expect("it reads");
    drop(stdin);
    let output = child.wait_with_output().expect("it ends");
    let said = format!("{}{}", text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "promtool {arguments:?}: {said}");
    said
}

/// Names of metrics in a text.
fn named(text: &str) -> BTreeSet<&str> {
    let words = text.split(|letter: char| !(letter.is_ascii_alphanumeric() || letter == '_'));
    words
        .filter(|word| word.starts_with("oddscache_") || word.starts_with("process_"))
        .collect()
}

/// What labels are compared with in expressions: `key="value"`, as it stands in `/metrics`.
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
            // What Prometheus adds, and a variable of Grafana.
            if !["job", "instance", "alertname", "alertstate"].contains(&key) {
                let values = values.split('|');
                found.extend(
                    values.map(|value| format!("{key}=\"{}\"", value.replace(".id.", "{id}"))),
                );
            }
        }
    }
    found
}

/// All expressions of the dashboard, as Prometheus gets them.
fn expressions(dashboard: &Value) -> Vec<String> {
    let panels = dashboard["panels"].as_array().expect("panels");
    let targets = panels
        .iter()
        .filter_map(|panel| panel["targets"].as_array());
    targets
        .flatten()
        .map(|target| target["expr"].as_str().expect("an expression"))
        .map(|expr| {
            expr.replace("$__rate_interval", "1m")
                .replace("$instance", ".*")
        })
        .collect()
}

#[tokio::test]
async fn alerts_and_dashboard_name_metrics_that_there_are() {
    let database = with_odds();
    let served = Served::start(&database.dsn(), &[]).await;
    served.warm().await;
    let (_, metrics) = served.get("/metrics").await;
    promtool(&["check", "metrics"], &metrics);

    let there = named(&metrics);
    let dashboard: Value =
        serde_json::from_str(&read("examples/deploy/dashboard.json")).expect("JSON");
    let (alerts, panels) = (
        read("examples/deploy/alerts.yml"),
        expressions(&dashboard).join("\n"),
    );
    let tests = read("tests/service/alerts.test.yml");
    for (what, text, least) in [
        ("alerts.yml", &alerts, 20),
        ("dashboard.json", &panels, 35),
        ("the alerts' test", &tests, 15),
    ] {
        let named = named(text);
        assert!(named.len() >= least, "{what}: {named:?}");
        let missing: Vec<_> = named.difference(&there).collect();
        assert!(
            missing.is_empty(),
            "{what} names what /metrics does not have: {missing:?}"
        );
        for label in labels(text)
            .iter()
            .filter(|label| !label.starts_with("le="))
        {
            assert!(metrics.contains(label), "{what}: no metric has {label}");
        }
    }
}

#[test]
fn alerts_are_rules_that_fire_when_they_should() {
    let (rules, config) = (
        file("examples/deploy/alerts.yml"),
        file("examples/deploy/prometheus.yml"),
    );
    let (rules, config) = (
        rules.to_str().expect("a path"),
        config.to_str().expect("a path"),
    );
    let alerts = read("examples/deploy/alerts.yml");
    let count = alerts.matches("- alert: ").count();
    let said = promtool(&["check", "rules", rules], "");
    assert!(
        count >= 12 && said.contains(&format!("{count} rules found")),
        "{said}"
    );
    promtool(&["check", "config", config], "");
    let tests = file("tests/service/alerts.test.yml");
    promtool(&["test", "rules", tests.to_str().expect("a path")], "");

    let tests = read("tests/service/alerts.test.yml");
    for rule in alerts.split("- alert: ").skip(1) {
        let name = rule.lines().next().expect("a name");
        let is_tested = tests.contains(&format!("alertname=\"{name}\", instance="));
        assert!(is_tested, "{name} is never seen to fire");
        for part in ["severity: ", "summary: ", "action: "] {
            assert!(rule.contains(part), "{name} has no {part}");
        }
    }
}

#[test]
fn the_dashboard_is_one_that_can_be_imported() {
    let dashboard: Value =
        serde_json::from_str(&read("examples/deploy/dashboard.json")).expect("JSON");
    let variables = dashboard["templating"]["list"]
        .as_array()
        .expect("variables");
    assert_eq!(variables[0]["type"], "datasource");
    let panels = dashboard["panels"].as_array().expect("panels");
    let (mut ids, mut places) = (BTreeSet::new(), BTreeSet::new());
    for panel in panels {
        assert!(
            ids.insert(panel["id"].as_u64()),
            "{panel}: its id is another's"
        );
        let place = |name: &str| panel["gridPos"][name].as_u64().expect("a place");
        assert!(place("x") + place("w") <= 24, "{panel}");
        for (x, y) in (0..place("w")).flat_map(|x| (0..place("h")).map(move |y| (x, y))) {
            let free = places.insert((place("x") + x, place("y") + y));
            assert!(free, "{}: on top of another", panel["title"]);
        }
        if panel["type"] != "row" {
            assert_eq!(panel["datasource"]["uid"], "${datasource}", "{panel}");
            assert!(
                panel["fieldConfig"]["defaults"]["unit"].is_string(),
                "{panel}"
            );
        }
    }
    // Rules, so that Prometheus reads the expressions.
    let mut rules = String::from("groups:\n  - name: dashboard\n    rules:\n");
    for (number, expr) in expressions(&dashboard).iter().enumerate() {
        let expr = Value::from(expr.as_str());
        writeln!(
            rules,
            "      - {{record: \"panel:{number}\", expr: {expr}}}"
        )
        .expect("a string");
    }
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("rules.yml");
    fs::write(&path, rules).expect("written");
    promtool(&["check", "rules", path.to_str().expect("a path")], "");
}
