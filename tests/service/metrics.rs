//! `GET /metrics`, held against the rules of its format and against what else the service says.

use std::collections::BTreeMap;

use super::{
    Served,
    common::{connect, eventually},
    with_odds,
};

/// Samples by name and labels; panics where the text breaks the format or its conventions.
fn samples(text: &str) -> BTreeMap<String, f64> {
    let mut kinds = BTreeMap::new();
    let mut samples = BTreeMap::new();
    let mut helped = String::new();
    for line in text.lines() {
        if let Some(help) = line.strip_prefix("# HELP ") {
            let (name, sentence) = help.split_once(' ').expect("a sentence");
            assert!(sentence.ends_with('.'), "{line}");
            helped = name.to_owned();
        } else if let Some(kind) = line.strip_prefix("# TYPE ") {
            let (name, kind) = kind.split_once(' ').expect("a kind");
            assert_eq!(name, helped, "HELP and TYPE stand together");
            assert_eq!(name.ends_with("_total"), kind == "counter", "{line}");
            assert!(
                kinds.insert(name.to_owned(), kind.to_owned()).is_none(),
                "{line}: twice"
            );
        } else {
            let (name, value) = line.rsplit_once(' ').expect("a value");
            let family = name.split('{').next().expect("a name");
            let known = |family: &str| kinds.contains_key(family);
            let part_of_summary = ["_sum", "_count"].iter().any(|suffix| {
                family
                    .strip_suffix(suffix)
                    .is_some_and(|family| kinds.get(family).is_some_and(|kind| kind == "summary"))
            });
            assert!(
                family.starts_with("oddscache_") && (known(family) || part_of_summary),
                "{line}"
            );
            let value = value.parse().expect("a number");
            assert!(
                samples.insert(name.to_owned(), value).is_none(),
                "{line}: twice"
            );
        }
    }
    samples
}

#[tokio::test]
async fn metrics_say_what_is_held_and_what_was_done() {
    let database = with_odds();
    let app = connect(&database.dsn()).await;
    let served = Served::start(&database.dsn(), &[]).await;
    served.warm().await;
    let read = async || {
        let (status, text) = served.get("/metrics").await;
        assert_eq!(status, 200);
        samples(&text)
    };
    let first = read().await;
    for (name, value) in [
        ("oddscache_warm", 1.0),
        ("oddscache_connected", 1.0),
        ("oddscache_epoch", 1.0),
        ("oddscache_standby", 0.0),
        ("oddscache_events{side=\"betpawa\"}", 8.0),
        ("oddscache_events{side=\"competitor\"}", 5.0),
        ("oddscache_snapshots", 13.0),
        ("oddscache_markets", 16.0),
        ("oddscache_reloads_total", 1.0),
        ("oddscache_audit_mismatches_total", 0.0),
        (
            "oddscache_http_requests_total{path=\"/v1/events\",code=\"2xx\"}",
            0.0,
        ),
        ("oddscache_change_streams", 0.0),
    ] {
        assert_eq!(first.get(name), Some(&value), "{name}");
    }
    assert!(first["oddscache_view_age_seconds"] < 60.0);
    assert!(first["oddscache_memory_bytes"] > 1000.0);
    let states = first
        .iter()
        .filter(|(name, _)| name.starts_with("oddscache_status{"));
    assert_eq!(states.map(|(_, value)| value).sum::<f64>(), 1.0);

    served.get("/v1/events").await;
    served.get("/v1/events/1").await;
    served.get("/v1/events/x").await;
    served.get("/nowhere/at/all").await;
    let _stream = reqwest::get(format!("{}/v1/changes", served.base))
        .await
        .expect("a stream");
    app.batch_execute("insert into odds_snapshots (event_id, bookmaker_id) values (9, 1)")
        .await
        .unwrap();
    eventually("the change is counted", async || {
        read().await["oddscache_events{side=\"betpawa\"}"] == 9.0
    })
    .await;
    let second = read().await;
    for (path, code) in [
        ("/v1/events", "2xx"),
        ("/v1/events/{id}", "2xx"),
        ("/v1/events/{id}", "4xx"),
        ("other", "4xx"),
    ] {
        let name = format!("oddscache_http_requests_total{{path=\"{path}\",code=\"{code}\"}}");
        assert_eq!(second[&name], 1.0, "{name}");
    }
    assert_eq!(second["oddscache_change_streams"], 1.0);
    assert_eq!(
        second["oddscache_http_request_seconds_count{path=\"/v1/events/{id}\"}"],
        2.0
    );
    for name in ["published", "log_rows", "reads", "snapshots_read"] {
        let name = format!("oddscache_{name}_total");
        assert!(second[&name] > first[&name], "{name}");
    }
    database.psql("select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'oddscache'");
    eventually("the epoch after a lost connection", async || {
        read().await["oddscache_epoch"] == 2.0
    })
    .await;
}
