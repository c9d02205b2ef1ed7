//! Open files: clients must not take all of them from the follower.

use std::{process::Stdio, time::Duration};

use tokio::{net::TcpStream, time::timeout};

use super::{AsyncCommand, BINARY, Served, command, eventually, with_odds};

/// The service where the shell has said `ulimit` before.
async fn with_open_files(ulimit: &str, dsn: &str) -> Served {
    let script = format!("ulimit {ulimit} && exec \"$0\" \"$@\"");
    let serve = ["serve", "--listen", "127.0.0.1:0", "--log-format", "json"];
    let mut shell = AsyncCommand::new("sh");
    shell.args(["-c", &script, BINARY]).args(serve);
    // Variables that are not for it.
    for (name, _) in command(&[]).get_envs() {
        shell.env_remove(name);
    }
    shell
        .env("DATABASE_URL", dsn)
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    Served::of(shell).await
}

#[tokio::test]
async fn idle_connections_do_not_keep_it_from_the_database() {
    let database = with_odds();
    let served = with_open_files("-S -n 256", &database.dsn()).await;
    served.warm().await;
    let mut idle = Vec::new();
    for _ in 0..300 {
        idle.push(TcpStream::connect(served.address()).await.unwrap());
    }
    // Who comes after them is answered, so that they were accepted.
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
