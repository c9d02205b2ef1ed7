//! `GET /v1/list`: the event list with inline odds.
//!
//! Most ask for all of it, and of one view it is the same for all of them: it is made once, compressed once by each
//! encoding that is asked for, and they share the bytes. Pages and parts of it are written for who asks. Held are the list
//! and its compressed forms, those of the view before until nobody reads them, and that view.

use std::sync::{Arc, Mutex, PoisonError};

use axum::{
    body::{Body, Bytes},
    extract::State,
    http::{
        HeaderMap, HeaderValue, StatusCode, Uri,
        header::{ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_TYPE, VARY},
    },
    response::{IntoResponse, Response},
};
use oddscache::{EventList, InlineMarkets, View};
use tokio::{sync::OnceCell, task::spawn_blocking};

use super::{
    Api,
    encoding::{self, Encoding},
    events::{self, Form},
    fields, problem,
    query::{self, Asked},
};
use crate::service::cut::answer;

/// `GET /v1/list`
pub(super) async fn list(
    State(api): State<Api>,
    uri: Uri,
    headers: HeaderMap,
) -> Result<Response, Response> {
    let asked = Asked::read(&uri, query::EVENTS, fields::ENTRY)?;
    let view = super::view(&api.cache, &asked.freshness).await?;
    if !asked.is_everything() {
        let form = Form::new(Some(api.inline.clone()), &asked);
        return Ok(events::page(&api, &view, &uri, &headers, &asked, form));
    }
    if crate::service::cut::is_known(&view, &headers) {
        // Nothing to make.
        return Ok(answer(&view, &headers, || ().into_response()));
    }
    let whole = api.lists.of(view).await?;
    let encoding = encoding::wanted(&headers);
    let body = whole.body(encoding).await?;
    Ok(answer(&whole.view, &headers, || {
        let mut response = ([(CONTENT_TYPE, "application/json")], Body::from(body)).into_response();
        let headers = response.headers_mut();
        headers.insert(VARY, HeaderValue::from(ACCEPT_ENCODING));
        if let Some(encoding) = encoding {
            headers.insert(CONTENT_ENCODING, HeaderValue::from_static(encoding.name()));
        }
        response
    }))
}

/// The whole list of the newest view that was asked for.
#[derive(Debug)]
pub(super) struct Lists {
    /// Locked while it is rendered, which takes milliseconds: only where threads may block.
    renderer: Mutex<EventList>,
    /// Locked to take or put one reference.
    newest: Mutex<Option<Arc<Whole>>>,
}

/// The list of one view.
#[derive(Debug)]
struct Whole {
    view: View,
    json: Bytes,
    gzip: OnceCell<Bytes>,
    zstd: OnceCell<Bytes>,
}

impl Lists {
    pub(super) fn new(inline: InlineMarkets) -> Lists {
        Lists {
            renderer: Mutex::new(EventList::of(inline)),
            newest: Mutex::default(),
        }
    }

    /// The list of a view, or of a newer one.
    async fn of(self: &Arc<Lists>, view: View) -> Result<Arc<Whole>, Response> {
        if let Some(newest) = self.not_before(&view) {
            return Ok(newest);
        }
        let lists = Arc::clone(self);
        let rendered = spawn_blocking(move || lists.render(view)).await;
        rendered.map_err(|error| failed(&error))
    }

    fn not_before(&self, view: &View) -> Option<Arc<Whole>> {
        let newest = self.newest.lock().unwrap_or_else(PoisonError::into_inner);
        let whole = newest.as_ref();
        whole
            .filter(|whole| whole.view.version() >= view.version())
            .cloned()
    }

    fn render(&self, view: View) -> Arc<Whole> {
        let mut renderer = self.renderer.lock().unwrap_or_else(PoisonError::into_inner);
        // Somebody else may have, while this waited for the lock.
        if let Some(newest) = self.not_before(&view) {
            return newest;
        }
        let whole = Arc::new(Whole {
            json: renderer.render(&view),
            view,
            gzip: OnceCell::new(),
            zstd: OnceCell::new(),
        });
        let mut newest = self.newest.lock().unwrap_or_else(PoisonError::into_inner);
        *newest = Some(Arc::clone(&whole));
        whole
    }
}

impl Whole {
    /// As it goes to a client; the first who asks for an encoding waits for it to be made, and all others with it.
    async fn body(&self, encoding: Option<Encoding>) -> Result<Bytes, Response> {
        let Some(encoding) = encoding else {
            return Ok(self.json.clone());
        };
        let made = match encoding {
            Encoding::Gzip => &self.gzip,
            Encoding::Zstd => &self.zstd,
        };
        let make = async || {
            let json = self.json.clone();
            let made = spawn_blocking(move || encoding.encode(&json)).await;
            let made = made.map_err(|error| failed(&error))?;
            made.map(Bytes::from).map_err(|error| failed(&error))
        };
        made.get_or_try_init(make).await.cloned()
    }
}

fn failed(error: &dyn std::error::Error) -> Response {
    tracing::error!(%error, "the event list could not be made");
    problem(
        StatusCode::INTERNAL_SERVER_ERROR,
        "the event list could not be made; the log says why",
    )
}
