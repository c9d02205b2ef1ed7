//! `oddscache health` and `oddscache ready`: a container's health check, which needs nothing else installed.

use std::{path::PathBuf, process::ExitCode, time::Duration};

use anyhow::Context as _;

use crate::server::{
    client::{Url, for_health_checks, get_at_socket},
    http::address::Address,
    stdout::print_line,
};

#[derive(Debug, clap::Args)]
pub(crate) struct ProbeArguments {
    /// The service to ask [default: the one on this machine that --admin-listen or --listen, and --tls-cert describe]
    #[arg(long, env = "ODDSCACHE_URL", value_name = "URL")]
    url: Option<Url>,
    /// Where the service listens
    #[arg(
        long,
        env = "ODDSCACHE_LISTEN",
        default_value = "127.0.0.1:7979",
        value_name = "ADDRESS:PORT"
    )]
    listen: Address,
    /// Where the service answers operators, if that is another address
    #[arg(long, env = "ODDSCACHE_ADMIN_LISTEN", value_name = "ADDRESS:PORT")]
    admin_listen: Option<Address>,
    /// The service's certificate. It is not read: the flag only means that the service speaks TLS
    #[arg(long, env = "ODDSCACHE_TLS_CERT", value_name = "FILE")]
    tls_cert: Option<PathBuf>,
    /// How long the service may take to answer
    #[arg(long, default_value = "3s", value_parser = humantime::parse_duration)]
    timeout: Duration,
}

/// Asks for `path`, and prints the answer in a sentence. The exit code is 0 if the status of the answer is 200, else 1.
/// An orchestrator reads only the exit code, so it does not depend on whether the sentence could be printed.
pub(crate) async fn run(arguments: ProbeArguments, path: &str) -> anyhow::Result<ExitCode> {
    let bound = arguments.timeout;
    let address = arguments.admin_listen.unwrap_or(arguments.listen);
    let ask = async |url: Url| {
        let client = for_health_checks(&url, bound)?;
        let answer = client.get(path).await;
        answer.with_context(|| format!("asking {url}{path}"))
    };
    let (url, (status, body)) = match (arguments.url, address) {
        (Some(url), _) => (url.to_string(), ask(url).await?),
        (None, Address::Tcp(tcp)) => {
            let url = Url::of(tcp, arguments.tls_cert.is_some());
            (url.to_string(), ask(url).await?)
        }
        (None, Address::Unix(socket)) => {
            let answer = get_at_socket(&socket, path, bound).await;
            let url = Address::Unix(socket).to_string();
            let answer = answer.with_context(|| format!("asking {url}{path}"))?;
            (url, answer)
        }
    };
    let said = sentence(&String::from_utf8_lossy(&body));
    if status == 200 {
        print_line!("{url}: {said}");
        return Ok(ExitCode::SUCCESS);
    }
    print_line!("{url}: {status}: {said}");
    Ok(ExitCode::FAILURE)
}

/// What the answer says: its error or status, or else its whole text.
fn sentence(body: &str) -> String {
    let Ok(answer) = serde_json::from_str::<serde_json::Value>(body) else {
        return body.trim().to_owned();
    };
    let text = |name: &str| answer[name].as_str().map(str::to_owned);
    let said = text("error").or_else(|| text("status").map(|status| format!("ready, {status}")));
    said.unwrap_or_else(|| body.trim().to_owned())
}
