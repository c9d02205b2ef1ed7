//! The page of a service that follows a relay speaks of the relay, not of a database.

use oddscache_testkit::{
    connect,
    followed::run,
    nats::Nats,
    service::{SERVE, Service, command},
};

use super::{
    browser::Browser,
    loaded,
    stale::{UPDATE, is_current, is_stale},
    with_odds,
};

#[tokio::test]
async fn the_page_of_a_subscriber_shows_the_relay_and_says_when_nobody_publishes() {
    let Some(nats) = Nats::start("").await else {
        return;
    };
    let Some(browser) = Browser::start().await else {
        return;
    };
    let (database, url) = (with_odds(12), nats.url());
    let publisher = Service::warm(&database.dsn(), &["--relay-to", &url]).await;
    let from = [&SERVE[..], &["--relay-from", &url]].concat();
    let subscriber = Service::spawn(command(&from)).await;
    subscriber.ready().await;
    browser.open(&subscriber.base).await;
    browser.until("the list", &loaded(12)).await;
    run(&connect(&database.dsn()).await, UPDATE).await;
    is_current(&browser).await;
    for (tile, title, note) in [
        ("log", "Relay", "1 states read · 0 gaps"),
        ("audit", "Comparison", "answers of the publisher"),
    ] {
        let part =
            |part: &str| format!("document.querySelector('#tile-{tile} {part}').textContent");
        let shown = format!(
            "{} === '{title}' && {}.includes('{note}')",
            part("h3"),
            part(".note")
        );
        browser.until(title, &shown).await;
    }

    drop(publisher);
    let words = [
        "the service cannot read what is new: the relay at 127.0.0.1:",
        "no publisher answers",
    ];
    is_stale(&browser, &words).await;
    let _publisher = Service::warm(&database.dsn(), &["--relay-to", &url]).await;
    is_current(&browser).await;
    browser.is_content();
}
