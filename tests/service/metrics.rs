//! `GET /metrics` follows the rules of its format, and agrees with what else the service says.

use std::collections::BTreeMap;

use oddscache_testkit::{
    eventually,
    service::{command, ended},
};

use super::served;

/// The samples by name and labels. Panics if the text breaks the format or its conventions.
fn samples(text: &str) -> BTreeMap<String, f64> {
    let mut kinds = BTreeMap::new();
    let mut samples = BTreeMap::new();
    let (mut family, mut kind) = ("", "");
    for line in text.lines() {
        if let Some(help) = line.strip_prefix("# HELP ") {
            let (name, sentence) = help.split_once(' ').expect("a sentence");
            assert!(sentence.ends_with('.'), "{line}");
            family = name;
        } else if let Some(typed) = line.strip_prefix("# TYPE ") {
            let (name, its_kind) = typed.split_once(' ').expect("a kind");
            assert_eq!(name, family, "HELP and TYPE stand together");
            kind = its_kind;
            assert!(["gauge", "counter", "histogram"].contains(&kind), "{line}");
            assert_eq!(name.ends_with("_total"), kind == "counter", "{line}");
            assert!(kinds.insert(name, kind).is_none(), "{line}: twice");
        } else {
            let (name, value) = line.rsplit_once(' ').expect("a value");
            let bare = name.split('{').next().expect("a name");
            let part = bare.strip_prefix(family).expect("beside its HELP");
            match kind {
                "histogram" => assert!(["_bucket", "_sum", "_count"].contains(&part), "{line}"),
                _ => assert_eq!(part, "", "{line}"),
            }
            let ours = family.starts_with("oddscache_") || family.starts_with("process_");
            assert!(ours && name.is_ascii(), "{line}");
            assert!(!name.contains("event_id"), "{line}: a label per event");
            let value = value.parse().expect("a number");
            let before = samples.insert(name.to_owned(), value);
            assert!(before.is_none(), "{line}: twice");
        }
    }
    let histograms = kinds.iter().filter(|(_, kind)| **kind == "histogram");
    for (family, _) in histograms {
        check_buckets(family, text, &samples);
    }
    samples
}

/// The buckets of a histogram grow with their bound, and the last one has the count of all.
fn check_buckets(family: &str, text: &str, samples: &BTreeMap<String, f64>) {
    let mut last: Option<(&str, f64, f64)> = None;
    for line in text.lines() {
        let Some(rest) = line.strip_prefix(&format!("{family}_bucket{{")) else {
            continue;
        };
        let (labels, count) = rest.rsplit_once("} ").expect("labels");
        let (labels, le) = labels.rsplit_once("le=\"").expect("a bound");
        let le: f64 = le.trim_end_matches('"').parse().expect("a bound");
        let count: f64 = count.parse().expect("a count");
        if let Some((before, bound, below)) = last
            && before == labels
        {
            assert!(bound < le && below <= count, "{line}");
        } else {
            let is_over = last.is_none_or(|(_, bound, _)| bound.is_infinite());
            assert!(is_over, "{line}");
        }
        if le.is_infinite() {
            let labels = labels.trim_end_matches(',');
            let name = match labels {
                "" => format!("{family}_count"),
                labels => format!("{family}_count{{{labels}}}"),
            };
            assert_eq!(samples[&name], count, "{line}");
        }
        last = Some((labels, le, count));
    }
    let is_whole = last.is_some_and(|(_, bound, _)| bound.is_infinite());
    assert!(is_whole, "{family}");
}

/// `/metrics` must report what `/v1/stats` reports and what the database has.
#[tokio::test]
async fn metrics_agree_with_the_database_and_with_the_statistics() {
    let (database, served) = served(&[]).await;
    let read = async || {
        let (status, text) = served.get("/metrics").await;
        assert_eq!(status, 200);
        samples(&text)
    };
    eventually("it follows", async || {
        read().await["oddscache_connected"] == 1.0
    })
    .await;
    let first = read().await;
    let asked = |path: &str, code: &str| {
        format!("oddscache_http_requests_total{{path=\"{path}\",code=\"{code}\"}}")
    };
    for (name, value) in [
        ("oddscache_warm", 1.0),
        ("oddscache_connected", 1.0),
        ("oddscache_epoch", 1.0),
        ("oddscache_standby", 0.0),
        ("oddscache_events{side=\"betpawa\"}", 8.0),
        ("oddscache_events{side=\"competitor\"}", 5.0),
        ("oddscache_snapshots", 13.0),
        ("oddscache_markets", 16.0),
        ("oddscache_reloads_total{reason=\"first\"}", 1.0),
        ("oddscache_reloads_total{reason=\"connection_lost\"}", 0.0),
        ("oddscache_reconnects_total", 0.0),
        ("oddscache_resumed_total", 0.0),
        ("oddscache_commit_to_visible_seconds_count", 0.0),
        ("oddscache_malformed_rows_read_total", 0.0),
        ("oddscache_audit_mismatches_total", 0.0),
        (&asked("/v1/events", "2xx"), 0.0),
        ("oddscache_change_streams", 0.0),
        ("oddscache_prunes_total", 0.0),
        ("oddscache_prune_failures_total", 0.0),
    ] {
        assert_eq!(first.get(name), Some(&value), "{name}");
    }
    assert!(first["oddscache_view_age_seconds"] < 60.0);
    let sum = |prefix: &str| {
        let samples = first.iter().filter(|(name, _)| name.starts_with(prefix));
        samples.map(|(_, value)| value).sum::<f64>()
    };
    let stats = served.json("/v1/stats").await;
    assert_eq!(sum("oddscache_memory_bytes{part="), stats["memory_bytes"]);
    // `--version` and the metric name the same commit.
    let printed = ended(&mut command(&["--version"])).ok().out;
    let commit = printed.trim_end().strip_prefix("oddscache 0.1.0 (");
    let commit = commit.and_then(|rest| rest.strip_suffix(')'));
    let commit = commit.unwrap_or_else(|| panic!("{printed}"));
    let built = format!("oddscache_build_info{{version=\"0.1.0\",commit=\"{commit}\"}}");
    assert_eq!(first.get(&built), Some(&1.0), "{built}");
    assert!(first["process_resident_memory_bytes"] > 1e6);
    let now = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap();
    let up = now.as_secs_f64() - first["process_start_time_seconds"];
    assert!((-2.0..300.0).contains(&up), "{up}");
    assert!((0.001..300.0).contains(&first["process_cpu_seconds_total"]));
    assert_eq!(sum("oddscache_status{"), 1.0);

    for path in [
        "/v1/events",
        "/v1/events/1",
        "/v1/events/x",
        "/nowhere/at/all",
        "/page/board.js",
    ] {
        served.get(path).await;
    }
    let _stream = served.ask("/v1/changes", &[]).await;
    database.psql("insert into odds_snapshots (event_id, bookmaker_id) values (9, 1)");
    eventually("the change is counted", async || {
        let now = read().await;
        now["oddscache_events{side=\"betpawa\"}"] == 9.0
            && now["oddscache_commit_to_visible_seconds_count"] > 0.0
    })
    .await;
    let second = read().await;
    for (path, code) in [
        ("/v1/events", "2xx"),
        ("/v1/events/{id}", "2xx"),
        ("/v1/events/{id}", "4xx"),
        ("other", "4xx"),
        ("/page/{file}", "2xx"),
    ] {
        assert_eq!(second[&asked(path, code)], 1.0, "{path} {code}");
    }
    let by_id = "oddscache_http_request_seconds_count{path=\"/v1/events/{id}\"}";
    for (name, value) in [
        ("oddscache_change_streams", 1.0),
        (by_id, 2.0),
        ("oddscache_commit_to_visible_seconds_count", 1.0),
        ("oddscache_publish_seconds_count", 1.0),
    ] {
        assert_eq!(second[name], value, "{name}");
    }
    assert!(second["oddscache_commit_to_visible_seconds_sum"] > 0.0);
    let timings = served.json("/v1/stats").await["timings"].clone();
    assert_eq!(timings["commit_to_visible"]["count"], 1);
    assert_eq!(timings["commit_to_visible"]["buckets"][0]["count"], 1);
    for name in ["published", "log_rows", "reads", "rows_read"] {
        let name = format!("oddscache_{name}_total");
        assert!(second[&name] > first[&name], "{name}");
    }
    database.psql("select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'oddscache follow' and datname = current_database()");
    eventually("it goes on after a lost connection", async || {
        read().await["oddscache_resumed_total"] == 1.0
    })
    .await;
    let third = read().await;
    let lost = "oddscache_reloads_total{reason=\"connection_lost\"}";
    assert_eq!((third[lost], third["oddscache_epoch"]), (0.0, 1.0));
    assert!(third["oddscache_reconnects_total"] >= 1.0);
    assert_eq!(third["oddscache_commit_to_visible_seconds_count"], 1.0);
}
