//! What `examples/deploy` has for Prometheus and Grafana, held against Prometheus' own tool and against what `/metrics` says.

use std::{
    collections::BTreeSet,
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use serde_json::Value;

use oddscache_testkit::service::Ended;

use super::served;

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
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = command.spawn();
    let mut child =
        child.expect("promtool is in no directory of PATH; install it (Debian, Ubuntu: apt-get install prometheus)");
    let mut stdin = child.stdin.take().expect("piped");
    stdin.write_all(input.as_bytes()).expect("it reads");
    drop(stdin);
    let said = Ended::of(&child.wait_with_output().expect("it ends")).ok();
    said.out + &said.errors
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
                let label = |value: &str| format!("{key}=\"{}\"", value.replace(".id.", "{id}"));
                found.extend(values.split('|').map(label));
            }
        }
    }
    found
}

/// All expressions of the dashboard, as Prometheus gets them.
fn expressions(dashboard: &Value) -> Vec<String> {
    let panels = dashboard["panels"].as_array().expect("panels");
    let targets = panels.iter().flat_map(|panel| panel["targets"].as_array());
    let expression = |target: &Value| {
        let text = target["expr"].as_str().expect("an expression");
        let text = text.replace("$__rate_interval", "1m");
        text.replace("$instance", ".*")
    };
    targets.flatten().map(expression).collect()
}

fn dashboard() -> Value {
    serde_json::from_str(&read("examples/deploy/dashboard.json")).expect("JSON")
}

#[tokio::test]
async fn alerts_and_dashboard_name_metrics_that_there_are() {
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

#[test]
fn alerts_are_rules_that_fire_when_they_should() {
    let on = |arguments: [&str; 2], path: &str| {
        let file = file(path);
        let file = file.to_str().expect("a path");
        promtool(&[arguments[0], arguments[1], file], "")
    };
    let alerts = read("examples/deploy/alerts.yml");
    let count = alerts.matches("- alert: ").count();
    let said = on(["check", "rules"], "examples/deploy/alerts.yml");
    let found = format!("{count} rules found");
    assert!(count >= 12 && said.contains(&found), "{said}");
    on(["check", "config"], "examples/deploy/prometheus.yml");
    on(["test", "rules"], "tests/service/alerts.test.yml");

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
    let dashboard = dashboard();
    assert_eq!(dashboard["templating"]["list"][0]["type"], "datasource");
    let panels = dashboard["panels"].as_array().expect("panels");
    let (mut ids, mut places) = (BTreeSet::new(), BTreeSet::new());
    for panel in panels {
        let is_new = ids.insert(panel["id"].as_u64());
        assert!(is_new, "{panel}: its id is another's");
        let place = |name: &str| panel["gridPos"][name].as_u64().expect("a place");
        assert!(place("x") + place("w") <= 24, "{panel}");
        for (x, y) in (0..place("w")).flat_map(|x| (0..place("h")).map(move |y| (x, y))) {
            let free = places.insert((place("x") + x, place("y") + y));
            assert!(free, "{}: on top of another", panel["title"]);
        }
        if panel["type"] != "row" {
            assert_eq!(panel["datasource"]["uid"], "${datasource}", "{panel}");
            let unit = &panel["fieldConfig"]["defaults"]["unit"];
            assert!(unit.is_string(), "{panel}");
        }
    }
    // Rules, so that Prometheus reads the expressions.
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
