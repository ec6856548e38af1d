//! Owns the asking of PostgreSQL for the secret of a user whom the configuration doesn't know (`auth_query`).
//!
//! It has a backend of its own for that, so that no lease stands in the way of a login, and no client's settings in that of
//! the query: its search_path is pg_catalog (CVE-2025-12819). Answers are kept for a short time, also that there is no such
//! user, and so are failures: logins that fail must not storm the database.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::time::Duration;

use secrecy::SecretString;

use crate::backend::capture::write_statement;
use crate::backend::pool::Request;
use crate::backend::{Baseline, Grant, Lent, Pool, Pools};
use crate::clock::timers;
use crate::config::{Config, Secret};
use crate::lease::{Generation, Moment, SessionId};
use crate::wire::extended::write_frame;
use crate::wire::reply::{ClientError, Fault};

/// What is asked unless the configuration says otherwise. A password that is no longer valid is as good as none
/// (CVE-2025-2291).
pub const QUERY: &str = "SELECT rolname, CASE WHEN rolvaliduntil OPERATOR(pg_catalog.<) pg_catalog.now() THEN NULL \
                         ELSE rolpassword END FROM pg_catalog.pg_authid \
                         WHERE rolname OPERATOR(pg_catalog.=) $1";

/// How many answers are kept.
const MOST_KNOWN: usize = 1000;

/// How long a failure is kept, and how old an answer is at least before a wrong password casts doubt on it.
const AT_LEAST: Duration = Duration::from_secs(1);

/// The longest name that a role has in PostgreSQL, in bytes.
const LONGEST_NAME: usize = 63;

/// The asking, of one data thread.
#[derive(Debug)]
pub struct Lookup {
    query: String,
    /// How long an answer is good for.
    keep: Duration,
    /// How long one query may take; zero means without limit.
    limit: Duration,
    pool: Rc<Pool>,
    baseline: Rc<Baseline>,
    known: RefCell<HashMap<String, Known>>,
}

#[derive(Clone, Debug)]
struct Known {
    at: Moment,
    answer: Answer,
}

/// The secret, that there is none, or that the question failed.
type Answer = Result<Option<Secret>, Failed>;

/// The question failed; the log says why.
#[derive(Clone, Copy, Debug)]
struct Failed;

impl Lookup {
    /// What the configuration asks for, if anything.
    #[must_use]
    pub fn new(config: &Config) -> Option<Self> {
        if !config.asks_postgresql() {
            return None;
        }
        let own = config.auth_query.as_deref();
        let query = own.filter(|query| *query != "default").unwrap_or(QUERY);
        let upstream = &config.upstream;
        let user = config.auth_user.as_deref().unwrap_or(&upstream.user);
        let pool = Pool::new(upstream.database.as_str().into(), user.into(), 1);
        let path = ("search_path".to_owned(), "pg_catalog, pg_temp".to_owned());
        let baseline = pool.intern(Baseline([path].into()));
        Some(Self {
            query: query.to_owned(),
            keep: config.auth_query_cache,
            limit: config.connect_timeout,
            pool,
            baseline,
            known: RefCell::default(),
        })
    }

    /// Closes its backend when it is spent, and forgets old answers.
    pub(super) fn tend(&self, now: Moment, lifetime: Duration, idle_timeout: Duration) {
        self.pool.tend(now, lifetime, idle_timeout);
        self.known
            .borrow_mut()
            .retain(|_, known| self.is_fresh(known, now));
    }

    fn is_fresh(&self, known: &Known, now: Moment) -> bool {
        let keep = match known.answer {
            Ok(_) => self.keep,
            Err(Failed) => AT_LEAST,
        };
        now.since(known.at) < keep
    }

    fn fresh(&self, user: &str, now: Moment) -> Option<Answer> {
        let known = self.known.borrow();
        let known = known.get(user).filter(|known| self.is_fresh(known, now))?;
        Some(known.answer.clone())
    }

    fn keep(&self, user: &str, answer: &Answer, now: Moment) {
        let mut known = self.known.borrow_mut();
        if known.len() >= MOST_KNOWN {
            known.retain(|_, known| self.is_fresh(known, now));
        }
        if known.len() >= MOST_KNOWN {
            // Many names in a short time are somebody's guesses.
            known.clear();
        }
        let answer = answer.clone();
        known.insert(user.to_owned(), Known { at: now, answer });
    }
}

impl Pools {
    /// What PostgreSQL knows of `user`, as far as the configuration wants it asked.
    ///
    /// # Errors
    /// The question failed. Why stands in the log, and isn't for everybody who knocks.
    pub async fn look_up(&self, user: &str) -> Result<Option<Secret>, ClientError> {
        let Some(lookup) = self.lookup() else {
            return Ok(None);
        };
        if user.len() > LONGEST_NAME {
            return Ok(None);
        }
        let answer = match lookup.fresh(user, self.now()) {
            Some(answer) => answer,
            None => self.ask(lookup, user).await,
        };
        answer.map_err(|Failed| {
            let text =
                format!("pgvalet could not ask PostgreSQL for the password of user \"{user}\"");
            ClientError::new(Fault::Proxy, "58000", text).hint("pgvalet's log says why.")
        })
    }

    /// A wrong password casts doubt on an answer that isn't new: the next login asks again.
    pub fn doubt(&self, user: &str) {
        let Some(lookup) = self.lookup() else {
            return;
        };
        let now = self.now();
        let mut known = lookup.known.borrow_mut();
        if known
            .get(user)
            .is_some_and(|known| now.since(known.at) >= AT_LEAST)
        {
            known.remove(user);
        }
    }

    async fn ask(&self, lookup: &Lookup, user: &str) -> Answer {
        let work = self.ask_in_turn(lookup, user);
        let asked = if lookup.limit.is_zero() {
            work.await
        } else {
            let asked = timers::timeout(lookup.limit, work).await;
            asked.unwrap_or_else(|_| Err("no answer within connect_timeout".to_owned()))
        };
        let answer = asked.map_err(|why| {
            tracing::warn!(?user, "auth_query failed: {why}");
            Failed
        });
        lookup.keep(user, &answer, self.now());
        answer
    }

    /// Asks with the one backend, when it is this login's turn.
    async fn ask_in_turn(&self, lookup: &Lookup, user: &str) -> Result<Option<Secret>, String> {
        let (state, told) = (Rc::default(), Rc::default());
        let request = Request {
            session: SessionId::new(0),
            baseline: &lookup.baseline,
            state: &state,
            told: &told,
            elsewhere: false,
            now: self.now(),
        };
        let grant = match lookup.pool.try_acquire(request) {
            Some(grant) => grant,
            None => lookup.pool.wait(request.session, request.now).await,
        };
        let (mut lent, fresh) = match grant {
            Grant::Lent(lent) => (lent, false),
            Grant::Open(permit) => (self.open_for(lookup, permit).await?, true),
        };
        // Somebody else may have asked the same meanwhile.
        if let Some(Ok(answer)) = lookup.fresh(user, self.now()) {
            lookup.pool.give_back(lent, self.now());
            return Ok(answer);
        }
        let mut answered = ask_with(&mut lent, &lookup.query, user).await;
        if answered.is_none() && !fresh {
            // PostgreSQL may have been restarted since.
            lent = self.open_for(lookup, lent.permit).await?;
            answered = ask_with(&mut lent, &lookup.query, user).await;
        }
        let answer = answered.ok_or("the connection broke")?;
        lookup.pool.give_back(lent, self.now());
        answer
    }

    async fn open_for(
        &self,
        lookup: &Lookup,
        permit: crate::backend::Permit,
    ) -> Result<Lent, String> {
        let generation = Generation::default();
        let opened = self.open(
            &lookup.pool,
            permit,
            &lookup.baseline,
            "pgvalet auth_query",
            generation,
        );
        Box::pin(opened).await.map_err(|error| error.message)
    }
}

/// Puts the question. `None` where the backend is lost.
async fn ask_with(
    lent: &mut Lent,
    query: &str,
    user: &str,
) -> Option<Result<Option<Secret>, String>> {
    let mut request = Vec::new();
    write_statement(&mut request, query, Some(user));
    write_frame(&mut request, b'S', b"");
    let answers = lent.backend.exchange(&request, 1).await.ok()?;
    Some(match answers.error {
        Some(error) => Err(format!("{} ({})", error.message, error.code)),
        None => read(answers.rows, user),
    })
}

/// Reads the one row: the user's name, and the secret.
fn read(mut rows: Vec<Vec<Option<String>>>, user: &str) -> Result<Option<Secret>, String> {
    let Some(row) = rows.pop() else {
        return Ok(None);
    };
    if !rows.is_empty() {
        return Err("it gave several rows; one is allowed".to_owned());
    }
    match <[_; 2]>::try_from(row) {
        Ok([Some(name), _]) if name != user => Err("it gave another user's row".to_owned()),
        Ok([Some(_), Some(secret)]) if !secret.is_empty() => {
            Ok(Some(Secret::read(&SecretString::from(secret))))
        }
        Ok([Some(_), _]) => Ok(None),
        Ok([None, _]) | Err(_) => {
            Err("a row has to have two columns, the user's name and the secret".to_owned())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(columns: &[Option<&str>]) -> Vec<Option<String>> {
        columns.iter().map(|text| text.map(str::to_owned)).collect()
    }

    #[test]
    fn one_row_of_the_user_itself_is_an_answer() {
        let read = |rows: &[&[Option<&str>]]| {
            let rows = rows.iter().map(|columns| row(columns)).collect();
            read(rows, "app")
        };
        assert!(matches!(read(&[]), Ok(None)));
        assert!(matches!(read(&[&[Some("app"), None]]), Ok(None)));
        assert!(matches!(read(&[&[Some("app"), Some("")]]), Ok(None)));
        assert!(matches!(
            read(&[&[Some("app"), Some("x")]]),
            Ok(Some(Secret::Password(_)))
        ));
        assert!(read(&[&[Some("postgres"), Some("x")]]).is_err());
        assert!(read(&[&[None, Some("x")]]).is_err());
        assert!(read(&[&[Some("app")]]).is_err());
        assert!(read(&[&[Some("app"), Some("x")], &[Some("app"), Some("y")]]).is_err());
    }

    #[test]
    fn answers_grow_old_and_guesses_fill_no_memory() {
        let config = Config {
            auth_user: Some("asker".to_owned()),
            ..crate::config::Config::for_upstream(crate::config::Upstream {
                places: Vec::new(),
                target: crate::config::Target::Any,
                balance: crate::config::Balance::Disable,
                database: "shop".to_owned(),
                user: "app".to_owned(),
                password: None,
                tls: crate::config::UpstreamTls::default(),
            })
        };
        let lookup = Lookup::new(&config).unwrap();
        let now = Moment::default();
        lookup.keep("mallory", &Ok(None), now);
        lookup.keep("alice", &Err(Failed), now);
        let later = now.after(Duration::from_secs(2));
        assert!(matches!(lookup.fresh("mallory", later), Some(Ok(None))));
        assert!(
            lookup.fresh("alice", later).is_none(),
            "a failure is kept for a second"
        );
        assert!(
            lookup
                .fresh("mallory", now.after(Duration::from_secs(10)))
                .is_none()
        );
        for guess in 0..5000 {
            lookup.keep(&format!("guess{guess}"), &Ok(None), now);
        }
        assert!(lookup.known.borrow().len() <= MOST_KNOWN);
    }
}
