//! The headers that say from which view an answer was made, and 304 for a client that has it.

use std::sync::LazyLock;

use axum::{
    http::{
        HeaderMap, HeaderName, HeaderValue, StatusCode,
        header::{ACCEPT_ENCODING, CACHE_CONTROL, ETAG, IF_NONE_MATCH, VARY},
    },
    response::{IntoResponse, Response},
};
use oddscache::View;

pub(crate) const AS_OF: HeaderName = HeaderName::from_static("oddscache-as-of");
pub(crate) const AGE_MS: HeaderName = HeaderName::from_static("oddscache-age-ms");
pub(crate) const EPOCH: HeaderName = HeaderName::from_static("oddscache-epoch");

/// A random number of this process. Each process counts its versions from the beginning, so a version alone does not
/// name a view.
static PROCESS: LazyLock<u32> = LazyLock::new(|| fastrand::u32(..));

/// Names a view for clients, which may send the name back to a later process: `<process>-<version>`.
pub(crate) fn id(version: u64) -> String {
    format!("{:08x}-{version}", *PROCESS)
}

/// The version in an [`id`] of this process.
pub(crate) fn version(id: &str) -> Option<u64> {
    let (process, version) = id.split_once('-')?;
    let ours = u32::from_str_radix(process, 16).ok()? == *PROCESS;
    version.parse().ok().filter(|_| ours)
}

pub(crate) fn age_ms(view: &View) -> u64 {
    u64::try_from(view.age().as_millis()).unwrap_or(u64::MAX)
}

/// The answer that `make` makes from `view`, or 304 if the client has it already. The headers have the view's cut.
pub(crate) fn answer(
    view: &View,
    request: &HeaderMap,
    make: impl FnOnce() -> Response,
) -> Response {
    if !is_known(view, request) {
        return marked(view, make());
    }
    let mut response = StatusCode::NOT_MODIFIED.into_response();
    // The whole answer has this header, because its body depends on the encoding. So 304 must have it too.
    let headers = response.headers_mut();
    headers.insert(VARY, HeaderValue::from(ACCEPT_ENCODING));
    marked(view, response)
}

/// Adds the view's cut to the headers of an answer.
pub(crate) fn marked(view: &View, mut response: Response) -> Response {
    let headers = response.headers_mut();
    let texts = [
        (ETAG, tag(view)),
        (
            AS_OF,
            view.cut()
                .as_of
                .to_rfc3339_opts(chrono::SecondsFormat::Micros, true),
        ),
        (AGE_MS, age_ms(view).to_string()),
        (EPOCH, view.epoch().to_string()),
    ];
    for (name, text) in texts {
        // Digits and times are always valid in a header.
        if let Ok(value) = HeaderValue::try_from(text) {
            headers.insert(name, value);
        }
    }
    // Clients must ask again each time, because a stored answer may be old.
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    response
}

/// The view's ETag. It is weak, because it is the same for every encoding of the answer.
fn tag(view: &View) -> String {
    format!("W/\"{}\"", id(view.version()))
}

/// Whether the client has the answer of this view.
pub(crate) fn is_known(view: &View, request: &HeaderMap) -> bool {
    has(request, &tag(view))
}

/// Whether the request names `tag` as one that the client has. All our tags are weak, so `W/` makes no difference.
pub(crate) fn has(request: &HeaderMap, tag: &str) -> bool {
    let opaque = |tag: &str| tag.trim().trim_start_matches("W/").to_owned();
    let lists = request.get_all(IF_NONE_MATCH).iter();
    lists
        .filter_map(|list| list.to_str().ok())
        .flat_map(|list| list.split(','))
        .any(|known| known.trim() == "*" || opaque(known) == opaque(tag))
}
