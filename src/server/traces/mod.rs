//! `--otlp-endpoint`: sends traces to an OpenTelemetry collector, by OTLP over HTTP in protobuf.
//!
//! The spans are those of the `tracing` crate: the library's, and one for each HTTP request ([`super::http`]). A thread of
//! the SDK sends them in batches.
//!
//! # Invariants
//! - T1: At most [`MOST_WAITING`] spans wait for the collector. Further ones are dropped, and nothing waits for them.
//! - T2: Each span that was sampled is counted as sent, failed or dropped, but those that wait when the process ends.

mod client;
mod environment;

use std::{
    fmt,
    str::FromStr,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use anyhow::{Context, anyhow};
use axum::http::{
    Uri,
    uri::{InvalidUri, Scheme},
};
use opentelemetry::{Context as Parent, trace::TracerProvider};
use opentelemetry_otlp::{Protocol, RetryPolicy, WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::{
    Resource,
    error::OTelSdkResult,
    trace::{
        BatchConfigBuilder, BatchSpanProcessor, SdkTracerProvider, Span, SpanData, SpanExporter,
        SpanProcessor,
    },
};
use tokio::runtime::Handle;
use tracing::Level;
use tracing_subscriber::{
    Layer, Registry,
    filter::{LevelFilter, filter_fn},
};

use super::logging::Seldom;
use client::Collector;

/// How long the end of the process waits for the last batch.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(3);

/// The collector's path for traces.
const PATH: &str = "/v1/traces";

/// How many spans wait at most, with those that are being sent. With their attributes, some MiB.
const MOST_WAITING: u64 = 4_096;

/// The most spans of a request to the collector.
const BATCH: usize = 512;

/// How often a batch is sent that is not full.
const INTERVAL: Duration = Duration::from_secs(1);

static ENDED: AtomicU64 = AtomicU64::new(0);
static SENT: AtomicU64 = AtomicU64::new(0);
static FAILED: AtomicU64 = AtomicU64::new(0);
static DROPPED: AtomicU64 = AtomicU64::new(0);

fn add(counter: &AtomicU64, spans: u64) {
    counter.fetch_add(spans, Ordering::Relaxed);
}

fn count(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}

#[derive(Debug, Clone, Default, clap::Args)]
#[command(next_help_heading = "Traces")]
pub(crate) struct TraceArguments {
    /// Send traces to this OpenTelemetry collector, by OTLP over HTTP: http://127.0.0.1:4318. The service adds
    /// /v1/traces. Variables set the rest: OTEL_TRACES_SAMPLER, OTEL_TRACES_SAMPLER_ARG, OTEL_EXPORTER_OTLP_HEADERS,
    /// OTEL_EXPORTER_OTLP_CERTIFICATE, OTEL_SERVICE_NAME, OTEL_RESOURCE_ATTRIBUTES
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

impl Endpoint {
    fn is_https(&self) -> bool {
        self.0.scheme() == Some(&Scheme::HTTPS)
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
    /// The URL, a variable or the file of certificates is wrong.
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
        let sampler = environment::sampler()?;
        environment::check_headers()?;
        let roots = client::roots(endpoint.is_https(), environment::trusted()?);
        let roots = roots.context("the certificates of collectors")?;
        let collector = Collector::new(runtime, roots)?;
        let exporter = opentelemetry_otlp::SpanExporter::builder()
            .with_http()
            .with_protocol(Protocol::HttpBinary)
            .with_endpoint(endpoint.to_string())
            .with_timeout(client::TIMEOUT)
            .with_retry_policy(RetryPolicy::disabled())
            .with_http_client(collector.clone())
            .build()
            .context("--otlp-endpoint")?;
        let exporter = Exporter {
            endpoint,
            collector,
            exporter,
            warns: Seldom::default(),
        };
        // Twice as many, so that none is dropped without being counted.
        let batches = BatchConfigBuilder::default()
            .with_max_queue_size(2 * MOST_WAITING as usize)
            .with_max_export_batch_size(BATCH)
            .with_scheduled_delay(INTERVAL)
            .build();
        let processor = BatchSpanProcessor::builder(exporter).with_batch_config(batches);
        let provider = SdkTracerProvider::builder()
            .with_resource(environment::resource())
            .with_sampler(sampler)
            .with_span_processor(Bounded(processor.build()))
            .build();
        Ok(Some(Traces { provider }))
    }

    /// Takes the spans of this program, whatever the log's filter is. It takes none of the crates that send. It takes no
    /// messages, because an error in them may be long or have an address.
    pub(crate) fn layer(&self) -> Box<dyn Layer<Registry> + Send + Sync> {
        let tracer = self.provider.tracer(env!("CARGO_PKG_NAME"));
        let is_ours = filter_fn(|metadata| {
            let is_enough = *metadata.level() <= Level::DEBUG;
            metadata.is_span() && is_enough && metadata.target().starts_with("oddscache")
        });
        tracing_opentelemetry::layer()
            .with_tracer(tracer)
            .with_location(false)
            .with_threads(false)
            .with_tracked_inactivity(false)
            .with_target(false)
            .with_filter(is_ours.with_max_level_hint(LevelFilter::DEBUG))
            .boxed()
    }

    /// Sends what waits, for at most [`FLUSH_TIMEOUT`]. Blocks.
    pub(crate) fn flush(&self) {
        if let Err(error) = self.provider.shutdown_with_timeout(FLUSH_TIMEOUT) {
            tracing::warn!(error = error.to_string(), "the last traces were not sent");
        }
    }
}

/// Passes spans on while not too many wait (T1).
#[derive(Debug)]
struct Bounded(BatchSpanProcessor);

impl SpanProcessor for Bounded {
    fn on_start(&self, span: &mut Span, parent: &Parent) {
        self.0.on_start(span, parent);
    }

    fn on_end(&self, span: SpanData) {
        add(&ENDED, 1);
        let settled = count(&SENT) + count(&FAILED) + count(&DROPPED);
        if count(&ENDED).saturating_sub(settled) > MOST_WAITING {
            return add(&DROPPED, 1);
        }
        self.0.on_end(span);
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.0.force_flush()
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.0.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.0.set_resource(resource);
    }
}

/// Sends batches, counts their spans, and logs what fails.
#[derive(Debug)]
struct Exporter {
    endpoint: Endpoint,
    collector: Collector,
    exporter: opentelemetry_otlp::SpanExporter,
    warns: Seldom,
}

impl Exporter {
    /// Says in the log why spans are lost, once in a while.
    fn warn(&self, error: &str) {
        if self.warns.is_due() {
            tracing::warn!(
                endpoint = %self.endpoint,
                error,
                failed = count(&FAILED),
                dropped = count(&DROPPED),
                "traces are lost: the collector did not take them"
            );
        }
    }
}

impl SpanExporter for Exporter {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let spans = batch.len() as u64;
        match self.exporter.export(batch).await {
            Ok(()) => add(&SENT, spans),
            Err(error) => {
                add(&FAILED, spans);
                // The exporter's error says only that the network failed.
                let cause = self.collector.take_failure();
                self.warn(&cause.unwrap_or_else(|| error.to_string()));
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

/// What became of spans since the process began.
pub(crate) fn counts() -> [(&'static str, u64); 3] {
    [
        ("sent", count(&SENT)),
        ("failed", count(&FAILED)),
        ("dropped", count(&DROPPED)),
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
