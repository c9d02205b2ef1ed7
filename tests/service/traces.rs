//! `--otlp-endpoint`: traces that a real OpenTelemetry collector takes.

use std::{
    io::{BufRead, BufReader},
    net::TcpListener,
    os::unix::process::CommandExt,
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex},
    thread,
    time::Instant,
};

use oddscache_testkit::{
    certificates::Authority,
    programs::missing,
    service::{Service, command, ended},
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::{eventually, limits::say, with_odds};

/// A private collector, which prints what it takes. It ends when this value is dropped, and also when this process ends.
struct Collector {
    url: String,
    printed: Arc<Mutex<String>>,
    process: Child,
    _folder: tempfile::TempDir,
}

impl Collector {
    /// `None` where `.ci/collector` has installed none.
    async fn start() -> Option<Collector> {
        let Some(program) = std::env::var_os("ODDSCACHE_COLLECTOR") else {
            missing("a collector", "ODDSCACHE_COLLECTOR=$(bash .ci/collector)");
            return None;
        };
        let folder = tempfile::tempdir().unwrap();
        let addresses = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
        let [http, grpc] = addresses.map(|free| free.local_addr().unwrap().to_string());
        // The shell kills the collector at the end of its input. Only this process holds the other end of that pipe.
        let script = r#"exec 3>&2 2>/dev/null; "$@" 2>&3 & cat >/dev/null; kill -9 $!; wait $!"#;
        let mut shell = Command::new("sh");
        shell.args(["-c", script, "collector"]).arg(program);
        shell.args(["start", "--exporter=blackhole", "--debug-log=traces"]);
        shell.args([
            "--debug-log-verbosity=detailed",
            "--otlp-http-endpoint",
            &http,
        ]);
        shell.args(["--otlp-grpc-endpoint", &grpc, "--pid-file"]);
        shell.arg(folder.path().join("pid"));
        shell.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = shell.process_group(0).spawn().unwrap();
        let lines = BufReader::new(process.stdout.take().unwrap()).lines();
        let printed = Arc::new(Mutex::new(String::new()));
        let collector = Collector {
            url: format!("http://{http}"),
            printed: Arc::clone(&printed),
            process,
            _folder: folder,
        };
        thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                printed.lock().unwrap().extend([&line, "\n"]);
            }
        });
        eventually("the collector listens", async || {
            tokio::net::TcpStream::connect(&http).await.is_ok()
        })
        .await;
        Some(collector)
    }

    fn printed(&self) -> String {
        self.printed.lock().unwrap().clone()
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        drop(self.process.stdin.take());
        let _ = self.process.wait();
    }
}

/// A span, as the collector printed it: a line `name: value` for each of its parts, and `-> name: Kind(value)` for each
/// attribute.
#[derive(Debug, Clone)]
struct Span(String);

impl Span {
    fn part(&self, name: &str) -> &str {
        let parts = self.0.lines().filter_map(|line| line.split_once(':'));
        let mut parts = parts.filter(|(found, _)| found.trim() == name);
        parts.next().expect(name).1.trim()
    }

    /// How long it lasted. Nanoseconds.
    fn lasted(&self) -> u64 {
        let time = |name| self.part(name).parse::<u64>().expect("a time");
        time("End time") - time("Start time")
    }

    fn has(&self, attribute: &str) -> bool {
        let mut lines = self.0.lines().map(str::trim);
        lines.any(|line| line.strip_prefix("-> ") == Some(attribute))
    }
}

impl Collector {
    /// All spans of this name.
    fn spans(&self, name: &str) -> Vec<Span> {
        let printed = self.printed();
        let spans = printed.split("\nSpan #").skip(1);
        let spans = spans.map(|text| text.split("\nResourceSpans").next().unwrap_or(text));
        // The last one may not be whole yet: the collector prints line by line.
        let spans = spans.filter(|text| text.contains("\nEnd time:"));
        let spans = spans.map(|text| Span(text.to_owned()));
        spans.filter(|span| span.part("Name") == name).collect()
    }

    /// Waits for a span of this name, and until the collector prints no more lines of it.
    async fn span(&self, name: &str) -> Span {
        let mut before = String::new();
        eventually(name, async || {
            let printed = self.printed();
            let is_still = printed == before;
            before = printed;
            is_still && !self.spans(name).is_empty()
        })
        .await;
        self.spans(name).remove(0)
    }
}

/// A collector that takes connections and never answers, and its URL.
fn silent() -> (TcpListener, String) {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", silent.local_addr().unwrap());
    (silent, url)
}

/// A request continues the trace that it names. What it asks the database has a span below its own.
#[tokio::test]
async fn a_collector_takes_the_spans_of_requests() {
    let Some(collector) = Collector::start().await else {
        return;
    };
    let database = with_odds();
    let more = ["--access-log", "--otlp-endpoint", &collector.url];
    let served = Service::start_with(&database.dsn(), &more, &[]).await;
    served.ready().await;
    let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
    let parent = format!("00-{trace}-00f067aa0ba902b7-01");
    let headers = [
        ("traceparent", &*parent),
        ("x-request-id", "request-7"),
        ("authorization", "Bearer secret-0123456789abcdef"),
    ];
    let path = "/v1/events/3/history?market=5000&limit=77";
    assert_eq!(served.ask(path, &headers).await.status(), 200);
    let request = collector.span("GET /v1/events/{id}/history").await;
    for (name, value) in [
        ("Trace ID", trace),
        ("Parent ID", "00f067aa0ba902b7"),
        ("Kind", "SPAN_KIND_SERVER"),
        ("Status code", "STATUS_CODE_UNSET"),
    ] {
        assert_eq!(request.part(name), value, "{request:?}");
    }
    for attribute in [
        "http.request.method: Str(GET)",
        "http.route: Str(/v1/events/{id}/history)",
        "http.response.status_code: Int(200)",
        "url.path: Str(/v1/events/3/history)",
        "network.protocol.version: Str(1.1)",
        "client.address: Str(127.0.0.1)",
        "request_id: Str(request-7)",
    ] {
        assert!(request.has(attribute), "{attribute}: {request:?}");
    }
    let history = collector.span("history").await;
    assert_eq!(history.part("Trace ID"), trace);
    assert_eq!(history.part("Parent ID"), request.part("ID"));
    assert!(history.has("event_id: Int(3)"), "{history:?}");

    // A path that nobody serves has no route, because its name must not have a value for each path.
    assert_eq!(served.ask("/nowhere", &[]).await.status(), 404);
    let other = collector.span("GET").await;
    assert_ne!(other.part("Trace ID"), trace);
    assert_eq!(other.part("Parent ID"), "");
    // A word that is no method of HTTP does not get into a name.
    let words = "SWORDFISH / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    assert!(say(&served, words).await.contains(" 405 "));
    assert!(
        collector
            .span("HTTP /")
            .await
            .has("http.request.method: Str(_OTHER)")
    );

    // A stream has its span at its end, and as long as it was. The span of a later request comes before.
    let mut stream = served.ask("/v1/changes", &[]).await;
    stream.chunk().await.unwrap();
    let begun = Instant::now();
    served.ask("/v1/list", &[]).await;
    collector.span("GET /v1/list").await;
    assert!(collector.spans("GET /v1/changes").is_empty());
    let least = begun.elapsed();
    drop(stream);
    let stream = collector.span("GET /v1/changes").await;
    assert!(
        u128::from(stream.lasted()) >= least.as_nanos(),
        "{stream:?}"
    );

    // These came before: /readyz often, and what a scrape asks for.
    served.metric("oddscache_view_age_seconds").await;
    served.ask("/v1/stats", &[]).await;
    collector.span("GET /v1/stats").await;
    let printed = collector.printed();
    for absent in [
        "readyz",
        "metrics",
        "limit=77",
        "secret-0123456789abcdef",
        "SWORDFISH",
    ] {
        assert!(!printed.contains(absent), "{absent}");
    }
    assert!(printed.contains("-> service.name: Str(oddscache)"));
}

/// Every read of the follower has a span, with that of the publication below it.
#[tokio::test]
async fn a_collector_takes_the_spans_of_reads() {
    let Some(collector) = Collector::start().await else {
        return;
    };
    let database = with_odds();
    let more = ["--otlp-endpoint", &collector.url];
    let variables = [("OTEL_SERVICE_NAME", "odds-of-a-test")];
    let served = Service::start_with(&database.dsn(), &more, &variables).await;
    let warmup = collector.span("warmup").await;
    assert!(warmup.has("events: Int(9)"), "{warmup:?}");
    assert_eq!(warmup.part("Kind"), "SPAN_KIND_INTERNAL");
    served.ready().await;
    database.psql("update market_odds set line = 3.5 where betpawa_market_id = '5000'");
    let below = |parent: &str| {
        let parents = collector.spans(parent);
        let publications = collector.spans("publish");
        publications.into_iter().find(|span| {
            let is_it = |parent: &Span| parent.part("ID") == span.part("Parent ID");
            parents.iter().any(is_it)
        })
    };
    eventually("published", async || below("read").is_some()).await;
    assert!(below("warmup").is_some());
    let printed = collector.printed();
    assert!(printed.contains("-> service.name: Str(odds-of-a-test)"));
    eventually("counted", async || {
        served
            .metric("oddscache_spans_total{result=\"sent\"}")
            .await
            > 2.0
    })
    .await;
}

/// Without the collector the service works as ever, says so, and ends in time.
#[tokio::test]
async fn a_collector_that_is_away_delays_nothing() {
    let database = with_odds();
    let free = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = free.local_addr().unwrap();
    drop(free);
    let url = format!("http://{address}");
    let more = ["--otlp-endpoint", &url];
    let mut served = Service::start_with(&database.dsn(), &more, &[]).await;
    served.ready().await;
    served
        .logs(&["traces are lost", &format!("{url}/v1/traces"), "refused"])
        .await;
    eventually("counted", async || {
        served
            .metric("oddscache_spans_total{result=\"failed\"}")
            .await
            > 0.0
    })
    .await;
    served.signal("-TERM");
    assert!(served.ended().await.success());
}

/// A collector that takes connections and never answers does not hold up the end either.
#[tokio::test]
async fn a_silent_collector_delays_the_end_by_seconds_only() {
    let database = with_odds();
    let (silent, url) = silent();
    let more = ["--otlp-endpoint", &url];
    let mut served = Service::start_with(&database.dsn(), &more, &[]).await;
    served.ready().await;
    let (asked, _) = silent.accept().unwrap();
    served.signal("-TERM");
    served.logs(&["the last traces were not sent"]).await;
    assert!(served.ended().await.success());
    drop(asked);
}

/// The headers of the environment reach the collector, and no log.
#[tokio::test]
async fn the_collector_learns_the_token_and_the_log_does_not() {
    let database = with_odds();
    let refusing = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/otel/", refusing.local_addr().unwrap());
    let headers = (
        "OTEL_EXPORTER_OTLP_HEADERS",
        "authorization=Bearer%20swordfish",
    );
    let more = ["--otlp-endpoint", &url, "--log", "trace"];
    let mut served = Service::start_with(&database.dsn(), &more, &[headers]).await;
    let (mut asked, _) = refusing.accept().await.unwrap();
    let mut head = Vec::new();
    while !head.windows(4).any(|end| end == b"\r\n\r\n") {
        assert_ne!(asked.read_buf(&mut head).await.unwrap(), 0);
    }
    let answer = b"HTTP/1.1 401 Unauthorized\r\ncontent-length: 9\r\n\r\nswordfish";
    asked.write_all(answer).await.unwrap();
    let head = String::from_utf8_lossy(&head);
    assert!(head.starts_with("POST /otel/v1/traces "), "{head}");
    for line in [
        "authorization: Bearer swordfish",
        "content-type: application/x-protobuf",
    ] {
        assert!(head.contains(line), "{head}");
    }
    let mut log = Vec::new();
    while !log
        .last()
        .is_some_and(|line: &String| line.contains("traces are lost"))
    {
        log.push(served.line().await.expect("it runs"));
    }
    assert!(log.last().unwrap().contains("401"), "{:?}", log.last());
    served.signal("-TERM");
    log.extend(served.rest_of_log().await);
    let told: Vec<&String> = log
        .iter()
        .filter(|line| line.contains("swordfish"))
        .collect();
    assert!(told.is_empty(), "{told:?}");
}

/// What waits is bounded. What does not fit is dropped and counted.
#[tokio::test]
async fn spans_that_a_silent_collector_does_not_take_are_dropped_and_counted() {
    let database = with_odds();
    let (_silent, url) = silent();
    let more = ["--otlp-endpoint", &url];
    let served = Service::start_with(&database.dsn(), &more, &[]).await;
    let dropped = async || {
        served
            .metric("oddscache_spans_total{result=\"dropped\"}")
            .await
    };
    assert_eq!(dropped().await, 0.0);
    let request = "HEAD /nowhere HTTP/1.1\r\nHost: x\r\n\r\n".repeat(5_000);
    let last = "HEAD /nowhere HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    let answers = say(&served, &(request + last)).await;
    assert_eq!(answers.matches(" 404 ").count(), 5_001);
    assert!(dropped().await >= 5_001.0 - 4_096.0);
}

/// Traces change no answer. One to HTTP/1.0 without its length could be cut without anybody noticing.
#[tokio::test]
async fn answers_are_the_same_with_traces() {
    let database = with_odds();
    let (_silent, url) = silent();
    let plain = Service::warm(&database.dsn(), &[]).await;
    let traced = Service::warm(&database.dsn(), &["--otlp-endpoint", &url]).await;
    for request in [
        "GET /nowhere HTTP/1.1",
        "POST /v1/list HTTP/1.1",
        "HEAD /v1/list HTTP/1.1",
        "GET /v1/events/3?fields=event_id HTTP/1.0",
        "GET /openapi.json HTTP/1.1",
    ] {
        let words = format!("{request}\r\nHost: x\r\nConnection: close\r\n\r\n");
        let head = async |served: &Service| {
            let answer = say(served, &words).await;
            let (head, _) = answer.split_once("\r\n\r\n").expect("a head");
            let lines = head.lines().filter(|line| {
                let changes = ["date:", "etag:", "oddscache-"];
                !changes.iter().any(|name| line.starts_with(name))
            });
            lines.map(str::to_owned).collect::<Vec<_>>()
        };
        let traced = head(&traced).await;
        assert!(
            traced
                .iter()
                .any(|line| line.starts_with("content-length:")),
            "{traced:?}"
        );
        assert_eq!(head(&plain).await, traced, "{request}");
    }
}

/// A collector with TLS is trusted if its certificate is. Here it is another service, which refuses to be written to.
#[tokio::test]
async fn a_collector_with_tls_must_have_a_certificate_that_is_trusted() {
    let database = with_odds();
    let authority = Authority::new("authority");
    let certified = authority.issue("server", &["localhost"]);
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let cert = file("cert", &certified.certificate);
    let key = file("key", &certified.key);
    let root = file("root", &authority.certificate);
    let secure = ["--tls-cert", &cert, "--tls-key", &key];
    let other = Service::start(&database.dsn(), &secure).await;
    let url = format!("https://localhost:{}", other.address().port());
    let more = ["--otlp-endpoint", &url];
    let mut distrusts = Service::start_with(&database.dsn(), &more, &[]).await;
    distrusts.logs(&["traces are lost", "certificate"]).await;
    let trusted = ("OTEL_EXPORTER_OTLP_CERTIFICATE", &*root);
    let mut trusts = Service::start_with(&database.dsn(), &more, &[trusted]).await;
    trusts.logs(&["traces are lost", "405"]).await;
}

#[test]
fn wrong_settings_are_refused_at_the_start() {
    let right = "https://localhost";
    let certificate = "OTEL_EXPORTER_OTLP_CERTIFICATE";
    for (endpoint, (name, value), word) in [
        ("localhost:4318", ("X", "x"), "http://"),
        (
            "http://user:swordfish@localhost:4318",
            ("X", "x"),
            "OTEL_EXPORTER_OTLP_HEADERS",
        ),
        (right, (certificate, "/nowhere"), "/nowhere"),
        (right, (certificate, "/dev/null"), "no certificate"),
        (
            right,
            ("OTEL_TRACES_SAMPLER", "some"),
            "parentbased_traceidratio",
        ),
        (
            right,
            ("OTEL_EXPORTER_OTLP_HEADERS", "authorization: swordfish"),
            "name=value",
        ),
    ] {
        let mut command = command(&["serve", "--otlp-endpoint", endpoint]);
        command
            .env("DATABASE_URL", "postgres://localhost/x")
            .env(name, value);
        let ended = ended(&mut command).with(2, &[word]);
        assert!(!ended.errors.contains("swordfish"), "{ended:?}");
    }
}
