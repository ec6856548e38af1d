//! Owns the course of the backend that listens: its beginning, what it hears and is asked, its end.

use std::collections::BTreeSet;
use std::rc::Rc;

use tokio::sync::{mpsc, oneshot};

use super::{Inner, Order, PATIENCE, quoted};
use crate::backend::listener::{Listener, Notification};
use crate::backend::{Backend, Lent, Lost, Pool};
use crate::clock::timers;
use crate::wire::extended::write_frame;

/// Drives the backend to the end.
pub(super) async fn serve(
    pool: Rc<Pool>,
    lent: Lent,
    mut on: BTreeSet<String>,
    inner: Rc<Inner>,
    mut orders: mpsc::UnboundedReceiver<Order>,
    served: oneshot::Sender<Result<(), Lent>>,
) {
    let mut lent = lent;
    match settle(&mut lent.backend, &inner).await {
        Ok(true) => {}
        Ok(false) => {
            inner.lose();
            // The session that waited may be gone: then its backend is closed.
            let _ = served.send(Err(lent));
            return;
        }
        Err(error) => {
            tracing::warn!("a backend was lost as it was about to listen for sessions: {error}");
            return inner.lose();
        }
    }
    let Lent { backend, permit } = lent;
    let _listening = pool.begin_listening();
    drop(pool);
    let mut listener = Listener::of(*backend);
    // The session that waited may be gone.
    let _ = served.send(Ok(()));
    let end = attend(&mut listener, &mut on, &inner, &mut orders).await;
    if let Err(error) = end {
        tracing::warn!(
            pid = listener.pid(),
            "the backend that listened for sessions was lost: {error}"
        );
    }
    inner.lose();
    drop((listener, permit));
}

/// Frees a session's backend of what would disturb, and has it hear markers; `false` where PostgreSQL refuses, and all is
/// as before.
async fn settle(backend: &mut Backend, inner: &Inner) -> Result<bool, Lost> {
    let unhurried = if backend.version() >= 14 {
        "SET idle_session_timeout = 0; "
    } else {
        ""
    };
    let text = format!(
        "RESET SESSION AUTHORIZATION; RESET ALL; SET client_encoding = 'UTF8'; SET statement_timeout = 0; \
         SET lock_timeout = 0; {unhurried}SET application_name = 'pgvalet'; LISTEN {}",
        quoted(&inner.channel)
    );
    let mut request = Vec::new();
    write_frame(&mut request, b'Q', &[text.as_bytes(), b"\0"].concat());
    let answers = backend.exchange_within(PATIENCE, &request, 1).await?;
    Notification::all(&answers.notifications).for_each(|heard| inner.take(&heard));
    if let Some(error) = &answers.error {
        tracing::warn!("no backend listens for sessions: {}", error.message);
    }
    Ok(answers.error.is_none())
}

/// Hears, and does what is asked, until nobody needs it any more.
async fn attend(
    listener: &mut Listener,
    on: &mut BTreeSet<String>,
    inner: &Inner,
    orders: &mut mpsc::UnboundedReceiver<Order>,
) -> Result<(), Lost> {
    loop {
        tokio::select! {
            heard = listener.next() => inner.take(&heard?),
            order = orders.recv() => match order {
                None => return Ok(()),
                Some(order) => obey(listener, on, inner, order).await?,
            },
        }
    }
}

async fn obey(
    listener: &mut Listener,
    on: &mut BTreeSet<String>,
    inner: &Inner,
    order: Order,
) -> Result<(), Lost> {
    match order {
        Order::Listen(channels, reply) => {
            let missing = channels.into_iter().filter(|name| !on.contains(name));
            let missing: Vec<String> = missing.collect();
            if !ask(listener, "LISTEN", &missing).await? {
                return Ok(());
            }
            on.extend(missing);
            // The session may be gone.
            let _ = reply.send(());
        }
        Order::Tidy => {
            let unwanted = inner.unwanted(on);
            if ask(listener, "UNLISTEN", &unwanted).await? {
                on.retain(|name| !unwanted.contains(name));
            }
        }
    }
    Ok(())
}

/// Begins or ends to listen on these channels; `false` where PostgreSQL refuses.
async fn ask(listener: &mut Listener, command: &str, channels: &[String]) -> Result<bool, Lost> {
    if channels.is_empty() {
        return Ok(true);
    }
    let text: String = channels
        .iter()
        .map(|name| format!("{command} {}; ", quoted(name)))
        .collect();
    let asked = timers::timeout(PATIENCE, listener.ask(&text)).await;
    let answers = asked.map_err(|_| Lost::Late(PATIENCE))??;
    Ok(answers.error.is_none())
}
