//! `GET /v1/list`: the event list with inline odds. All clients share the whole list, see `lists`. Pages and parts of
//! it are written for each request.

use std::sync::Arc;

use axum::{
    body::{Body, Bytes},
    extract::State,
    http::{
        HeaderMap, HeaderValue, Uri,
        header::{ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_TYPE, VARY},
    },
    response::{IntoResponse, Response},
};
use oddscache::View;

use super::{
    encoding,
    events::{self, Form},
    fields,
    lists::Owner,
    query::{self, Parameters},
    state::Api,
    view::view as view_of,
};
use crate::server::http::cut::{answer, is_known};

/// `GET /v1/list`
pub(crate) async fn list(
    State(api): State<Api>,
    uri: Uri,
    headers: HeaderMap,
) -> Result<Response, Response> {
    let parameters = Parameters::read(&uri, query::EVENTS, fields::ENTRY)?;
    let view = view_of(&api, &parameters.freshness).await?;
    let in_pieces = |view: &View| {
        let form = Form::new(Some(api.inline.clone()), &parameters);
        events::page(&api, view, &uri, &headers, &parameters, form)
    };
    if !parameters.is_everything() {
        return Ok(in_pieces(&view));
    }
    if is_known(&view, &headers) {
        return Ok(answer(&view, &headers, || ().into_response()));
    }
    let encoding = encoding::wanted(&headers);
    let made = api
        .lists
        .of(&api.cache, view.version(), encoding)
        .await?
        // The list may have grown too old while the request waited for it.
        .filter(|made| parameters.freshness.allows(&made.view));
    let Some(made) = made else {
        let view = view_of(&api, &parameters.freshness).await?;
        return Ok(in_pieces(&view));
    };
    Ok(answer(&made.view, &headers, || {
        let body = Body::from(Bytes::from_owner(Owner(Arc::clone(&made))));
        let mut response = ([(CONTENT_TYPE, "application/json")], body).into_response();
        let headers = response.headers_mut();
        headers.insert(VARY, HeaderValue::from(ACCEPT_ENCODING));
        if let Some(encoding) = encoding {
            headers.insert(CONTENT_ENCODING, HeaderValue::from_static(encoding.name()));
        }
        response
    }))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use axum::http::StatusCode;
    use futures_util::{FutureExt, future::join_all};
    use oddscache::{InlineMarkets, OddsCache};

    use super::*;
    use crate::server::http::{
        api::{
            changes::Hub,
            detail::Detail,
            lists::{Lists, tests::publish},
        },
        metrics::Requests,
    };

    #[tokio::test]
    async fn what_gets_too_old_while_it_is_waited_for_is_not_given() {
        let (cache, mut writer) = OddsCache::detached();
        publish(&mut writer, 1);
        let inline = InlineMarkets::new([("3743", None)]);
        let api = Api {
            hub: Hub::start(&cache, 1),
            cache: cache.clone(),
            requests: Requests::default(),
            lists: Arc::new(Lists::new(inline.clone())),
            inline,
            histories: None,
            order: Arc::default(),
            detail: Detail::Full,
        };
        let ask = |api: Api| {
            let uri = Uri::from_static("/v1/list?max_age=1s");
            Box::pin(list(State(api), uri, HeaderMap::new()))
        };
        assert_eq!(ask(api.clone()).await.unwrap().status(), StatusCode::OK);
        publish(&mut writer, 2);
        let busy = api.lists.hold_up().await;
        let mut asking = [ask(api.clone()), ask(api)];
        for asking in &mut asking {
            assert!(asking.now_or_never().is_none());
        }
        let wait = Duration::from_millis(10);
        while cache.view().age() <= Duration::from_secs(1) {
            tokio::time::sleep(wait).await;
        }
        drop(busy);
        for answer in join_all(asking).await {
            let status = answer.unwrap_err().status();
            assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
        }
    }
}
