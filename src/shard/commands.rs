//! Owns what can be asked of the data threads, and how the answers of several become one.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};

use crate::lease::book::Process;
use crate::lease::history::Parks;
use crate::lease::reload::{Method, Outcome};
use crate::lease::{ClaimState, SessionId};
use crate::ledger::Ledger;
use crate::metrics::Sample;
use crate::reload::{Account, Report};
use crate::shard::console::Ask;
use crate::shard::verify::Verified;
use crate::view::LeaseView;
use crate::wire::startup::CancelKey;

/// A claim on its way to a data thread.
#[derive(Clone, Debug)]
pub struct ClaimWish {
    pub id: SessionId,
    pub owner: Option<String>,
    pub state: ClaimState,
    pub held_for: Option<Duration>,
    pub place: Option<String>,
}

/// A reload on its way to the data threads.
#[derive(Clone, Debug, Default)]
pub struct ReloadWish {
    pub wish: crate::lease::reload::Wish,
    pub deadline: Option<Duration>,
    /// Replace backends of older generations once nobody holds them.
    pub recycle: bool,
    pub submitted: Option<Vec<ClaimWish>>,
    /// Hold up the selected sessions' next request while the reload runs, at most to the deadline.
    pub fence: bool,
    /// Where each account goes as it falls, for whoever follows.
    pub progress: Option<mpsc::UnboundedSender<Account>>,
}

/// What one owner's parks came to in the last hour.
#[derive(Clone, Debug, Default)]
pub struct OwnerParks {
    pub owner: String,
    pub count: u64,
    /// The idle time of all its parked leases together.
    pub total: Duration,
}

impl From<Parks> for OwnerParks {
    fn from(parks: Parks) -> Self {
        Self {
            owner: parks.owner.to_string(),
            count: parks.count,
            total: parks.total,
        }
    }
}

/// A question or an order to a data thread, with the way back.
#[derive(Debug)]
pub enum Command {
    /// Every session.
    Sessions(oneshot::Sender<(u64, Vec<LeaseView>)>),
    /// Replaces the claims of a source. Ids without a session come back.
    Claim {
        source: Option<String>,
        claims: Vec<ClaimWish>,
        reply: oneshot::Sender<Vec<SessionId>>,
    },
    /// A reload; its fence stands until the sender of `hold` is gone.
    Reload {
        wish: Box<ReloadWish>,
        hold: watch::Receiver<()>,
        reply: oneshot::Sender<Report>,
    },
    /// Returns one lease now. `None` when there is no such session.
    Return {
        id: SessionId,
        method: Method,
        reply: oneshot::Sender<Option<Outcome>>,
    },
    /// Ends a session that nobody holds any more, unless a request is unanswered. `None` when there is no such session.
    Reap(SessionId, oneshot::Sender<Option<Outcome>>),
    /// Asks backends that nobody leases whether they are alive, and replaces the dead.
    Verify(oneshot::Sender<Vec<Verified>>),
    /// The processes behind sessions, as they were found out.
    Processes(Vec<(SessionId, Process)>, oneshot::Sender<()>),
    Sample(oneshot::Sender<Sample>),
    /// What each owner's parks came to in the last hour.
    Parks(oneshot::Sender<Vec<OwnerParks>>),
    Cancel(CancelKey, oneshot::Sender<()>),
    /// What the console asks.
    Console(Ask),
}

/// All data threads, to be commanded.
#[derive(Clone, Debug)]
pub struct Shards(Vec<mpsc::Sender<Command>>);

/// The data threads are gone: pgvalet is ending.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("pgvalet is shutting down")]
pub struct Gone;

impl Shards {
    /// `count` data threads, and each one's commands.
    #[must_use]
    pub fn new(count: usize) -> (Self, Vec<mpsc::Receiver<Command>>) {
        let (senders, receivers) = (0..count).map(|_| mpsc::channel(256)).unzip();
        (Self(senders), receivers)
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> u32 {
        u32::try_from(self.0.len()).expect("threads are few")
    }

    /// Sends one command to one data thread.
    pub(super) async fn ask_one<T>(
        &self,
        number: u32,
        command: impl FnOnce(oneshot::Sender<T>) -> Command,
    ) -> Result<T, Gone> {
        let (reply, answer) = oneshot::channel();
        let sender = &self.0[number as usize];
        sender.send(command(reply)).await.map_err(|_| Gone)?;
        answer.await.map_err(|_| Gone)
    }

    /// Sends one command to every data thread, and gathers the answers.
    pub(super) async fn ask_all<T>(
        &self,
        command: impl Fn(u32, oneshot::Sender<T>) -> Command,
    ) -> Result<Vec<T>, Gone> {
        let mut answers = Vec::new();
        for (number, sender) in (0_u32..).zip(&self.0) {
            let (reply, answer) = oneshot::channel();
            sender
                .send(command(number, reply))
                .await
                .map_err(|_| Gone)?;
            answers.push(answer);
        }
        let mut gathered = Vec::new();
        for answer in answers {
            gathered.push(answer.await.map_err(|_| Gone)?);
        }
        Ok(gathered)
    }

    /// The generation, and every session.
    ///
    /// # Errors
    /// pgvalet is ending.
    pub async fn sessions(&self) -> Result<(u64, Vec<LeaseView>), Gone> {
        let answers = self.ask_all(|_, reply| Command::Sessions(reply)).await?;
        let generation = answers
            .iter()
            .map(|(generation, _)| *generation)
            .max()
            .unwrap_or_default();
        let mut sessions: Vec<_> = answers
            .into_iter()
            .flat_map(|(_, sessions)| sessions)
            .collect();
        sessions.sort_by_key(|session| session.id);
        Ok((generation, sessions))
    }

    /// Replaces the claims of a source; gives the ids that no session has.
    ///
    /// # Errors
    /// pgvalet is ending.
    pub async fn claim(
        &self,
        source: Option<String>,
        claims: Vec<ClaimWish>,
    ) -> Result<Vec<SessionId>, Gone> {
        let answers = self
            .ask_all(|number, reply| Command::Claim {
                source: source.clone(),
                claims: self.share(&claims, number),
                reply,
            })
            .await?;
        Ok(answers.into_iter().flatten().collect())
    }

    /// Those of `claims` that a data thread answers for.
    fn share(&self, claims: &[ClaimWish], number: u32) -> Vec<ClaimWish> {
        claims
            .iter()
            .filter(|claim| Ledger::shard_of(claim.id, self.count()) == number)
            .cloned()
            .collect()
    }

    /// Carries out a reload on every data thread.
    ///
    /// # Errors
    /// pgvalet is ending.
    pub async fn reload(&self, wish: ReloadWish) -> Result<Report, Gone> {
        // All threads keep their fences up until the last one is done.
        let (held, hold) = watch::channel(());
        let reports = self
            .ask_all(|number, reply| {
                let submitted = wish.submitted.as_ref().map(|all| self.share(all, number));
                Command::Reload {
                    wish: Box::new(ReloadWish {
                        submitted,
                        ..wish.clone()
                    }),
                    hold: hold.clone(),
                    reply,
                }
            })
            .await?;
        drop(held);
        let mut whole = Report::default();
        for report in reports {
            whole.generation = whole.generation.max(report.generation);
            whole.accounts.extend(report.accounts);
        }
        whole.accounts.sort_by_key(|account| account.id);
        Ok(whole)
    }

    /// Returns one lease now. `None` when there is no such session.
    ///
    /// # Errors
    /// pgvalet is ending.
    pub async fn give_back(&self, id: SessionId, method: Method) -> Result<Option<Outcome>, Gone> {
        let home = Ledger::shard_of(id, self.count());
        self.ask_one(home, |reply| Command::Return { id, method, reply })
            .await
    }

    /// Ends a session that nobody holds any more, unless a request is unanswered. `None` when there is no such session.
    ///
    /// # Errors
    /// pgvalet is ending.
    pub async fn reap(&self, id: SessionId) -> Result<Option<Outcome>, Gone> {
        let home = Ledger::shard_of(id, self.count());
        self.ask_one(home, |reply| Command::Reap(id, reply)).await
    }

    /// Asks every backend that nobody leases whether it is alive, and replaces the dead.
    ///
    /// # Errors
    /// pgvalet is ending.
    pub async fn verify(&self) -> Result<Vec<Verified>, Gone> {
        let answers = self.ask_all(|_, reply| Command::Verify(reply)).await?;
        let mut all: Vec<_> = answers.into_iter().flatten().collect();
        all.sort_by(|a, b| {
            (&a.database, &a.user, a.backend).cmp(&(&b.database, &b.user, b.backend))
        });
        Ok(all)
    }

    /// Notes the processes behind sessions.
    ///
    /// # Errors
    /// pgvalet is ending.
    pub async fn processes(&self, found: Vec<(SessionId, Process)>) -> Result<(), Gone> {
        self.ask_all(|number, reply| {
            let own = |id| Ledger::shard_of(id, self.count()) == number;
            Command::Processes(
                found.iter().filter(|(id, _)| own(*id)).cloned().collect(),
                reply,
            )
        })
        .await
        .map(|_| ())
    }

    /// What each owner's parks came to in the last hour, by owner.
    ///
    /// # Errors
    /// pgvalet is ending.
    pub async fn parks(&self) -> Result<BTreeMap<String, OwnerParks>, Gone> {
        let mut all: BTreeMap<String, OwnerParks> = BTreeMap::new();
        for parks in self
            .ask_all(|_, reply| Command::Parks(reply))
            .await?
            .into_iter()
            .flatten()
        {
            let known = all.entry(parks.owner.clone()).or_default();
            *known = OwnerParks {
                count: known.count + parks.count,
                total: known.total + parks.total,
                owner: parks.owner,
            };
        }
        Ok(all)
    }

    /// What a scrape needs.
    ///
    /// # Errors
    /// pgvalet is ending.
    pub async fn sample(&self) -> Result<Sample, Gone> {
        let mut whole = Sample::default();
        for sample in self.ask_all(|_, reply| Command::Sample(reply)).await? {
            whole.merge(sample);
        }
        Ok(whole)
    }

    /// Cancels what a session of data thread `home` runs. Ends when the cancel is no longer in flight.
    pub async fn cancel(&self, home: u32, key: CancelKey) {
        let (reply, answer) = oneshot::channel();
        if self.0[home as usize]
            .send(Command::Cancel(key, reply))
            .await
            .is_ok()
        {
            // The data thread may end meanwhile: then nothing is left to cancel.
            let _ = answer.await;
        }
    }
}
