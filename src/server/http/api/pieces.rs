//! Large answers. The service makes them piece by piece, as the client takes them.
//!
//! So it does not know their length when they begin. HTTP/1.1 marks the end of such an answer. In HTTP/1.0 the answer
//! ends with the connection, and a proxy of connections may pass a reset on as an ordinary end. So for HTTP/1.0 the
//! service makes the answer twice: first to count its length, then to send it.

use std::{convert::Infallible, sync::Arc};

use axum::{
    body::{Body, Bytes},
    extract::Request,
    http::{
        Version,
        header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE},
    },
    middleware::Next,
    response::{IntoResponse, Response},
};
use futures_util::{StreamExt, stream};
use tokio::task::coop;

/// The approximate size of a piece.
pub(super) const PIECE_BYTES: usize = 64 * 1024;

/// Computes the lengths of an answer's pieces, anew at each call. [`streamed`] attaches it to the answer.
#[derive(Clone)]
struct Lengths(Arc<dyn Fn() -> Box<dyn Iterator<Item = usize> + Send> + Send + Sync>);

/// An answer in pieces. A slow client costs two pieces and the view that it holds.
pub(super) fn streamed(
    content_type: &'static str,
    mut pieces: impl Iterator<Item = Bytes> + Clone + Send + Sync + 'static,
) -> Response {
    let again = pieces.clone();
    let beginning = pieces.next();
    let Some(second) = pieces.next() else {
        let body = Body::from(beginning.unwrap_or_default());
        return ([(CONTENT_TYPE, content_type)], body).into_response();
    };
    let pieces = beginning.into_iter().chain([second]).chain(pieces);
    let pieces = stream::unfold(pieces, async |mut pieces| {
        end_turn().await;
        let piece = pieces.next()?;
        Some((Ok::<_, Infallible>(piece), pieces))
    });
    // Fused, because the compression layer polls again after the end.
    let body = Body::from_stream(pieces.fuse());
    let mut response = ([(CONTENT_TYPE, content_type)], body).into_response();
    let lengths = move || -> Box<dyn Iterator<Item = usize> + Send> {
        Box::new(again.clone().map(|piece| piece.len()))
    };
    response.extensions_mut().insert(Lengths(Arc::new(lengths)));
    response
}

/// Adds the length to a large answer to HTTP/1.0. A compressed answer needs none, because gzip and zstd mark their end.
pub(crate) async fn with_length(request: Request, next: Next) -> Response {
    let is_old = request.version() == Version::HTTP_10;
    let mut response = next.run(request).await;
    let lengths = response.extensions_mut().remove::<Lengths>();
    let Some(Lengths(lengths)) = lengths.filter(|_| is_old) else {
        return response;
    };
    if !response.headers().contains_key(CONTENT_ENCODING) {
        let mut all = 0;
        for length in lengths() {
            all += length;
            end_turn().await;
        }
        response.headers_mut().insert(CONTENT_LENGTH, all.into());
    }
    response
}

/// Lets other tasks of this thread go first. Otherwise a quick client, or an answer that compresses well, would have
/// the whole answer made in one go.
///
/// A plain yield is not enough, because the compression layer polls again at once. So this spends the task's budget,
/// which only the scheduler renews.
async fn end_turn() {
    // The budget is 128. Without a scheduler there is no budget, so the loop needs a bound.
    for _ in 0..1024 {
        if !coop::has_budget_remaining() {
            break;
        }
        coop::consume_budget().await;
    }
    coop::consume_budget().await;
}
