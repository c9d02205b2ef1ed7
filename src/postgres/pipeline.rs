//! Awaits statements that were sent at once, and finds out which of their errors is the cause.
//!
//! After an error in a transaction the server refuses every further statement with SQLSTATE 25P02. The client may see
//! such a consequence before the cause. So these functions await all answers, and return an error other than 25P02 if
//! there is one. `try_join` would return the error that it sees first.

// Not `async fn`: its future holds each argument twice, so nested futures would double in size at every level.

use futures_util::future::{FutureExt, join, join3};

use crate::error::Error;

/// Awaits two statements, polled in this order.
pub(crate) fn both<A, B>(
    first: impl Future<Output = Result<A, Error>>,
    second: impl Future<Output = Result<B, Error>>,
) -> impl Future<Output = Result<(A, B), Error>> {
    join(first, second).map(|(first, second)| combined(first, second))
}

/// Awaits three statements, polled in this order.
pub(crate) fn all_three<A, B, C>(
    first: impl Future<Output = Result<A, Error>>,
    second: impl Future<Output = Result<B, Error>>,
    third: impl Future<Output = Result<C, Error>>,
) -> impl Future<Output = Result<(A, B, C), Error>> {
    join3(first, second, third).map(|(first, second, third)| {
        let ((first, second), third) = combined(combined(first, second), third)?;
        Ok((first, second, third))
    })
}

fn combined<A, B>(first: Result<A, Error>, second: Result<B, Error>) -> Result<(A, B), Error> {
    match (first, second) {
        (Ok(first), Ok(second)) => Ok((first, second)),
        (Err(first), Err(second)) if first.is_consequence() => Err(second),
        (Err(error), _) | (_, Err(error)) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::future::ready;

    use super::*;

    #[tokio::test]
    async fn the_cause_is_returned_whichever_error_comes_first() {
        let error = |code: &str| {
            Err::<(), _>(Error::Database {
                doing: "reading",
                reason: String::new(),
                sqlstate: Some(code.to_owned()),
                disconnected: false,
            })
        };
        let code = |error: Error| match error {
            Error::Database { sqlstate, .. } => sqlstate.unwrap_or_default(),
            error => panic!("{error}"),
        };
        let (cause, consequence) = (|| ready(error("22003")), || ready(error("25P02")));
        let found = [
            both(cause(), consequence()).await.map(drop),
            both(consequence(), cause()).await.map(drop),
            all_three(consequence(), consequence(), cause())
                .await
                .map(drop),
            all_three(ready(Ok(())), consequence(), cause())
                .await
                .map(drop),
            all_three(cause(), consequence(), ready(Ok(())))
                .await
                .map(drop),
        ];
        for result in found {
            assert_eq!(code(result.unwrap_err()), "22003");
        }
        assert_eq!(
            code(both(consequence(), ready(Ok(()))).await.unwrap_err()),
            "25P02"
        );
    }
}
