//! Owns the opening of a backend: which hosts are asked, in which dialect, and what their refusals mean.

use crate::backend::Backend;
use crate::backend::connect::{Login, Talk, unreachable};
use crate::backend::hosts::{self, Dialect};
use crate::clock::{Clock, timers};
use crate::config::Target;
use crate::lease::{BackendId, Generation};
use crate::wire::reply::{ClientError, Fault};

/// The SQLSTATE of what pg_hba.conf doesn't let in.
const UNWELCOME: &str = "28000";

/// Opens a backend on the first host that gives one. Cancel safe: what was begun is closed.
///
/// # Errors
/// What the client that waits for it may see: PostgreSQL's own error where there is one.
pub async fn open(
    login: &Login<'_>,
    id: BackendId,
    clock: Clock,
    generation: Generation,
) -> Result<Backend, ClientError> {
    let hosts = login.dialer.hosts();
    let (mut failures, mut last) = (Vec::new(), None);
    for target in hosts.rounds() {
        failures.clear();
        for host in hosts.order(clock.now()) {
            match on_host(login, host, *target).await {
                Ok(talk) => {
                    hosts.served(host);
                    return Ok(talk.into_backend(id, clock.now(), generation));
                }
                Err(error) if !leads_elsewhere(&error) => return Err(error),
                Err(error) => {
                    failures.push(error.message.clone());
                    last = Some(error);
                }
            }
            if hosts.is_final(*target) {
                hosts.failed(host, clock.now());
            }
        }
    }
    let message = format!(
        "pgvalet found no PostgreSQL to use: {}",
        failures.join("; ")
    );
    let hint =
        "Are the hosts of `upstream` up, and is one of them what target_session_attrs asks for?";
    Err(match last {
        Some(error) if failures.len() == 1 => error,
        Some(_) | None => ClientError::new(Fault::Backend, "08001", message).hint(hint),
    })
}

/// Logs in on one host, within `connect_timeout`; one that isn't what is wanted is left again.
async fn on_host<'a>(
    login: &'a Login<'a>,
    host: usize,
    target: Target,
) -> Result<Talk<'a>, ClientError> {
    let attempt = async {
        let mut talk = log_in(login, host).await?;
        talk.finish().await?;
        let misfit = hosts::unfit(target, &talk.reported, &login.baseline);
        let Some(why) = misfit.filter(|_| target != Target::Any) else {
            return Ok(talk);
        };
        talk.leave().await;
        Err(unreachable(login, host, &why))
    };
    if login.timeout.is_zero() {
        return attempt.await;
    }
    match timers::timeout(login.timeout, attempt).await {
        Ok(outcome) => outcome,
        Err(_) => Err(unreachable(
            login,
            host,
            &"no answer within connect_timeout",
        )),
    }
}

/// Whether another host may do better: this one is down, starting or ending, or not what is wanted. A refused login would
/// be refused everywhere, as libpq sees it.
fn leads_elsewhere(error: &ClientError) -> bool {
    error.code.starts_with("08") || matches!(&*error.code, "57P01" | "57P02" | "57P03")
}

/// Logs in with the newest protocol, and with 3.0 where that isn't understood; and where PostgreSQL's own rules want it the
/// other way (`hostssl`, `hostnossl`) and sslmode doesn't care, that way.
async fn log_in<'a>(login: &'a Login<'a>, host: usize) -> Result<Talk<'a>, ClientError> {
    let hosts = login.dialer.hosts();
    let mut minor = hosts.dialect(host).minor();
    let mut talk = Talk::begin(login, host, login.dialer.encryption()).await?;
    let mut refused = match talk.log_in(minor).await {
        Ok(()) => return Ok(talk),
        Err(error) => error,
    };
    if hosts.dialect(host) == Dialect::Unknown && talk.is_about_version(&refused) {
        minor = 0;
        let Ok(older) = Talk::begin(login, host, login.dialer.encryption()).await else {
            return Err(refused);
        };
        talk = older;
        match talk.log_in(minor).await {
            Ok(()) => {
                hosts.note_dialect(host, Dialect::Old);
                return Ok(talk);
            }
            Err(error) => refused = error,
        }
    }
    let otherwise = login.dialer.otherwise(&talk.stream);
    let Some(encryption) = otherwise.filter(|_| refused.code == UNWELCOME) else {
        return Err(refused);
    };
    let Ok(mut talk) = Talk::begin(login, host, encryption).await else {
        return Err(refused);
    };
    talk.log_in(minor).await?;
    Ok(talk)
}
