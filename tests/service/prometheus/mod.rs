//! A real Prometheus scrapes real services, with the files of `examples/deploy`, while things go wrong. Exactly those
//! alerts fire that should, each at the service that it is about, and they end after the repair.
//!
//! One service of its own stands for each incident, so all incidents run at once.
//!
//! **Durations are shortened.** The rules wait for minutes and look back for hours. [`shortened`] replaces each duration
//! of the files by a tenth of it, and by at most eight seconds. Nothing else of an expression changes: no metric, no
//! label, no bound. The audit of the services runs more often for the same reason.
//!
//! `cargo test --test service -- --ignored --nocapture prometheus::` prints the table that `examples/deploy/README.md` has.

mod scene;

use std::{collections::BTreeSet, fs, path::Path};

use oddscache_testkit::{cases, eventually, programs::optional, prometheus::Prometheus};
use serde_json::Value;

use super::promtool;
use scene::Scene;

/// The short name of each incident, what goes wrong, and the alerts that must fire because of it.
const INCIDENTS: &str = "
    quiet => nothing: an application writes =>
    stopped => the database is stopped; a reader asks for fresh odds => Disconnected Stale HttpErrors AuditStuck
    killed => the service is killed => Down
    degraded => a trigger is disabled => Degraded ErrorsLogged
    polling => an application writes with notifications off => PollingOnly
    malformed => an application writes outcomes that are no list => MalformedRows
    bypassed => a row changes past the triggers => AuditMismatch ErrorsLogged
    unpruned => nobody prunes the log, and much is written => LogNotPruned
    reloading => somebody calls resync() again and again => Reloads
    restored => the database is restored from an older backup => WentBack
    crowded => clients open more connections than fit => HttpTurnedAway
    unread => nobody reads standard error => LogDropped
";

/// These alerts need a service that is slow or large, or a day of history. `alerts.test.yml` makes them fire.
const NOT_HERE: [&str; 4] = ["Slow", "HttpSlow", "MemoryGrows", "ProcessGrows"];

/// The short name of an incident, what goes wrong, and one of its alerts, of all of [`INCIDENTS`].
fn expected() -> Vec<(&'static str, &'static str, &'static str)> {
    let mut expected = Vec::new();
    for [name, what, alerts] in cases(INCIDENTS) {
        let alerts = alerts.split_whitespace();
        expected.extend(alerts.map(|alert| (name, what, alert)));
    }
    expected
}

fn deployed(name: &str) -> String {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/deploy");
    fs::read_to_string(folder.join(name)).expect(name)
}

/// The same text with shorter durations: a tenth, and at most eight seconds. Durations are what follows `for:`,
/// `offset`, an opening bracket or the intervals of `prometheus.yml`.
fn shortened(text: &str) -> String {
    let mut text = text.to_owned();
    for before in ["for: ", "offset ", "[", "_interval: "] {
        let mut parts = text.split(before);
        let mut done = parts.next().expect("a part").to_owned();
        for part in parts {
            let end = part.find(|letter: char| !letter.is_ascii_alphanumeric());
            let (word, rest) = part.split_at(end.unwrap_or(part.len()));
            done.push_str(before);
            match milliseconds(word) {
                Some(long) => done.push_str(&format!("{}ms", (long / 10).min(8_000))),
                None => done.push_str(word),
            }
            done.push_str(rest);
        }
        text = done;
    }
    text
}

/// A duration with one unit, as the files have them.
fn milliseconds(word: &str) -> Option<u64> {
    let (number, unit) = word.split_at_checked(word.len().checked_sub(1)?)?;
    let unit = match unit {
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return None,
    };
    Some(number.parse::<u64>().ok()? * unit)
}

#[test]
fn only_durations_are_shortened() {
    for [long, short] in cases(
        "for: 1m => for: 6000ms
         (increase(x_total{a=\"5m\"}[30m]) > 5 => (increase(x_total{a=\"5m\"}[8000ms]) > 5
         avg_over_time(x[1d] offset 1d) + 50e6 => avg_over_time(x[8000ms] offset 8000ms) + 50e6
         scrape_interval: 10s => scrape_interval: 1000ms
         For 30 minutes [see] => For 30 minutes [see]",
    ) {
        assert_eq!(shortened(long), short);
    }
    // No duration of the deployed rules is left out.
    let alerts = shortened(&deployed("alerts.yml"));
    for (before, after) in [("[", ']'), ("for: ", '\n')] {
        for rest in alerts.split(before).skip(1) {
            let word = rest.split(after).next().expect("a word");
            assert!(word.ends_with("ms"), "{before}{word}");
        }
    }
}

/// The instances and alerts of the series of an expression.
async fn alerts(prometheus: &Prometheus, expression: &str) -> BTreeSet<(String, String)> {
    let text = |series: &Value, label: &str| {
        series["metric"][label]
            .as_str()
            .unwrap_or_default()
            .to_owned()
    };
    let found = prometheus.query(expression).await;
    let found = found.iter();
    found
        .map(|series| (text(series, "instance"), text(series, "alertname")))
        .collect()
}

/// The alerts that fired at any time since Prometheus began.
const FIRED: &str = r#"max_over_time(ALERTS{alertstate="firing"}[1h])"#;

async fn now(prometheus: &Prometheus) -> f64 {
    let data = prometheus.api("query", &[("query", "time()")]).await;
    data["result"][0].as_f64().expect("a time")
}

/// An alert that stays silent hides an incident. One that fires without reason is soon ignored.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "other tests beside it would make its services late; .ci/run runs it alone"]
async fn exactly_the_alerts_of_an_incident_fire_and_end_with_it() {
    if optional(&["prometheus"], "prometheus").is_none() {
        return;
    }
    let mut scene = Scene::new().await;
    let expected = expected().into_iter();
    let expected: BTreeSet<_> = expected
        .map(|(name, _, alert)| (scene.instances[name].clone(), format!("Oddscache{alert}")))
        .collect();
    let prometheus = started(&scene).await;

    let services = scene.instances.len();
    // A counter must have been scraped before it grows, or Prometheus sees no growth. These grow in a sound service.
    let scraped = format!(
        "count(increase(oddscache_audit_headers_passes_total[1m]) > 0 and increase(oddscache_audited_events_total[1m]) > 0)
         == {services}"
    );
    eventually("Prometheus sees every service audit", async || {
        !prometheus.query(&scraped).await.is_empty()
    })
    .await;
    let early = alerts(&prometheus, FIRED).await;
    assert!(early.is_empty(), "before the incidents: {early:?}");

    let begun = now(&prometheus).await;
    scene.begin().await;
    // Not `eventually`, because all of it together may take longer than a minute where others use the processors.
    let mut silent = expected.clone();
    while !silent.is_empty() {
        scene.go_on().await;
        let fired = alerts(&prometheus, FIRED).await;
        silent.retain(|alert| !fired.contains(alert));
        let waited = now(&prometheus).await - begun;
        let names = &scene.instances;
        assert!(waited < 120.0, "these do not fire: {silent:?}, {names:?}");
    }
    every_panel_has_data(&prometheus, &scene).await;

    let repaired = now(&prometheus).await;
    scene.repair().await;
    eventually("no alert fires any more", async || {
        let firing = alerts(&prometheus, r#"ALERTS{alertstate="firing"}"#).await;
        firing.is_empty()
    })
    .await;
    let fired = alerts(&prometheus, FIRED).await;
    let wrong: Vec<_> = fired.difference(&expected).collect();
    let names = &scene.instances;
    assert!(
        wrong.is_empty(),
        "these must not fire: {wrong:?}, {names:?}"
    );
    every_rule_works(&prometheus).await;
    print(&prometheus, &scene, begun, repaired).await;
}

/// Prometheus evaluates every deployed rule without an error.
async fn every_rule_works(prometheus: &Prometheus) {
    let data = prometheus.api("rules", &[]).await;
    let rules = data["groups"][0]["rules"].as_array().expect("rules");
    let count = deployed("alerts.yml").matches("- alert: ").count();
    assert_eq!(rules.len(), count);
    for rule in rules {
        assert_eq!(rule["health"], "ok", "{rule}");
    }
}

/// The panels of the dashboard that are empty for a sound service, by their nature: they show only what happened, and
/// nothing was read again and no request failed.
const EMPTY: [&str; 2] = ["Reloads, by reason", "Failed requests"];

/// While things are wrong somewhere, every query of the dashboard gives a number. For the sound service alone, those of
/// [`EMPTY`] give none, and all others do.
async fn every_panel_has_data(prometheus: &Prometheus, scene: &Scene) {
    let dashboard = promtool::dashboard();
    let choice = [("match[]", "oddscache_warm")];
    let choice = prometheus.api("label/instance/values", &choice).await;
    let choice: BTreeSet<_> = choice
        .as_array()
        .expect("instances")
        .iter()
        .filter_map(Value::as_str)
        .collect();
    let all: BTreeSet<_> = scene.instances.values().map(String::as_str).collect();
    assert_eq!(choice, all, "what a user of the dashboard can choose");
    for (instance, empty) in [(".*", &[][..]), (&scene.instances["quiet"], &EMPTY)] {
        let queries = promtool::queries(&dashboard, instance);
        assert!(queries.len() > 40);
        for (panel, query) in queries {
            let found = prometheus.query(&query).await;
            let numbers = found
                .iter()
                .filter_map(|series| series["value"][1].as_str());
            let has_data = numbers.filter(|number| *number != "NaN").count() > 0;
            let is_empty = empty.contains(&&*panel);
            assert_eq!(
                has_data, !is_empty,
                "{panel}, {instance}: {query}: {found:?}"
            );
        }
    }
}

/// Prints what Prometheus recorded, as the table of `examples/deploy/README.md`. Times are seconds since the incidents
/// began.
async fn print(prometheus: &Prometheus, scene: &Scene, begun: f64, repaired: f64) {
    let recorded = prometheus.query(r#"ALERTS{alertstate="firing"}[1h]"#).await;
    println!("repaired after {:.0} s", repaired - begun);
    println!("| what goes wrong | alert | severity | fires from | to |\n|---|---|---|---|---|");
    for (name, what, alert) in expected() {
        let series = recorded.iter().find(|series| {
            let labels = &series["metric"];
            labels["instance"] == scene.instances[name]
                && labels["alertname"] == format!("Oddscache{alert}")
        });
        let series = series.expect("it has fired");
        let times = series["values"].as_array().expect("samples");
        let severity = series["metric"]["severity"].as_str().expect("a severity");
        let [from, to] = [times.first(), times.last()].map(|sample| {
            let time = sample.and_then(|sample| sample[0].as_f64());
            time.expect("a time") - begun
        });
        println!("| {what} | `Oddscache{alert}` | {severity} | {from:.0} s | {to:.0} s |");
    }
}

/// The documents name each incident with its alerts, and no more of them.
#[test]
fn the_table_for_operators_lists_every_incident() {
    let page = deployed("README.md");
    for (_, what, alert) in expected() {
        let row = format!("| {what} | `Oddscache{alert}` |");
        assert!(page.contains(&row), "{row}");
    }
    assert_eq!(page.matches(" | `Oddscache").count(), expected().len());

    // Each deployed alert is there, or has a reason.
    let rules = deployed("alerts.yml");
    for rule in rules.split("- alert: Oddscache").skip(1) {
        let name = rule.lines().next().expect("a name");
        let fires = expected().iter().any(|(_, _, alert)| *alert == name);
        assert_ne!(fires, NOT_HERE.contains(&name), "{name}");
    }
}

/// Prometheus with the deployed files, which scrapes all services of the scene.
async fn started(scene: &Scene) -> Prometheus {
    let targets: Vec<_> = scene.instances.values().collect();
    let deployed_target = r#"["127.0.0.1:7979"]"#;
    let configuration = deployed("prometheus.yml");
    assert_eq!(configuration.matches(deployed_target).count(), 1);
    let configuration = configuration.replace(deployed_target, &format!("{targets:?}"));
    let rules = shortened(&deployed("alerts.yml"));
    let files = [("alerts.yml", &*rules)];
    let started = Prometheus::start(&shortened(&configuration), &files).await;
    started.expect("it is installed")
}
