//! `oddscache demo`: the whole on a private PostgreSQL.

#[derive(Debug, clap::Args)]
pub(crate) struct DemoArguments {}

pub(crate) async fn run(_: DemoArguments) -> anyhow::Result<std::process::ExitCode> {
    anyhow::bail!("not yet")
}
