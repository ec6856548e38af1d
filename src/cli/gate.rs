//! Owns `pgvalet gate`: it watches for a while, and fails when more leases are parked than allowed.

use std::time::Duration;

use bytes::Bytes;
use clap::Args;

use super::client::{Client, ClientError};
use super::commands::{Common, block_on, duration, finish, read};
use super::views::Leaks;
use super::{Exit, complain, tables};
use crate::clock::timers;

/// How often it looks.
const EVERY: Duration = Duration::from_millis(250);

#[derive(Args, Debug)]
pub(super) struct GateArgs {
    #[command(flatten)]
    common: Common,
    /// How many leases may be parked at the same time
    #[arg(long, value_name = "COUNT", default_value_t = 0)]
    max_parked: usize,
    /// How long to watch, such as 30s; without it, look once
    #[arg(long = "for", value_name = "DURATION", value_parser = duration, default_value = "0s")]
    watch: Duration,
}

/// `pgvalet gate`.
pub(super) fn gate(args: &GateArgs) -> Exit {
    let client = match args.common.client() {
        Ok(client) => client,
        Err(exit) => return exit,
    };
    let answer = block_on(watch(&client, args));
    finish(&args.common, answer, |leaks: &Leaks| {
        let parked = leaks.leaks.len();
        if parked <= args.max_parked {
            return (tables::leaks(leaks), Exit::Success);
        }
        let allowed = args.max_parked;
        complain(&format!("gate: {parked} parked, {allowed} allowed"));
        (tables::leaks(leaks), Exit::Failed)
    })
}

/// The leaks that are too many, or what there was at the end.
async fn watch(client: &Client, args: &GateArgs) -> Result<(Bytes, Leaks), ClientError> {
    let mut end = std::pin::pin!(timers::sleep(args.watch));
    loop {
        let found = read::<Leaks>(client, client.get("/v1/leaks").await?)?;
        if found.1.leaks.len() > args.max_parked || end.is_elapsed() || args.watch.is_zero() {
            return Ok(found);
        }
        tokio::select! {
            () = &mut end => {}
            () = timers::sleep(EVERY) => {}
        }
    }
}
