//! A service that requires a token. The page asks the user for it, and sends it with all its requests.

use std::{future::IntoFuture, net::SocketAddr, sync::Arc};

use axum::{
    Router,
    extract::{Request, State},
    http::{StatusCode, header::AUTHORIZATION},
    response::{IntoResponse, Response},
};
use tokio::net::TcpListener;

use super::{Page, browser::Browser, loaded, proxy::forward};

const TOKEN: &str = "a-token-of-the-tests";

/// A proxy before a service. Without the token it lets only the files of the page through. Returns its address.
pub(crate) async fn guard(base: &str) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let guarded = Router::new()
        .fallback(pass)
        .with_state(Arc::<str>::from(base));
    tokio::spawn(axum::serve(listener, guarded).into_future());
    address
}

async fn pass(State(base): State<Arc<str>>, request: Request) -> Response {
    let (path, headers) = (request.uri().path(), request.headers());
    let given = headers.get(AUTHORIZATION).map(|value| value.as_bytes());
    let expected = format!("Bearer {TOKEN}");
    if path != "/" && !path.starts_with("/page/") && given != Some(expected.as_bytes()) {
        let answer = r#"{"error":"this service wants a token"}"#;
        return (StatusCode::UNAUTHORIZED, answer).into_response();
    }
    forward(&base, request).await
}

/// No address contains the token. The browser forgets the token when the tab is closed.
#[tokio::test]
async fn the_page_asks_for_a_token_and_hides_it() {
    let Some(page) = Page::closed(12).await else {
        return;
    };
    let (served, browser) = (&page.served, &page.browser);
    let base = format!("http://{}", guard(&served.base).await);
    browser.open(&base).await;
    let asked = "document.getElementById('token').open && document.body.dataset.state === 'stale'";
    browser.until("it asks for a token", asked).await;
    browser.screenshot("token").await;
    let give = async |token: &str| {
        browser.click("#token-value").await;
        browser.text(token).await;
        browser.key("Enter").await;
    };
    give("a wrong one").await;
    let again = "document.getElementById('token').open && document.getElementById('token-value').value === ''";
    browser.until("it asks again", again).await;
    give(TOKEN).await;
    browser.until("the list", &loaded(12)).await;
    // The page keeps the token for the tab, and no longer.
    let kept = "[localStorage.length, sessionStorage.getItem('oddscache-token')]";
    assert_eq!(browser.eval(kept).await, serde_json::json!([0, TOKEN]));
    browser.open(&format!("{base}/?again")).await;
    browser.until("the list again", &loaded(12)).await;

    // A token in the address is removed from it.
    let Some(other) = Browser::start().await else {
        return;
    };
    other.open(&format!("{base}/?token={TOKEN}#event=3")).await;
    other.until("the list", &loaded(12)).await;
    let event = "document.querySelectorAll('#detail tbody').length > 0";
    other.until("the event", event).await;
    let address = other.eval("location.href").await;
    assert_eq!(address, format!("{base}/#event=3"));
    for url in other.requests().iter().skip(1) {
        assert!(!url.contains(TOKEN), "{url}");
    }
    other.is_content();
}
