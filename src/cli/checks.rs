//! Owns `pgvalet reap`, `verify` and `fleet`: what is asked, and how the answers look.

use clap::Args;
use serde_json::json;

use super::commands::{Common, block_on, finish, read, show};
use super::views::{Backend, Fleet, Reaped, Verified};
use super::{Exit, tables};

#[derive(Args, Debug)]
pub(super) struct ReapArgs {
    #[command(flatten)]
    common: Common,
    /// Say which sessions would be ended, and end none
    #[arg(long)]
    dry_run: bool,
}

/// `pgvalet reap`.
pub(super) fn reap(args: &ReapArgs) -> Exit {
    let client = match args.common.client() {
        Ok(client) => client,
        Err(exit) => return exit,
    };
    let body = json!({ "dry_run": args.dry_run }).to_string();
    let answer = block_on(client.post("/v1/reap", body)).and_then(|body| read(&client, body));
    finish(&args.common, answer, |answer: &Reaped| {
        let (sessions, known) = (answer.sessions, answer.with_process);
        let looked = format!("{sessions} sessions, the process of {known} is known; ");
        let text = match answer.orphans.len() {
            0 => format!("{looked}each of them is there.\n"),
            gone => format!(
                "{looked}{gone} gone:\n\n{}",
                tables::outcomes(&answer.orphans)
            ),
        };
        (text, Exit::Success)
    })
}

/// `pgvalet verify`.
pub(super) fn verify(common: &Common) -> Exit {
    let client = match common.client() {
        Ok(client) => client,
        Err(exit) => return exit,
    };
    let answer = block_on(client.post("/v1/verify", "")).and_then(|body| read(&client, body));
    finish(common, answer, |answer: &Verified| {
        let dead = |one: &Backend| one.outcome == "dead";
        let exit = if answer.backends.iter().any(dead) {
            Exit::Failed
        } else {
            Exit::Success
        };
        (tables::backends(&answer.backends), exit)
    })
}

/// `pgvalet fleet`.
pub(super) fn fleet(common: &Common) -> Exit {
    show(common, "/v1/fleet", |answer: Fleet| {
        tables::fleet(&answer.instances)
    })
}
