//! Open files. Clients must not take all of them, because the follower needs some for its connections.

use std::{process::Command, time::Duration};

use oddscache_testkit::service::{SERVE, Service, command, isolate};
use tokio::{net::TcpStream, time::timeout};

use super::{eventually, with_odds};

/// Starts the service with a limit set by `ulimit`.
pub(super) async fn with_open_files(ulimit: &str, dsn: &str) -> Service {
    let script = format!("ulimit {ulimit} && exec \"$0\" \"$@\"");
    let mut shell = Command::new("sh");
    isolate(&mut shell);
    shell.args(["-c", &script]).arg(command(&[]).get_program());
    shell.args(SERVE).env("DATABASE_URL", dsn);
    Service::spawn(shell).await
}

/// The service raises its limit of open files, so that 300 clients leave some for a new database connection.
#[tokio::test]
async fn idle_connections_do_not_keep_it_from_the_database() {
    let database = with_odds();
    let served = with_open_files("-S -n 256", &database.dsn()).await;
    served.ready().await;
    let mut idle = Vec::new();
    for _ in 0..300 {
        idle.push(TcpStream::connect(served.address()).await.unwrap());
    }
    // The service answers a client that came later, so it has accepted the idle ones.
    let stats = async || timeout(Duration::from_secs(30), served.json("/v1/stats")).await;
    assert_eq!(stats().await.expect("an answer")["epoch"], 1);
    database.psql(
        "select pg_terminate_backend(pid) from pg_stat_activity \
         where application_name = 'oddscache follow' and datname = current_database()",
    );
    eventually("it follows again", async || {
        let stats = stats().await.expect("an answer");
        stats["counters"]["resumed"] == 1 && stats["status"] == "live"
    })
    .await;
    drop(idle);

    // If the limit is too low, the service says which settings to change.
    let mut served = with_open_files("-n 256", &database.dsn()).await;
    served.logs(&["--most-connections", "LimitNOFILE"]).await;
}
