//! All paths and their handlers.

use std::sync::Arc;

use axum::{
    Extension, Json, Router,
    extract::State,
    http::{HeaderMap, StatusCode, Uri, header::CONTENT_TYPE},
    middleware::from_fn,
    response::{IntoResponse, Response},
    routing::{MethodRouter, get},
};
use oddscache::{History, InlineMarkets, OddsCache};
use serde_json::json;

use super::{
    api::{
        changes::Hub,
        detail::Detail,
        encoding, events,
        histories::Histories,
        history, list,
        lists::Lists,
        pieces,
        query::{self, Parameters},
        state::Api,
        stats::stats,
        view::age_ms,
    },
    counters::HttpCounters,
    health::Health,
    metrics::{self, Requests},
    page,
    problem::problem,
};

/// The markets in the event list, unless `--inline-markets` says otherwise.
pub(crate) const INLINE_MARKETS: &str = "3743,5000:2.5,3795,4693";

/// Parses one of these markets: a `betpawa_market_id`. If it has several lines, a colon and a line choose one.
pub(crate) fn inline_market(text: &str) -> Result<(String, Option<f64>), String> {
    let (id, line) = match text.split_once(':') {
        None => (text, None),
        Some((id, line)) => {
            let line = line.parse().ok().filter(|line: &f64| line.is_finite());
            (id, Some(line.ok_or("the line is not a number")?))
        }
    };
    match id.trim() {
        "" => Err("a market needs an id: 3743, or 5000:2.5 with a line".to_owned()),
        id => Ok((id.to_owned(), line)),
    }
}

/// The markets of the demo, which has no such flag, and of tests.
#[cfg(any(feature = "demo", test))]
pub(crate) fn default_inline() -> InlineMarkets {
    let markets = INLINE_MARKETS.split(',').map(inline_market);
    InlineMarkets::new(markets.filter_map(Result::ok))
}

/// The paths of an address, and how much it tells of the cache's state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Face {
    /// All paths: there is no other address.
    Whole,
    /// For readers, beside [`Face::Operators`].
    Public,
    /// For those who run the service: `--admin-listen`.
    Operators,
}

impl Face {
    /// The paths that [`Face::Public`] leaves to [`Face::Operators`].
    pub(super) const OF_OPERATORS: [&'static str; 3] = ["/metrics", "/livez", "/readyz"];

    fn has(self, path: &str) -> bool {
        let of_operators = Face::OF_OPERATORS.contains(&path);
        match self {
            Face::Whole => true,
            Face::Public => !of_operators,
            Face::Operators => of_operators || path == "/v1/stats",
        }
    }

    fn detail(self) -> Detail {
        match self {
            Face::Public => Detail::Brief,
            Face::Whole | Face::Operators => Detail::Full,
        }
    }

    /// What a client is told that asks for another path.
    fn no_such_path(self) -> &'static str {
        match self {
            Face::Whole | Face::Public => "there is no such path; /openapi.json lists all paths",
            Face::Operators => {
                "this address is for operators: /metrics, /livez, /readyz and /v1/stats; all else is at --listen"
            }
        }
    }
}

/// All paths with their handlers.
fn routes() -> Vec<(&'static str, MethodRouter<Api>)> {
    vec![
        ("/v1/events/{id}", get(events::one)),
        ("/v1/events/{id}/history", get(history::history)),
        ("/v1/events", get(events::many)),
        ("/v1/list", get(list::list)),
        ("/v1/dump", get(events::dump)),
        ("/v1/changes", get(changes)),
        ("/v1/stats", get(stats)),
        ("/metrics", get(metrics)),
        ("/openapi.json", get(openapi)),
        ("/livez", get(live)),
        ("/readyz", get(ready)),
    ]
}

/// Answers HTTP. The server adds its checks, and counts requests.
pub(crate) fn router(
    cache: OddsCache,
    hub: Hub,
    inline: InlineMarkets,
    history: Option<History>,
    requests: Requests,
    face: Face,
) -> Router {
    let api = Api {
        cache,
        hub,
        requests,
        lists: Arc::new(Lists::new(inline.clone())),
        inline,
        histories: history.map(Histories::new),
        order: Arc::default(),
        detail: face.detail(),
    };
    let all = routes().into_iter().filter(|(path, _)| face.has(path));
    let router = all.fold(Router::new(), |router, (path, answers)| {
        router.route(path, answers)
    });
    let router = match face {
        Face::Operators => router,
        Face::Whole | Face::Public => router.merge(page::router()),
    };
    router
        .fallback(async move || problem(StatusCode::NOT_FOUND, face.no_such_path()))
        .method_not_allowed_fallback(async || {
            problem(
                StatusCode::METHOD_NOT_ALLOWED,
                "read-only: GET and HEAD only",
            )
        })
        .layer(encoding::layer())
        .layer(from_fn(pieces::with_length))
        .with_state(api)
}

async fn changes(
    State(api): State<Api>,
    uri: Uri,
    headers: HeaderMap,
) -> Result<Response, Response> {
    let parameters = Parameters::read(&uri, query::CHANGES, &[])?;
    let inline = parameters.odds.then(|| api.inline.clone());
    Ok(api.hub.stream(api.cache, inline, &headers))
}

async fn metrics(
    State(api): State<Api>,
    Extension(counters): Extension<Arc<HttpCounters>>,
) -> Response {
    let text = metrics::text(&api.cache, &api.requests, api.hub.open(), &counters);
    let content_type = "text/plain; version=0.0.4; charset=utf-8";
    ([(CONTENT_TYPE, content_type)], text).into_response()
}

/// Describes all paths, for programs that generate clients.
const OPENAPI: &str = include_str!("openapi.json");

async fn openapi() -> Response {
    ([(CONTENT_TYPE, "application/json")], OPENAPI).into_response()
}

async fn live(
    State(cache): State<OddsCache>,
    Extension(health): Extension<Arc<Health>>,
) -> Response {
    match health.alive(&cache) {
        Ok(()) => "alive\n".into_response(),
        // Without Retry-After, because only a restart helps.
        Err(stuck) => {
            let answer = Json(json!({ "error": stuck }));
            (StatusCode::SERVICE_UNAVAILABLE, answer).into_response()
        }
    }
}

async fn ready(
    State(cache): State<OddsCache>,
    Extension(health): Extension<Arc<Health>>,
) -> Response {
    let ready = health.ready(&cache);
    let status = cache.status();
    let mut answer = json!({
        "ready": ready.is_ok(),
        "status": status.to_string(),
        "degraded": Detail::Full.degraded(&status),
        "age_ms": age_ms(&cache),
    });
    match (ready, answer.as_object_mut()) {
        (Err(why), Some(fields)) => {
            fields.insert("error".to_owned(), json!(why));
            (StatusCode::SERVICE_UNAVAILABLE, Json(answer)).into_response()
        }
        _ => Json(answer).into_response(),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    /// `tests/service` checks the answers of the running service.
    #[test]
    fn the_document_has_all_paths_and_parameters() {
        let document: serde_json::Value = serde_json::from_str(OPENAPI).unwrap();
        assert_eq!(document["info"]["version"], env!("CARGO_PKG_VERSION"));
        let paths = document["paths"].as_object().unwrap();
        let mut documented = BTreeMap::new();
        for (path, operations) in paths {
            assert_eq!(operations.as_object().unwrap().len(), 1, "{path}: only GET");
            let all = operations["get"]["parameters"].as_array();
            let all = all.into_iter().flatten().map(|parameter| {
                let reference = parameter["$ref"].as_str();
                let place = reference.and_then(|reference| reference.strip_prefix('#'));
                place.map_or(parameter, |place| document.pointer(place).unwrap())
            });
            let names = all.filter(|parameter| parameter["in"] == "query");
            let mut names: Vec<&str> = names.map(|it| it["name"].as_str().unwrap()).collect();
            names.sort_unstable();
            documented.insert(path.as_str(), names);
        }
        let mut found = BTreeMap::new();
        for (path, _) in routes() {
            let mut names = match path {
                "/v1/events/{id}" => query::EVENT.to_vec(),
                "/v1/events" | "/v1/list" => query::EVENTS.to_vec(),
                "/v1/events/{id}/history" => query::HISTORY.to_vec(),
                "/v1/dump" => query::DUMP.to_vec(),
                "/v1/changes" => query::CHANGES.to_vec(),
                _ => Vec::new(),
            };
            names.sort_unstable();
            found.insert(path, names);
        }
        assert_eq!(documented, found);
    }
}
