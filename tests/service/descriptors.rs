//! Open files: clients must not take all of them from the follower.

use std::{process::Command, time::Duration};

use oddscache_testkit::service::{SERVE, Service, command, isolate};
use tokio::{net::TcpStream, time::timeout};

use super::{eventually, with_odds};

/// The service where the shell has said `ulimit` before.
async fn with_open_files(ulimit: &str, dsn: &str) -> Service {
    let script = format!("ulimit {ulimit} && exec \"$0\" \"$@\"");
    let mut shell = Command::new("sh");
    isolate(&mut shell);
    shell.args(["-c", &script]).arg(command(&[]).get_program());
    shell.args(SERVE).env("DATABASE_URL", dsn);
    Service::spawn(shell).await
}

#[tokio::test]
async fn idle_connections_do_not_keep_it_from_the_database() {
    let database = with_odds();
    let served = with_open_files("-S -n 256", &database.dsn()).await;
    served.ready().await;
    let mut idle = Vec::new();
    for _ in 0..300 {
        idle.push(TcpStream::connect(served.address()).await.unwrap());
    }
    // A client that comes after them is answered, so that they were accepted.
    let stats = async || timeout(Duration::from_secs(30), served.json("/v1/stats")).await;
    assert_eq!(stats().await.expect("an answer")["epoch"], 1);
    database.psql(
        "select pg_terminate_backend(pid) from pg_stat_activity \
         where application_name = 'oddscache' and datname = current_database()",
    );
    eventually("it follows again", async || {
        let stats = stats().await.expect("an answer");
        stats["epoch"].as_u64() > Some(1) && stats["status"] == "live"
    })
    .await;
    drop(idle);

    // Where it may not have more, it says so.
    let mut served = with_open_files("-n 256", &database.dsn()).await;
    served.logs(&["--most-connections", "LimitNOFILE"]).await;
}
