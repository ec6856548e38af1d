//! Owns the carrying out of what changes something.

use super::command::{Order, Shutdown};
use crate::admin::Desk;
use crate::drain::Wish;
use crate::lease::SessionId;
use crate::lease::reload::{Method, Outcome};
use crate::shard::{Change, Gone};
use crate::wire::reply::{ClientError, Fault};

/// Carries an order out, and gives the tag of its completion.
///
/// # Errors
/// Why it could not be.
pub(super) async fn carry_out(desk: &Desk, order: &Order) -> Result<&'static str, ClientError> {
    match order {
        Order::Pause(database) => change(desk, Change::Pause, database.as_deref()).await,
        Order::Resume(database) => change(desk, Change::Resume, database.as_deref()).await,
        Order::Reconnect(database) => change(desk, Change::Reconnect, database.as_deref()).await,
        Order::WaitClose(database) => change(desk, Change::WaitClose, database.as_deref()).await,
        Order::Kill(Some(database)) => change(desk, Change::Kill, Some(database)).await,
        Order::Kill(None) => {
            let text = "a database is required";
            Err(ClientError::new(Fault::Client, "42601", text).hint("KILL name, or PAUSE for all."))
        }
        Order::KillClient(id) => match desk.shards.end(SessionId::new(*id)).await {
            Ok(true) => Ok("KILL_CLIENT"),
            Ok(false) => Err(nobody(*id)),
            Err(gone) => Err(ending(gone)),
        },
        Order::Reload => {
            desk.shutdown.ask(Wish::Reload);
            Ok("RELOAD")
        }
        Order::Shutdown(how) => {
            desk.shutdown.ask(match how {
                Shutdown::Now => Wish::End,
                Shutdown::Waiting => Wish::Drain,
            });
            Ok("SHUTDOWN")
        }
        Order::Return(id) => give_back(desk, *id).await,
        Order::ReturnOwner(owner) => give_back_all(desk, owner).await,
    }
}

async fn change(
    desk: &Desk,
    change: Change,
    database: Option<&str>,
) -> Result<&'static str, ClientError> {
    desk.shards.change(change, database).await.map_err(ending)?;
    Ok(match change {
        Change::Pause => "PAUSE",
        Change::Resume => "RESUME",
        Change::Reconnect => "RECONNECT",
        Change::WaitClose => "WAIT_CLOSE",
        Change::Kill => "KILL",
    })
}

async fn give_back(desk: &Desk, id: u32) -> Result<&'static str, ClientError> {
    let outcome = desk.shards.give_back(SessionId::new(id), Method::Detach);
    let outcome = outcome.await.map_err(ending)?.ok_or_else(|| nobody(id))?;
    match &outcome {
        Outcome::Returned(_) | Outcome::Gone => Ok("RETURN"),
        Outcome::Resting
        | Outcome::Spared(_)
        | Outcome::Busy(_)
        | Outcome::Pinned(_)
        | Outcome::Unknown => {
            let reason = outcome.reason().unwrap_or("no reason");
            let text = format!("session {id} is {}: {reason}", outcome.word());
            Err(ClientError::new(Fault::Client, "55006", text))
        }
    }
}

/// Returns what an owner holds, as far as that may be: `SHOW LEASES` tells what is left.
async fn give_back_all(desk: &Desk, owner: &str) -> Result<&'static str, ClientError> {
    let (_, sessions) = desk.sessions().await.map_err(ending)?;
    let mut own = sessions
        .into_iter()
        .filter(|session| session.owner == owner)
        .peekable();
    if own.peek().is_none() {
        let text = format!("no session belongs to the owner \"{owner}\"");
        return Err(ClientError::new(Fault::Client, "42704", text));
    }
    for session in own {
        let returned = desk
            .shards
            .give_back(SessionId::new(session.id), Method::Detach);
        returned.await.map_err(ending)?;
    }
    Ok("RETURN")
}

fn nobody(id: u32) -> ClientError {
    let error = ClientError::new(
        Fault::Client,
        "42704",
        format!("no session has the id {id}"),
    );
    error.hint("SHOW CLIENTS lists them, with their ids.")
}

/// pgvalet is ending.
pub(super) fn ending(gone: Gone) -> ClientError {
    ClientError::new(Fault::Proxy, "57P01", gone.to_string())
}
