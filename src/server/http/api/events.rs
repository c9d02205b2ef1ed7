//! One, many or all events, with all their markets or as the event list has them.

use axum::{
    body::Bytes,
    extract::{Path, State, rejection::PathRejection},
    http::{
        HeaderMap, HeaderName, HeaderValue, StatusCode, Uri,
        header::{CONTENT_TYPE, LINK},
    },
    response::{IntoResponse, Response},
};
use oddscache::{CachedEvent, CachedSnapshot, InlineMarkets, View};
use serde::{Serialize, Serializer, ser::SerializeStruct};

use super::{
    fields::{self, Fields},
    ids,
    pieces::{PIECE_BYTES, streamed},
    query::{self, Only, Parameters},
    state::Api,
    view::view as view_of,
};
use crate::server::http::{
    cut::{answer, marked},
    problem::problem,
};

/// With `fields`, a piece also ends when this much JSON was written and cut, even if little of it is wanted.
const PIECE_WORK_BYTES: usize = 4 * PIECE_BYTES;

/// The cursor of the next page, for clients that do not read `Link`.
const NEXT: HeaderName = HeaderName::from_static("oddscache-next");

/// `GET /v1/events/{id}`
pub(crate) async fn one(
    State(api): State<Api>,
    id: Result<Path<i64>, PathRejection>,
    uri: Uri,
    headers: HeaderMap,
) -> Result<Response, Response> {
    let id = ids::event(id)?;
    let parameters = Parameters::read(&uri, query::EVENT, fields::EVENT)?;
    let view = view_of(&api, &parameters.freshness).await?;
    let Some(event) = view.event(id) else {
        let sentence =
            format!("event {id} is not held: it has no snapshot, or is not within the window");
        return Err(absent(&view, sentence));
    };
    if parameters
        .only
        .as_ref()
        .is_some_and(|only| !only.is_in(event))
    {
        let sentence = format!("event {id} has no snapshot of that bookmaker or source");
        return Err(absent(&view, sentence));
    }
    let mut form = Form::new(None, &parameters);
    Ok(answer(&view, &headers, || {
        let mut json = Vec::new();
        form.write(event, &mut json);
        ([(CONTENT_TYPE, "application/json")], json).into_response()
    }))
}

/// The 404 for an event that this view does not have.
fn absent(view: &View, sentence: String) -> Response {
    marked(view, problem(StatusCode::NOT_FOUND, sentence))
}

/// `GET /v1/events`: the requested events that are held, or all.
pub(crate) async fn many(
    State(api): State<Api>,
    uri: Uri,
    headers: HeaderMap,
) -> Result<Response, Response> {
    let parameters = Parameters::read(&uri, query::EVENTS, fields::EVENT)?;
    let view = view_of(&api, &parameters.freshness).await?;
    let form = Form::new(None, &parameters);
    Ok(page(&api, &view, &uri, &headers, &parameters, form))
}

/// `GET /v1/dump`: one line per event, in event id order.
pub(crate) async fn dump(
    State(api): State<Api>,
    uri: Uri,
    headers: HeaderMap,
) -> Result<Response, Response> {
    let parameters = Parameters::read(&uri, query::DUMP, fields::EVENT)?;
    let view = view_of(&api, &parameters.freshness).await?;
    Ok(answer(&view, &headers, || {
        let pieces = pieces(
            view.clone(),
            view.event_ids(),
            LINES,
            Form::new(None, &parameters),
        );
        streamed("application/x-ndjson", pieces)
    }))
}

/// A page of a list. Its headers say where the next page is.
pub(crate) fn page(
    api: &Api,
    view: &View,
    uri: &Uri,
    headers: &HeaderMap,
    parameters: &Parameters,
    form: Form,
) -> Response {
    answer(view, headers, || {
        let selection = api
            .order
            .select(view, &parameters.range, parameters.only.as_ref());
        let pieces = pieces(view.clone(), selection.ids, LIST, form);
        let mut response = streamed("application/json", pieces);
        if let Some(place) = selection.next {
            let cursor = query::cursor(place);
            let link = format!("<{}>; rel=\"next\"", query::next_page(uri, &cursor));
            for (name, text) in [(NEXT, cursor), (LINK, link)] {
                // Always a valid header, because both texts are ASCII that a request's target may hold.
                if let Ok(value) = HeaderValue::try_from(text) {
                    response.headers_mut().insert(name, value);
                }
            }
        }
        response
    })
}

/// How an event is written.
#[derive(Debug, Clone)]
pub(crate) struct Form {
    /// The markets, if it is written as in the event list. `None`: with all its markets.
    inline: Option<InlineMarkets>,
    only: Option<Only>,
    fields: Option<Fields>,
    /// A buffer: the JSON that fields are cut out of.
    whole: Vec<u8>,
}

impl Form {
    pub(crate) fn new(inline: Option<InlineMarkets>, parameters: &Parameters) -> Form {
        Form {
            inline,
            only: parameters.only.clone(),
            fields: parameters.fields.clone(),
            whole: Vec::new(),
        }
    }

    /// Appends an event.
    fn write(&mut self, event: &CachedEvent, out: &mut Vec<u8>) {
        let mut whole = std::mem::take(&mut self.whole);
        whole.clear();
        match &self.fields {
            None => self.write_whole(event, out),
            Some(fields) => {
                self.write_whole(event, &mut whole);
                let before = out.len();
                if fields.cut(&whole, out).is_none() {
                    // Does not happen with our own JSON. An object without fields keeps the list well-formed.
                    out.truncate(before);
                    out.extend_from_slice(b"{}");
                    let event_id = event.event_id();
                    tracing::error!(event_id, "an event's fields could not be cut out");
                }
            }
        }
        self.whole = whole;
    }

    /// Appends an event with all fields, or with at least the wanted ones.
    fn write_whole(&self, event: &CachedEvent, out: &mut Vec<u8>) {
        let (only, fields) = (self.only.as_ref(), self.fields.as_ref());
        if let Some(inline) = &self.inline {
            let wanted = |bookmaker: &str, id| only.is_none_or(|only| only.wants(bookmaker, id));
            return inline.write_event_where(event, wanted, out);
        }
        let part = Part {
            event,
            only,
            fields,
        };
        let written = match (only, fields) {
            (None, None) => serde_json::to_writer(out, event),
            _ => serde_json::to_writer(out, &part),
        };
        // Writing into memory does not fail, and every key of an event is a string.
        if let Err(error) = written {
            tracing::error!(event_id = event.event_id(), %error, "an event could not be written as JSON");
        }
    }
}

/// An event with some of its snapshots, as [`CachedEvent`] writes itself.
struct Part<'a> {
    event: &'a CachedEvent,
    only: Option<&'a Only>,
    /// A side without a wanted field is left out, which is cheaper than to write it and cut it away.
    fields: Option<&'a Fields>,
}

impl Serialize for Part<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let event = self.event;
        let shown = |name: &str| self.fields.is_none_or(|fields| fields.wants(name));
        let mut fields = serializer.serialize_struct("CachedEvent", 10)?;
        fields.serialize_field("event_id", &event.event_id())?;
        fields.serialize_field("kickoff", &event.kickoff())?;
        fields.serialize_field("name", &event.name())?;
        fields.serialize_field("home_team", &event.home_team())?;
        fields.serialize_field("away_team", &event.away_team())?;
        fields.serialize_field("sportradar_id", &event.sportradar_id())?;
        fields.serialize_field("tournament", &event.tournament())?;
        let wanted = |id| self.only.is_none_or(|only| only.wants_own(id));
        if shown("bookmakers") {
            let mut known = event.bookmakers();
            known.retain(|id, _| wanted(*id));
            fields.serialize_field("bookmakers", &known)?;
        }
        if shown("betpawa") {
            let all = event.betpawa().iter();
            let wanted = Map(all.filter(|(id, _)| wanted(*id)).collect());
            fields.serialize_field("betpawa", &wanted)?;
        }
        if shown("competitors") {
            let wanted = |source: &str| self.only.is_none_or(|only| only.wants_competitor(source));
            let all = event.competitors().iter();
            let all = all.map(|(source, snapshot)| (source.as_str(), snapshot));
            let wanted = Map(all.filter(|(source, _)| wanted(source)).collect());
            fields.serialize_field("competitors", &wanted)?;
        }
        fields.end()
    }
}

/// Snapshots by id or source.
struct Map<'a, K>(Vec<(K, &'a CachedSnapshot)>);

impl<K: Serialize> Serialize for Map<'_, K> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(key, snapshot)| (key, snapshot)))
    }
}

/// The text before, between and after the events of an answer.
#[derive(Clone, Copy)]
struct Frame {
    before: &'static str,
    between: &'static str,
    after: &'static str,
}

const LIST: Frame = Frame {
    before: "[",
    between: ",",
    after: "]",
};

const LINES: Frame = Frame {
    before: "",
    between: "\n",
    after: "\n",
};

fn pieces(
    view: View,
    ids: Vec<i64>,
    frame: Frame,
    mut form: Form,
) -> impl Iterator<Item = Bytes> + Clone + Send + Sync + 'static {
    let mut ids = ids.into_iter();
    let mut first = true;
    let mut done = false;
    std::iter::from_fn(move || {
        if done {
            return None;
        }
        let mut piece = Vec::with_capacity(PIECE_BYTES + PIECE_BYTES / 2);
        let mut work = 0;
        while piece.len() < PIECE_BYTES && work < PIECE_WORK_BYTES {
            let Some(id) = ids.next() else {
                piece.extend_from_slice(if first { frame.before } else { "" }.as_bytes());
                // An empty dump has no line.
                let is_nothing = first && frame.before.is_empty();
                piece.extend_from_slice(if is_nothing { "" } else { frame.after }.as_bytes());
                done = true;
                break;
            };
            if let Some(event) = view.event(id) {
                let separator = if first { frame.before } else { frame.between };
                piece.extend_from_slice(separator.as_bytes());
                first = false;
                form.write(event, &mut piece);
                work += form.whole.len();
            }
        }
        // Each event has at least its braces, so only the last piece can be empty.
        (!piece.is_empty()).then(|| Bytes::from(piece))
    })
}
