//! `oddscache demo --incident`: each happens, is told of, and ends with the cache equal to the database.

use std::time::Duration;

use tokio::time::timeout;

use super::{demo, text};

/// Runs a small demo until the incident is over, and returns what it said of it.
async fn told(incident: &str) -> String {
    let arguments = [
        "--incident",
        incident,
        "--incident-after",
        "500ms",
        "--for",
        "1s",
    ];
    let output = timeout(Duration::from_secs(180), demo(&arguments).output()).await;
    let output = output.expect("it ends").unwrap();
    let printed = text(&output.stdout);
    let errors = text(&output.stderr);
    assert!(output.status.success(), "{printed}{errors}");
    let (_, after) = printed
        .split_once(&format!("incident {incident}: "))
        .unwrap_or_else(|| panic!("it says what happens: {printed}"));
    let over = format!("incident {incident} is over, and the promise held: all ");
    let (told, _) = after
        .split_once(&over)
        .unwrap_or_else(|| panic!("it says that the promise held: {printed}"));
    assert!(told.contains("never taken back"), "{printed}");
    told.to_owned()
}

/// That these stand there in this order.
fn assert_in_order(told: &str, words: &[&str]) {
    let mut rest = told;
    for word in words {
        let (_, after) = rest
            .split_once(word)
            .unwrap_or_else(|| panic!("no {word:?} in its place: {told}"));
        rest = after;
    }
}

#[tokio::test]
async fn a_restart_of_the_server_passes() {
    let told = told("restart").await;
    assert_in_order(
        &told,
        &[
            "the cache is disconnected",
            "the server is started; the cache says that it is ",
            "back: everything was read again, epoch 2",
        ],
    );
}

#[tokio::test]
async fn a_cut_network_is_noticed_and_passes() {
    let told = told("partition").await;
    assert_in_order(
        &told,
        &[
            "the network is cut",
            "the cache is disconnected",
            "the network is healed; the cache says that it is ",
            "back: ",
        ],
    );
}

#[tokio::test]
async fn a_disabled_trigger_is_noticed_and_nothing_is_missed() {
    let told = told("trigger-off").await;
    assert_in_order(
        &told,
        &[
            "is disabled, so changes would be missed",
            "the trigger is enabled again, after ",
            " markets without a log row; the cache says that it is ",
            "back: everything was read again",
        ],
    );
}

#[tokio::test]
async fn a_transaction_over_everything_is_one_publication() {
    let told = told("bulk").await;
    assert_in_order(
        &told,
        &[
            "the cache read the database since and shows none: COMMIT",
            " events changed in one publication, ",
            "; all ",
            " snapshots are new",
        ],
    );
}

#[tokio::test]
async fn an_unknown_incident_is_refused_with_those_there_are() {
    let output = demo(&["--incident", "flood"]).output().await.unwrap();
    let errors = text(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{errors}");
    assert!(errors.contains("trigger-off"), "{errors}");
}
