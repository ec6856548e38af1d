//! Owns what becomes of a session's LISTEN while it has no backend (`listening = "share"`).
//!
//! While a session has a backend it listens there, as without us. With the backend it gives its channels to the pool's
//! shared one, and takes them back with the next; see `backend::ears` for why nothing is lost or told twice.

use std::collections::BTreeSet;
use std::future::poll_fn;
use std::task::{Context, Poll};
use std::time::Duration;

use crate::backend::capture::MOST_CHANNELS;
use crate::backend::ears::{self, Deaf, Ears};
use crate::backend::{Lent, Lost};
use crate::clock::timers;
use crate::config::Listening;
use crate::ledger::Cause;
use crate::session::Session;
use crate::session::relay::End;
use crate::wire::reply::{ClientError, Fault};

/// How long the shared backend may take to get to a marker.
const PATIENCE: Duration = Duration::from_secs(10);

/// How often a backend that listens is looked for: it may be lost meanwhile.
const ATTEMPTS: usize = 3;

/// What became of a session's channels.
pub(super) enum Channels {
    /// The backend listens on nothing any more.
    Passed(Lent),
    /// The backend is the one that listens from now on.
    Given,
    /// They stay where they are: that pins.
    Kept(Lent),
}

/// What a client hears that may have missed something.
fn deaf(why: Deaf) -> End {
    let error = |text: &str| ClientError::new(Fault::Backend, "57P01", text);
    let told = match why {
        Deaf::Lost => error("terminating connection: the backend that listened for this session was lost")
            .detail("Notifications may have been missed.")
            .hint("Reconnect, LISTEN again, and look for what was missed."),
        Deaf::Slow => error("terminating connection: this session does not read its notifications")
            .detail(format!("More than {} bytes of them wait.", ears::MOST_UNREAD))
            .hint("Read notifications as they come; reconnect, LISTEN again, and look for what was missed."),
    };
    End::Told(Box::new(told), Cause::Lost)
}

impl Session {
    /// Whether a session that listens on `channels` may give them to the shared backend; otherwise they pin.
    pub(super) fn may_share(&self, lent: &Lent, channels: &BTreeSet<String>) -> bool {
        self.shared.config.listening == Listening::Share
            && channels.len() <= MOST_CHANNELS
            // What the shared one hears is in UTF-8, and handed on as it is.
            && lent.backend.parameters.get("client_encoding") == Some("UTF8")
    }

    /// Gives the session's channels to the pool's shared backend; the session's own becomes that where there is none.
    ///
    /// Not cancel safe.
    ///
    /// # Errors
    /// A backend is lost, and with it the session.
    pub(super) async fn give_channels(
        &mut self,
        mut lent: Lent,
        channels: BTreeSet<String>,
    ) -> Result<Channels, Lost> {
        if channels.is_empty() {
            self.rare.ear = None;
            return Ok(Channels::Passed(lent));
        }
        for _ in 0..ATTEMPTS {
            let own = self.rare.ear.take();
            let own = own.filter(|ear| !ear.ears().is_lost());
            let ear = own.or_else(|| Some(Box::new(Ears::join(&self.pool.ears()?))));
            let Some(ear) = ear else {
                let (ear, served) = Ears::found(&self.pool, lent, channels.clone());
                match served.await.map_err(|_| Lost::Closed)? {
                    Ok(()) => {
                        self.rare.ear = Some(Box::new(ear));
                        return Ok(Channels::Given);
                    }
                    Err(lent) => return Ok(Channels::Kept(lent)),
                }
            };
            if !ear.listen(&channels).await {
                continue;
            }
            let passed = ears::hand_over(&mut lent.backend, &ear).await?;
            self.notify(passed.before, &lent.backend.key);
            self.notify(passed.after, &lent.backend.key);
            self.rare.ear = Some(ear);
            return Ok(if passed.refused {
                Channels::Kept(lent)
            } else {
                Channels::Passed(lent)
            });
        }
        Ok(Channels::Kept(lent))
    }

    /// Has a backend that the session is about to hold listen on its channels, and hands on what the shared one heard
    /// until then.
    ///
    /// Not cancel safe.
    ///
    /// # Errors
    /// Something may have been missed: the session ends.
    pub(super) async fn take_channels(&mut self, lent: &mut Lent) -> Result<(), End> {
        let Some(ear) = self.rare.ear.take() else {
            return Ok(());
        };
        let passed = ears::take_over(&mut lent.backend, &ear).await;
        let passed = passed.map_err(|error| {
            tracing::warn!(session = %self.id, "a backend was lost as it was about to listen: {error}");
            deaf(Deaf::Lost)
        })?;
        if passed.refused {
            return Err(deaf(Deaf::Lost));
        }
        let marked = poll_fn(|cx| ear.poll_marked(cx));
        let heard = timers::timeout(PATIENCE, marked).await;
        let heard = heard.unwrap_or(Err(Deaf::Lost)).map_err(deaf)?;
        self.to_client.push(&heard);
        self.notify(passed.after, &lent.backend.key);
        self.rare.ear = Some(ear);
        Ok(())
    }

    /// Hands on what the shared backend heard for a session that has none. The client is told between two answers.
    pub(super) fn overhear(&mut self, cx: &mut Context<'_>) -> Result<(), End> {
        let Some(ear) = self.rare.ear.take() else {
            return Ok(());
        };
        if ear.is_overfull(cx) {
            return Err(deaf(Deaf::Slow));
        }
        while self.to_client.is_empty()
            && let Poll::Ready(heard) = ear.poll_heard(cx)
        {
            let heard = heard.map_err(deaf)?;
            let written = self.to_client.poll_write(&mut self.client, cx, &heard);
            written.map_err(|_| End::ClientBroken)?;
        }
        self.rare.ear = Some(ear);
        Ok(())
    }
}
