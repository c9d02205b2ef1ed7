//! `oddscache dump`: everything once, as lines of JSON.

use std::{
    io::{BufWriter, Write},
    process::ExitCode,
};

use anyhow::Context;
use clap::Args;
use oddscache::View;

use crate::server::{options::follow::FollowArguments, stdout::stdout};

#[derive(Debug, Args)]
pub(crate) struct DumpArguments {
    #[command(flatten)]
    pub(crate) follow: FollowArguments,
    /// Work without the change feed, which a single reading does not need
    #[arg(long, env = "ODDSCACHE_WITHOUT_FEED")]
    pub(crate) without_feed: bool,
}

pub(crate) async fn run(arguments: DumpArguments) -> anyhow::Result<ExitCode> {
    let mut config = arguments.follow.config()?;
    config = config.need_feed(!arguments.without_feed);
    let view = oddscache::warm_up(config).await?;
    dump(&view, BufWriter::new(stdout()))?;
    Ok(ExitCode::SUCCESS)
}

/// Writes one line of JSON per event, in event id order.
fn dump(view: &View, mut out: impl Write) -> anyhow::Result<()> {
    for event in view.event_ids().into_iter().filter_map(|id| view.event(id)) {
        serde_json::to_writer(&mut out, event).context("writing the dump")?;
        out.write_all(b"\n").context("writing the dump")?;
    }
    out.flush().context("writing the dump")
}
