//! Which pages of other origins may read answers in a browser (CORS), by tower-http's layer.
//!
//! Off unless `--cors-origin` names an origin. A browser then lets scripts of that origin read answers to GET and HEAD.
//! It never protects the service: who is no browser can read all that it may ask for.

use std::{fmt, str::FromStr, time::Duration};

use axum::http::{
    HeaderName, HeaderValue, Method, Uri,
    header::{AUTHORIZATION, CACHE_CONTROL, ETAG, IF_NONE_MATCH, LINK, RETRY_AFTER},
};
use tower_http::cors::{AllowOrigin, CorsLayer};

use super::{access_log::REQUEST_ID, cut};

/// How long a browser may use the answer to a preflight request again. Chromium takes no longer time than this.
const MAX_AGE: Duration = Duration::from_secs(2 * 3600);

/// `https://board.example`, as a browser writes it in the header `Origin`; or `*` for every origin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Origin(String);

impl Origin {
    pub(crate) fn is_any(&self) -> bool {
        self.0 == "*"
    }
}

impl FromStr for Origin {
    type Err = String;

    fn from_str(text: &str) -> Result<Origin, String> {
        if text == "*" {
            return Ok(Origin(text.to_owned()));
        }
        let wrong = || {
            "an origin is written as in a browser's header: https://board.example or http://localhost:3000, without a \
             path, in lower case, without the scheme's own port; * stands for all origins"
                .to_owned()
        };
        let uri: Uri = text.parse().map_err(|_| wrong())?;
        let scheme = uri
            .scheme_str()
            .filter(|scheme| matches!(*scheme, "http" | "https"));
        let (Some(scheme), Some(host)) = (scheme, uri.host()) else {
            return Err(wrong());
        };
        let own_port = if scheme == "https" { 443 } else { 80 };
        let written = match uri.port_u16().filter(|port| *port != own_port) {
            Some(port) => format!("{scheme}://{host}:{port}"),
            None => format!("{scheme}://{host}"),
        };
        // What is written in another way never equals what a browser sends.
        match written.to_ascii_lowercase() == text {
            true => Ok(Origin(written)),
            false => Err(wrong()),
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The layer that answers preflight requests and adds the headers; `None` without an origin.
pub(crate) fn layer(origins: &[Origin]) -> Option<CorsLayer> {
    let allowed = match origins {
        [] => return None,
        origins if origins.iter().any(Origin::is_any) => AllowOrigin::any(),
        // An origin has only characters that a header may have.
        origins => AllowOrigin::list(
            origins
                .iter()
                .filter_map(|Origin(text)| HeaderValue::from_str(text).ok()),
        ),
    };
    let layer = CorsLayer::new()
        .allow_origin(allowed)
        .allow_methods([Method::GET, Method::HEAD])
        .allow_headers([
            AUTHORIZATION,
            CACHE_CONTROL,
            IF_NONE_MATCH,
            HeaderName::from_static("last-event-id"),
            REQUEST_ID,
        ])
        .expose_headers([
            ETAG,
            LINK,
            RETRY_AFTER,
            REQUEST_ID,
            cut::AS_OF,
            cut::AGE_MS,
            cut::EPOCH,
            HeaderName::from_static("oddscache-next"),
        ])
        .max_age(MAX_AGE);
    Some(layer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_origin_is_what_a_browser_sends() {
        for text in [
            "*",
            "https://board.example",
            "http://localhost:3000",
            "https://[::1]:8443",
        ] {
            assert_eq!(text.parse::<Origin>().unwrap().to_string(), text);
        }
        for wrong in [
            "",
            "null",
            "board.example",
            "https://",
            "https://board.example/",
            "https://Board.example",
            "https://board.example:443",
            "http://a:80",
            "ftp://a",
            "https://*.example/x",
            "https://a b",
            "https://u@board.example",
        ] {
            assert!(wrong.parse::<Origin>().is_err(), "{wrong}");
        }
    }
}
