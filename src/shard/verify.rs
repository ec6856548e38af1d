//! Owns the asking of backends that nobody leases whether they are alive, and the replacing of the dead.

use std::rc::Rc;
use std::time::Duration;

use crate::backend::pool::Borrowed;
use crate::backend::{Backend, Home, Pool};
use crate::events::Happening;
use crate::session::Shared;

/// How long a backend may take to answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// What became of one backend.
#[derive(Clone, Debug)]
pub struct Verified {
    pub database: String,
    pub user: String,
    /// The pid of PostgreSQL's process.
    pub backend: u32,
    pub verdict: Verdict,
}

/// Whether it was alive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    Alive,
    /// It was dead; this one stands in its place.
    Replaced(u32),
    /// It was dead, and no other could be opened.
    Dead(String),
}

impl Verdict {
    /// The word in the answer.
    #[must_use]
    pub const fn word(&self) -> &'static str {
        match self {
            Self::Alive => "alive",
            Self::Replaced(_) => "replaced",
            Self::Dead(_) => "dead",
        }
    }
}

/// Asks every idle backend of this data thread, one after the other in each pool, so that most stay at hand meanwhile.
pub(super) async fn verify(shared: &Rc<Shared>) -> Vec<Verified> {
    let pools = shared.pools.all();
    let asked = pools.iter().map(|pool| verify_pool(shared, pool));
    let asked = futures_util::future::join_all(asked).await;
    asked.into_iter().flatten().collect()
}

async fn verify_pool(shared: &Rc<Shared>, pool: &Rc<Pool>) -> Vec<Verified> {
    let mut all = Vec::new();
    for id in pool.idle_ids() {
        // Somebody may have taken it meanwhile: then it shows by itself.
        let Some(borrowed) = pool.borrow_idle(id) else {
            continue;
        };
        all.push(verify_one(shared, pool, borrowed).await);
    }
    all
}

async fn verify_one(shared: &Rc<Shared>, pool: &Rc<Pool>, mut borrowed: Borrowed) -> Verified {
    let backend = borrowed.backend().key.key.pid;
    let verdict = if is_alive(borrowed.backend()).await {
        borrowed.give_back();
        Verdict::Alive
    } else {
        replace(shared, pool, borrowed).await
    };
    let verified = Verified {
        database: pool.database.to_string(),
        user: pool.user.to_string(),
        backend,
        verdict,
    };
    tell(shared, &verified);
    verified
}

/// Whether it answers a Sync, which changes nothing of what a session left in it.
async fn is_alive(backend: &mut Backend) -> bool {
    let sync = [b'S', 0, 0, 0, 4];
    let answered = backend.exchange_within(PATIENCE, &sync, 1).await;
    answered.is_ok_and(|answers| answers.error.is_none())
}

/// Opens another one in place of a dead one, for whoever comes next.
async fn replace(shared: &Rc<Shared>, pool: &Rc<Pool>, borrowed: Borrowed) -> Verdict {
    let (dead, permit) = borrowed.bury();
    let baseline = dead.baseline.clone();
    let application = dead.application.clone();
    drop(dead);
    let generation = shared.ledger.book().generation();
    let opened = shared
        .pools
        .open(pool, permit, &baseline, &application, generation)
        .await;
    match opened {
        Ok(lent) => {
            debug_assert_eq!(lent.backend.home, Home::Clean);
            let pid = lent.backend.key.key.pid;
            pool.give_back(lent, shared.ledger.now());
            Verdict::Replaced(pid)
        }
        Err(error) => Verdict::Dead(error.message),
    }
}

fn tell(shared: &Shared, verified: &Verified) {
    let (database, user) = (verified.database.clone(), verified.user.clone());
    shared.events.tell(match &verified.verdict {
        Verdict::Alive => return,
        Verdict::Replaced(by) => Happening::BackendReplaced {
            database,
            user,
            backend: verified.backend,
            by: *by,
        },
        Verdict::Dead(_) => Happening::BackendLost {
            database,
            user,
            backend: Some(verified.backend),
            session: None,
        },
    });
}
