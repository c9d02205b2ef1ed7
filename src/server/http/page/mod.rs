//! `GET /`: the page, a live odds board and a health panel. All of it is in the binary: no build step, no other host.
//!
//! It is a client of the public paths: `/v1/list`, `/v1/changes`, `/v1/events/{id}`, its history, and `/v1/stats`. Its own files hold
//! no odds, so they need no token. The page sends its user's token with its requests.

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

/// Allows nothing but what this service serves: no inline script or style, no other host, no frame around the page.
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
const FILES: [File; 21] = [
    File("base.css", CSS, include_str!("base.css")),
    File("board.css", CSS, include_str!("board.css")),
    File("health.css", CSS, include_str!("health.css")),
    File("icon.svg", SVG, include_str!("icon.svg")),
    File("main.js", SCRIPT, include_str!("main.js")),
    File("service.js", SCRIPT, include_str!("service.js")),
    File("store.js", SCRIPT, include_str!("store.js")),
    File("board.js", SCRIPT, include_str!("board.js")),
    File("cells.js", SCRIPT, include_str!("cells.js")),
    File("link.js", SCRIPT, include_str!("link.js")),
    File("markets.js", SCRIPT, include_str!("markets.js")),
    File("detail.js", SCRIPT, include_str!("detail.js")),
    File("history.css", CSS, include_str!("history.css")),
    File("history.js", SCRIPT, include_str!("history.js")),
    File("moves.js", SCRIPT, include_str!("moves.js")),
    File("uplot.css", CSS, include_str!("uplot.css")),
    File("uplot.js", SCRIPT, include_str!("uplot.js")),
    File("health.js", SCRIPT, include_str!("health.js")),
    File("chart.js", SCRIPT, include_str!("chart.js")),
    File("quantiles.js", SCRIPT, include_str!("quantiles.js")),
    File("format.js", SCRIPT, include_str!("format.js")),
];

/// One ETag for all files, because modules of two releases do not fit each other. Weak, because an answer may be
/// compressed.
static TAG: LazyLock<String> = LazyLock::new(|| {
    let mut hasher = DefaultHasher::new();
    for File(name, _, text) in FILES.iter().chain([&INDEX]) {
        (name, text).hash(&mut hasher);
    }
    format!("W/\"{:016x}\"", hasher.finish())
});

/// `/` and `/page/{file}`: the same answers for everybody.
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
        // The page's address may hold a token until the page has taken it out.
        (REFERRER_POLICY, "no-referrer"),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        // The browser asks each time, so that it sees a new release at once. A 304 costs nothing.
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
            for (before, after) in [
                ("\"/page/", "\""),
                ("from \"./", "\""),
                ("import(\"./", "\""),
            ] {
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
            // The name of SVG's namespace is no address.
            let text = text.replace("http://www.w3.org/2000/svg", "");
            assert!(!text.contains("://"), "{name}");
        }
    }
}
