//! Owns what can be asked of the data threads, and how the answers of several become one.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};

use crate::lease::book::Process;
use crate::lease::history::Parks;
use crate::lease::reload::{Method, Outcome, Pinned};
use crate::lease::{Claim, ClaimState, SessionId};
use crate::ledger::{Cause, Ledger, Order, Patience, ReturnOrder};
use crate::metrics::Sample;
use crate::reload::{self, Report};
use crate::session::Shared;
use crate::shard::console::{self, Ask};
use crate::shard::sample::sample;
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
    Reload(Box<ReloadWish>, oneshot::Sender<Report>),
    /// Returns one lease now. `None` when there is no such session.
    Return {
        id: SessionId,
        method: Method,
        reply: oneshot::Sender<Option<Outcome>>,
    },
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
        let reports = self
            .ask_all(|number, reply| {
                let submitted = wish.submitted.as_ref().map(|all| self.share(all, number));
                Command::Reload(
                    Box::new(ReloadWish {
                        submitted,
                        ..wish.clone()
                    }),
                    reply,
                )
            })
            .await?;
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

/// Answers commands until nobody can send any more.
pub(super) async fn answer(shared: Rc<Shared>, mut commands: mpsc::Receiver<Command>) {
    while let Some(command) = commands.recv().await {
        obey(&shared, command);
    }
}

/// Answers one command; what takes longer goes on as a task. An asker who is gone needs no answer.
fn obey(shared: &Rc<Shared>, command: Command) {
    let ledger = &shared.ledger;
    match command {
        Command::Sessions(reply) => drop(reply.send(sessions(shared))),
        Command::Claim {
            source,
            claims,
            reply,
        } => {
            let source = source.map(Rc::from);
            let claims = claims
                .into_iter()
                .map(|wish| claim(ledger, wish, source.as_ref()))
                .collect();
            drop(reply.send(ledger.book_mut().claim(source.as_ref(), claims)));
        }
        Command::Reload(wish, reply) => {
            let shared = shared.clone();
            tokio::task::spawn_local(async move {
                drop(reply.send(carry_out(&shared, *wish).await));
            });
        }
        Command::Return { id, method, reply } => {
            let shared = shared.clone();
            tokio::task::spawn_local(async move {
                drop(reply.send(give_back(&shared.ledger, id, method).await))
            });
        }
        Command::Processes(found, reply) => {
            let mut book = ledger.book_mut();
            for (id, process) in found {
                if let Some(slot) = book.find(id) {
                    book.entry_mut(slot).process = Some(Rc::new(process));
                }
            }
            let _ = reply.send(());
        }
        Command::Sample(reply) => drop(reply.send(sample(shared))),
        Command::Parks(reply) => {
            ledger.look(&shared.config.policies());
            let parks = ledger.parks().into_iter();
            drop(reply.send(parks.map(OwnerParks::from).collect()));
        }
        Command::Console(ask) => console::obey(shared, ask),
        Command::Cancel(key, reply) => {
            let forwarded = shared.cancels.forward(key);
            tokio::task::spawn_local(async move {
                forwarded.await;
                let _ = reply.send(());
            });
        }
    }
}

/// Carries out a reload on this data thread.
async fn carry_out(shared: &Shared, wish: ReloadWish) -> Report {
    if wish.recycle && !wish.wish.dry_run {
        let next = shared.ledger.book().generation().next();
        shared.pools.recycle(next);
    }
    let request = reload_request(&shared.ledger, wish);
    let cancel = |key| shared.cancels.forward(key);
    reload::run(&shared.ledger, request, shared.config.policies(), &cancel).await
}

fn sessions(shared: &Shared) -> (u64, Vec<LeaseView>) {
    let ledger = &shared.ledger;
    let (book, clock, now) = (ledger.book(), ledger.clock(), ledger.now());
    let policies = shared.config.policies();
    let views = book.entries().map(|(slot, entry)| {
        LeaseView::of(entry, ledger.backend_pid(slot), &clock, now, &policies)
    });
    (book.generation().0, views.collect())
}

fn claim(ledger: &Ledger, wish: ClaimWish, source: Option<&Rc<str>>) -> (SessionId, Claim) {
    let claim = Claim {
        owner: wish.owner.map(Rc::from),
        state: wish.state,
        since: wish.held_for.map(|held| ledger.now().before(held)),
        place: wish.place.map(Rc::from),
        source: source.cloned(),
    };
    (wish.id, claim)
}

fn reload_request(ledger: &Ledger, wish: ReloadWish) -> reload::Request {
    let claims = |all: Vec<ClaimWish>| {
        all.into_iter()
            .map(|one| claim(ledger, one, None))
            .collect()
    };
    reload::Request {
        wish: wish.wish,
        deadline: wish.deadline,
        submitted: wish.submitted.map(claims),
    }
}

async fn give_back(ledger: &Ledger, id: SessionId, method: Method) -> Option<Outcome> {
    let (reply, answer) = oneshot::channel();
    let order = Order::Return(ReturnOrder {
        method,
        pinned: Pinned::Spare,
        cause: Cause::Forced,
        patience: Patience::Now,
        reply: Some(reply),
    });
    if !ledger.order(id, order) {
        return None;
    }
    Some(answer.await.unwrap_or(Outcome::Gone))
}
