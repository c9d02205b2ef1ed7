//! `GET /v1/stats`.

use axum::{
    Json,
    extract::State,
    response::{IntoResponse, Response},
};
use oddscache::OddsCache;
use serde_json::{Map, Value, json};

use super::{detail::Detail, state::Api};
use crate::server::{http::cut, prune};

pub(crate) async fn stats(State(api): State<Api>) -> Response {
    Json(api.detail.only(all(&api.cache, api.detail))).into_response()
}

fn all(cache: &OddsCache, detail: Detail) -> Map<String, Value> {
    let view = cache.view();
    let is_warm = view.epoch() > 0;
    let status = cache.status();
    let Value::Object(mut fields) = json!(view.stats()) else {
        return Map::new();
    };
    let more = json!({
        "version": cut::id(view.version()),
        "status": detail.status(&status),
        "degraded": detail.degraded(&status),
        "as_of": is_warm.then(|| view.cut().as_of),
        // The age of this view, not of the newest one, because clients relate it to `version`.
        "age_ms": is_warm.then(|| cut::age_ms(&view)),
        "epoch": view.epoch(),
        "counters": cache.counters(),
        "timings": cache.timings(),
        "audit": cache.audit(),
        "change_log": cache.change_log(),
        "pruning": prune::pruning(),
        "reading": cache.reading(),
    });
    if let Value::Object(more) = more {
        fields.extend(more);
    }
    fields
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::http::api::detail::OF_PAGE;

    /// The page must find on the public address all that it reads. `page/*.js` names fields after `stats.` and
    /// `counters.`.
    #[test]
    fn the_page_reads_no_field_that_the_public_address_lacks() {
        let (cache, mut writer) = OddsCache::detached();
        writer.publish();
        let brief = Detail::Brief.only(all(&cache, Detail::Brief));
        assert_eq!(brief.len(), OF_PAGE.len(), "{brief:?}");
        for (field, keys) in OF_PAGE {
            for key in keys {
                assert!(
                    brief[field].get(key).is_some() || brief[field].is_null(),
                    "{field}.{key}"
                );
            }
        }
        let script = include_str!("../page/health.js");
        let main = include_str!("../page/main.js");
        let mut read = 0;
        for text in [script, main] {
            for (before, object) in [("stats.", None), ("counters.", Some("counters"))] {
                for rest in text.split(before).skip(1) {
                    let end = rest.find(|c: char| !c.is_ascii_lowercase() && c != '_');
                    let name = &rest[..end.unwrap_or(rest.len())];
                    // A sentence may end with the word.
                    if name.is_empty() {
                        continue;
                    }
                    let place = object.map_or(brief.get(name), |object| brief[object].get(name));
                    assert!(place.is_some(), "{before}{name}");
                    read += 1;
                }
            }
        }
        assert!(read > 20, "{read}");
        for hidden in ["memory", "audit", "pruning", "last_warmup"] {
            assert!(!brief.contains_key(hidden), "{hidden}");
        }
    }
}
