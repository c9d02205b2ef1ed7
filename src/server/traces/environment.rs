//! The variables of OpenTelemetry that count here. Each is checked, because the SDK ignores a wrong one.

use std::{env, fs};

use anyhow::{Context, bail};
use axum::http::{HeaderName, HeaderValue};
use opentelemetry::KeyValue;
use opentelemetry_sdk::{
    Resource,
    resource::{EnvResourceDetector, TelemetryResourceDetector},
    trace::Sampler,
};

const SAMPLER: &str = "OTEL_TRACES_SAMPLER";
const RATIO: &str = "OTEL_TRACES_SAMPLER_ARG";
const HEADERS: [&str; 2] = [
    "OTEL_EXPORTER_OTLP_TRACES_HEADERS",
    "OTEL_EXPORTER_OTLP_HEADERS",
];
const CERTIFICATES: [&str; 2] = [
    "OTEL_EXPORTER_OTLP_TRACES_CERTIFICATE",
    "OTEL_EXPORTER_OTLP_CERTIFICATE",
];

/// The value of a variable. An empty one counts as none, as OpenTelemetry wants it.
fn variable(name: &str) -> Option<String> {
    let value = env::var_os(name)?.to_string_lossy().into_owned();
    Some(value).filter(|value| !value.is_empty())
}

/// Which traces are sent: all, unless the variables say otherwise. A caller's trace is sent if the caller sends it.
pub(super) fn sampler() -> anyhow::Result<Sampler> {
    sampler_of(variable(SAMPLER).as_deref(), variable(RATIO).as_deref())
}

fn sampler_of(name: Option<&str>, argument: Option<&str>) -> anyhow::Result<Sampler> {
    let ratio = || match argument {
        None => Ok(1.0),
        Some(text) => match text.parse() {
            Ok(ratio) if (0.0..=1.0).contains(&ratio) => Ok(ratio),
            _ => bail!("{RATIO}={text}: it must be a number from 0 to 1"),
        },
    };
    let by_parent = |sampler| Sampler::ParentBased(Box::new(sampler));
    Ok(match name {
        None | Some("parentbased_always_on") => by_parent(Sampler::AlwaysOn),
        Some("always_on") => Sampler::AlwaysOn,
        Some("always_off") => Sampler::AlwaysOff,
        Some("traceidratio") => Sampler::TraceIdRatioBased(ratio()?),
        Some("parentbased_always_off") => by_parent(Sampler::AlwaysOff),
        Some("parentbased_traceidratio") => by_parent(Sampler::TraceIdRatioBased(ratio()?)),
        Some(other) => bail!(
            "{SAMPLER}={other}: it must be always_on, always_off, traceidratio, parentbased_always_on, \
             parentbased_always_off or parentbased_traceidratio"
        ),
    })
}

/// Checks the headers that the exporter takes from the environment. Does not repeat them, because one may be a token.
pub(super) fn check_headers() -> anyhow::Result<()> {
    for name in HEADERS {
        let value = variable(name).unwrap_or_default();
        if !are_headers(&value) {
            bail!(
                "{name}: it must be name=value, with commas between several and the values percent-encoded"
            );
        }
    }
    Ok(())
}

fn are_headers(text: &str) -> bool {
    let mut pairs = text.split(',').filter(|pair| !pair.trim().is_empty());
    pairs.all(|pair| {
        pair.split_once('=').is_some_and(|(name, value)| {
            let is_name = HeaderName::try_from(name.trim()).is_ok();
            is_name && HeaderValue::try_from(value.trim()).is_ok()
        })
    })
}

/// The certificates that a collector's must come from, in PEM, if the environment names a file.
pub(super) fn trusted() -> anyhow::Result<Option<Vec<u8>>> {
    let named = CERTIFICATES
        .into_iter()
        .find_map(|name| Some((name, variable(name)?)));
    let Some((name, path)) = named else {
        return Ok(None);
    };
    let pem = fs::read(&path).with_context(|| format!("{name}: {path}"))?;
    Ok(Some(pem))
}

/// What the collector learns of this process. The environment overrides it.
pub(super) fn resource() -> Resource {
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
    match variable("OTEL_SERVICE_NAME") {
        Some(name) => resource.with_service_name(name),
        None => resource,
    }
    .build()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_sampler_is_refused_and_not_ignored() {
        for (name, ratio, sampler) in [
            (None, None, "ParentBased(AlwaysOn)"),
            (Some("always_off"), Some("x"), "AlwaysOff"),
            (
                Some("traceidratio"),
                Some("0.25"),
                "TraceIdRatioBased(0.25)",
            ),
            (
                Some("parentbased_traceidratio"),
                None,
                "ParentBased(TraceIdRatioBased(1.0))",
            ),
        ] {
            assert_eq!(format!("{:?}", sampler_of(name, ratio).unwrap()), sampler);
        }
        for (name, ratio) in [
            ("bogus", "1"),
            ("traceidratio", "1%"),
            ("parentbased_traceidratio", "1.5"),
            ("traceidratio", "NaN"),
        ] {
            sampler_of(Some(name), Some(ratio)).unwrap_err();
        }
    }

    #[test]
    fn headers_are_names_with_values() {
        for right in ["", "authorization=Bearer%20x", "a=b, c=d=,"] {
            assert!(are_headers(right), "{right}");
        }
        for wrong in ["authorization: Bearer x", "a", "a b=c", "a=b\nc"] {
            assert!(!are_headers(wrong), "{wrong}");
        }
    }
}
