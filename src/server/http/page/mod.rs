//! `GET /`: the page. A live odds board and a health panel, whole within the binary: no build step, no other host.
//!
//! It is a client of the same paths as every other: `/v1/list`, `/v1/changes`, `/v1/events/{id}` and `/v1/stats`. Its
//! own files say nothing of the odds, so they need no token; the page sends the one it is given with what it asks for.

use std::{
    hash::{DefaultHasher, Hash, Hasher},
    sync::LazyLock,
};

use axum::{
    Router,
    extract::Path,
    http::{
        HeaderMap, HeaderName, HeaderValue, StatusCode,
        header::{
            CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, ETAG, REFERRER_POLICY,
            X_CONTENT_TYPE_OPTIONS,
        },
    },
    response::{IntoResponse, Response},
    routing::get,
};

use super::{cut, problem::problem};

/// Nothing but what this service serves: no inline script or style, no other host, no frame around it.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; \
                      img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

const HTML: &str = "text/html; charset=utf-8";
const CSS: &str = "text/css; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";
const SVG: &str = "image/svg+xml";

/// A file of the page: name, type and text.
struct File(&'static str, &'static str, &'static str);

const INDEX: File = File("index.html", HTML, include_str!("index.html"));

/// Served below `/page/`.
const FILES: [File; 13] = [
    File("base.css", CSS, include_str!("base.css")),
    File("board.css", CSS, include_str!("board.css")),
    File("health.css", CSS, include_str!("health.css")),
    File("icon.svg", SVG, include_str!("icon.svg")),
    File("main.js", SCRIPT, include_str!("main.js")),
    File("service.js", SCRIPT, include_str!("service.js")),
    File("store.js", SCRIPT, include_str!("store.js")),
    File("board.js", SCRIPT, include_str!("board.js")),
    File("detail.js", SCRIPT, include_str!("detail.js")),
    File("health.js", SCRIPT, include_str!("health.js")),
    File("chart.js", SCRIPT, include_str!("chart.js")),
    File("quantiles.js", SCRIPT, include_str!("quantiles.js")),
    File("format.js", SCRIPT, include_str!("format.js")),
];

/// One for all files: modules of two releases would not fit each other. Weak, as they may be compressed on the way.
static TAG: LazyLock<String> = LazyLock::new(|| {
    let mut hasher = DefaultHasher::new();
    for File(name, _, text) in FILES.iter().chain([&INDEX]) {
        (name, text).hash(&mut hasher);
    }
    format!("W/\"{:016x}\"", hasher.finish())
});

/// `/` and `/page/{file}`: the same answers for everyone, whatever the cache holds.
pub(crate) fn router<S: Clone + Send + Sync + 'static>() -> Router<S> {
    let index = async |headers: HeaderMap| served(&INDEX, &headers);
    Router::new()
        .route("/", get(index))
        .route("/page/{file}", get(file))
}

async fn file(Path(name): Path<String>, headers: HeaderMap) -> Response {
    match FILES.iter().find(|file| file.0 == name) {
        Some(file) => served(file, &headers),
        None => problem(
            StatusCode::NOT_FOUND,
            format!("the page has no file {name:?}"),
        ),
    }
}

/// The file, or 304 if the client has it.
fn served(file: &'static File, request: &HeaderMap) -> Response {
    let File(_, content_type, text) = *file;
    let mut response = if cut::has(request, &TAG) {
        StatusCode::NOT_MODIFIED.into_response()
    } else {
        ([(CONTENT_TYPE, content_type)], text).into_response()
    };
    let headers = response.headers_mut();
    let fixed: [(HeaderName, &'static str); 4] = [
        (CONTENT_SECURITY_POLICY, POLICY),
        // A token may stand in the page's address until the page has taken it out.
        (REFERRER_POLICY, "no-referrer"),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        // Asked for each time, so that a new release is seen at once; 304 costs nothing.
        (CACHE_CONTROL, "no-cache"),
    ];
    for (name, value) in fixed {
        headers.insert(name, HeaderValue::from_static(value));
    }
    if let Ok(tag) = HeaderValue::try_from(TAG.as_str()) {
        headers.insert(ETAG, tag);
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_file_that_a_file_names_is_served() {
        let all = || FILES.iter().chain([&INDEX]);
        let mut named = 0;
        for File(name, _, text) in all() {
            for (before, after) in [("\"/page/", "\""), ("from \"./", "\"")] {
                for rest in text.split(before).skip(1) {
                    let file = rest.split(after).next().unwrap();
                    assert!(all().any(|known| known.0 == file), "{name} names {file}");
                    named += 1;
                }
            }
        }
        assert!(named >= FILES.len(), "{named}");
    }

    #[test]
    fn no_file_names_another_host() {
        for File(name, _, text) in FILES.iter().chain([&INDEX]) {
            // The names of SVG's and XML's elements are no addresses.
            let text = text.replace("http://www.w3.org/2000/svg", "");
            assert!(!text.contains("://"), "{name}");
        }
    }
}
