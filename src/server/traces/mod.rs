//! `--otlp-endpoint`: sends traces to an OpenTelemetry collector, by OTLP over HTTP in protobuf.
//!
//! The spans are those of the `tracing` crate: the library's, and one for each HTTP request
//! ([`super::http`]). A thread of the SDK collects them in a bounded queue and sends them in batches. If the queue is
//! full, or the collector does not answer, spans are lost, counted, and nothing waits for them.

mod client;

use std::{
    fmt, fs,
    str::FromStr,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use anyhow::{Context, anyhow};
use axum::http::{
    Uri,
    uri::{InvalidUri, Scheme},
};
use opentelemetry::{KeyValue, trace::TracerProvider};
use opentelemetry_otlp::{Protocol, WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::{
    Resource,
    error::OTelSdkResult,
    resource::{EnvResourceDetector, TelemetryResourceDetector},
    trace::{SdkTracerProvider, SpanData, SpanExporter},
};
use tokio::runtime::Handle;
use tracing_subscriber::{
    Layer, Registry,
    filter::{LevelFilter, Targets},
};

use client::Collector;

/// How long the end of the process waits for the last batch.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(3);

/// The collector's path for traces.
const PATH: &str = "/v1/traces";

static SENT: AtomicU64 = AtomicU64::new(0);
static FAILED: AtomicU64 = AtomicU64::new(0);

#[derive(Debug, Clone, Default, clap::Args)]
#[command(next_help_heading = "Traces")]
pub(crate) struct TraceArguments {
    /// Send traces to this OpenTelemetry collector, by OTLP over HTTP: http://127.0.0.1:4318. The service adds
    /// /v1/traces. The variables OTEL_* set the rest: sampler, headers, resource, batches
    #[arg(long, env = "ODDSCACHE_OTLP_ENDPOINT", value_name = "URL")]
    otlp_endpoint: Option<String>,
}

impl TraceArguments {
    pub(crate) fn are_sent(&self) -> bool {
        self.otlp_endpoint.is_some()
    }
}

/// Where the collector takes traces.
#[derive(Debug, Clone)]
struct Endpoint(Uri);

impl FromStr for Endpoint {
    type Err = String;

    fn from_str(text: &str) -> Result<Endpoint, String> {
        // The messages do not repeat the URL, because a wrong one may hold a password.
        let example = "a URL such as http://127.0.0.1:4318";
        let not_one = |error| format!("not {example}: {error}");
        let uri: Uri = text
            .parse()
            .map_err(|error| not_one(InvalidUri::to_string(&error)))?;
        let (Some(scheme), Some(authority)) = (uri.scheme(), uri.authority()) else {
            return Err(format!("it must be {example}"));
        };
        if ![Scheme::HTTP, Scheme::HTTPS].contains(scheme) {
            return Err("it must begin with http:// or https://".to_owned());
        }
        if authority.as_str().contains('@') {
            let way = "OTEL_EXPORTER_OTLP_HEADERS gives the header authorization";
            return Err(format!("a password does not belong into it: {way}"));
        }
        if authority.as_str() != authority.host() && authority.port().is_none() {
            return Err("the port is not a number".to_owned());
        }
        if uri.query().is_some() {
            return Err("it must have no query".to_owned());
        }
        let path = uri.path().trim_end_matches('/');
        let path = path.strip_suffix(PATH).unwrap_or(path);
        let uri = format!("{scheme}://{authority}{path}{PATH}");
        uri.parse()
            .map(Endpoint)
            .map_err(|error| not_one(InvalidUri::to_string(&error)))
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Sends spans until it is [flushed](Traces::flush).
#[derive(Debug)]
pub(crate) struct Traces {
    provider: SdkTracerProvider,
}

impl Traces {
    /// Starts the thread that sends, which uses `runtime` for its connections. `None` if no collector is named.
    ///
    /// Connects to nothing: a collector that is away must not keep the service from starting.
    ///
    /// # Errors
    /// A variable OTEL_* or the file of certificates is wrong.
    pub(crate) fn start(
        arguments: &TraceArguments,
        runtime: Handle,
    ) -> anyhow::Result<Option<Traces>> {
        let Some(endpoint) = &arguments.otlp_endpoint else {
            return Ok(None);
        };
        // Not by clap, which would repeat what is wrong.
        let endpoint =
            Endpoint::from_str(endpoint).map_err(|error| anyhow!("--otlp-endpoint: {error}"))?;
        let collector = Collector::new(runtime, trusted()?)?;
        let exporter = opentelemetry_otlp::SpanExporter::builder()
            .with_http()
            .with_protocol(Protocol::HttpBinary)
            .with_endpoint(endpoint.to_string())
            .with_http_client(collector.clone())
            .build()
            .context("--otlp-endpoint")?;
        let exporter = Exporter {
            endpoint,
            collector,
            exporter,
        };
        let provider = SdkTracerProvider::builder()
            .with_resource(resource())
            .with_batch_exporter(exporter)
            .build();
        Ok(Some(Traces { provider }))
    }

    /// Gives the spans of this program, whatever the log's filter is, and no others: the crates that send have spans
    /// too.
    pub(crate) fn layer(&self) -> Box<dyn Layer<Registry> + Send + Sync> {
        let tracer = self.provider.tracer(env!("CARGO_PKG_NAME"));
        tracing_opentelemetry::layer()
            .with_tracer(tracer)
            .with_location(false)
            .with_threads(false)
            .with_tracked_inactivity(false)
            .with_filter(Targets::new().with_target("oddscache", LevelFilter::DEBUG))
            .boxed()
    }

    /// Sends what waits, for at most [`FLUSH_TIMEOUT`]. Blocks.
    pub(crate) fn flush(&self) {
        if let Err(error) = self.provider.shutdown_with_timeout(FLUSH_TIMEOUT) {
            tracing::warn!(error = error.to_string(), "the last traces were not sent");
        }
    }
}

/// The file of certificates that the collector's must come from, if the environment names one.
fn trusted() -> anyhow::Result<Option<Vec<u8>>> {
    for name in [
        "OTEL_EXPORTER_OTLP_TRACES_CERTIFICATE",
        "OTEL_EXPORTER_OTLP_CERTIFICATE",
    ] {
        if let Some(path) = std::env::var_os(name).filter(|path| !path.is_empty()) {
            let pem = fs::read(&path);
            return Ok(Some(
                pem.with_context(|| format!("{name}: {}", path.display()))?,
            ));
        }
    }
    Ok(None)
}

/// What the collector learns of this process. The environment overrides it.
fn resource() -> Resource {
    let instance = format!("{:032x}", fastrand::u128(..));
    let resource = Resource::builder_empty()
        .with_service_name(env!("CARGO_PKG_NAME"))
        .with_attributes([
            KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
            KeyValue::new("service.instance.id", instance),
        ])
        .with_detectors(&[
            Box::new(TelemetryResourceDetector),
            Box::new(EnvResourceDetector::new()),
        ]);
    match std::env::var("OTEL_SERVICE_NAME") {
        Ok(name) if !name.is_empty() => resource.with_service_name(name),
        _ => resource,
    }
    .build()
}

/// Sends batches, counts their spans, and logs what fails.
#[derive(Debug)]
struct Exporter {
    endpoint: Endpoint,
    collector: Collector,
    exporter: opentelemetry_otlp::SpanExporter,
}

impl SpanExporter for Exporter {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let spans = batch.len() as u64;
        match self.exporter.export(batch).await {
            Ok(()) => {
                SENT.fetch_add(spans, Ordering::Relaxed);
            }
            Err(error) => {
                FAILED.fetch_add(spans, Ordering::Relaxed);
                // The exporter's error says only that the network failed.
                let cause = self.collector.take_failure();
                tracing::warn!(
                    endpoint = %self.endpoint,
                    error = cause.unwrap_or_else(|| error.to_string()),
                    spans,
                    "traces are lost: the collector did not take them"
                );
            }
        }
        // It is logged; the SDK would log it again.
        Ok(())
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.exporter.set_resource(resource);
    }
}

/// How many spans the collector took and did not take since the process began.
pub(crate) fn counts() -> [(&'static str, u64); 2] {
    [
        ("sent", SENT.load(Ordering::Relaxed)),
        ("failed", FAILED.load(Ordering::Relaxed)),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_is_a_url_without_secrets() {
        for (text, uri) in [
            ("http://127.0.0.1:4318", "http://127.0.0.1:4318/v1/traces"),
            ("https://otel.example/", "https://otel.example/v1/traces"),
            ("http://h:1/a/", "http://h:1/a/v1/traces"),
            ("http://[::1]:4318/v1/traces", "http://[::1]:4318/v1/traces"),
        ] {
            let endpoint: Endpoint = text.parse().unwrap();
            assert_eq!(endpoint.to_string(), uri);
        }
        for wrong in [
            "localhost:4318",
            "grpc://h:4317",
            "http://",
            "http:///v1/traces",
            "http://h/?key=swordfish",
            "http://user:swordfish@h:4318",
            "http://h:x",
        ] {
            let error = wrong.parse::<Endpoint>().unwrap_err();
            assert!(!error.contains("swordfish"), "{wrong}: {error}");
        }
    }
}
