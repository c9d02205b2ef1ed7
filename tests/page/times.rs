//! Times in the reader's time zone. The page names the zone, and each time has its exact UTC.

use oddscache_testkit::followed::run;
use serde_json::{Value, json};

use super::{Page, loaded};

/// The same moment has another text in another zone, and the same UTC.
#[tokio::test]
async fn times_are_shown_in_the_readers_zone_with_their_utc() {
    let Some(page) = Page::closed(12).await else {
        return;
    };
    let (app, served, browser) = (&page.app, &page.served, &page.browser);
    // A kickoff in the cold half of the year, and far enough away to stay in the window.
    run(
        app,
        "update events set kickoff = '3000-01-15 22:40:07' where id = 7",
    )
    .await;
    let time = "document.querySelector('tr[data-event=\"7\"] time')";
    for (zone, named, board, panel) in [
        ("UTC", "Times: UTC", "Wed 15 Jan 22:40", "UTC"),
        (
            "Asia/Kolkata",
            "Times: Asia/Calcutta, now UTC+5:30",
            "Thu 16 Jan 04:10",
            "UTC+5:30",
        ),
        (
            "America/Phoenix",
            "Times: America/Phoenix, now UTC−7",
            "Wed 15 Jan 15:40",
            "UTC−7",
        ),
    ] {
        browser.time_zone(zone).await;
        browser.open("about:blank").await;
        browser.open(&format!("{}/#event=7", served.base)).await;
        browser.until("the list", &loaded(12)).await;
        let there = format!("{time}?.title && document.getElementById('detail-when').title");
        browser.until("the event", &there).await;
        let when = "document.getElementById('detail-when')";
        let seen = format!(
            "[document.getElementById('zone').textContent, {time}.textContent, {time}.title, {time}.dateTime,
              {when}.textContent, {when}.title]"
        );
        let (utc, exact) = (
            "kickoff: 3000-01-15 22:40:07 UTC",
            "3000-01-15T22:40:07.000Z",
        );
        let expected = json!([named, board, utc, exact, format!("{board} {panel}"), utc]);
        assert_eq!(browser.eval(&seen).await, expected, "{zone}");
    }
    // The other times of the page have it, too.
    let titles = "['#as-of', '#board .age', '#happened time'].map((found) => document.querySelector(found).title)";
    let Value::Array(titles) = browser.eval(titles).await else {
        panic!("no list");
    };
    assert!(titles.len() == 3, "{titles:?}");
    for title in titles {
        let title = title.as_str().expect("a title");
        assert!(title.ends_with(" UTC"), "{title}");
    }
    browser.is_content();
}
