//! Two hundred sessions of as many tenants over five backends, in transaction mode, while clients, backends and statements
//! are killed: nobody sees a row, a role, a schema or a statement of anybody else. `PGVALET_TEST_ROUNDS=5000` goes on for long.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use tokio::task::LocalSet;
use tokio_postgres::{CancelToken, Client, Error, NoTls, SimpleQueryMessage, Statement};

use crate::support::{Postgres, Valet};

const TENANTS: usize = 200;

const SCHEMA: &str = "
    CREATE ROLE app LOGIN;
    CREATE TABLE rows (tenant text, n int); ALTER TABLE rows ENABLE ROW LEVEL SECURITY; GRANT ALL ON rows TO PUBLIC;
    CREATE POLICY own ON rows USING (tenant = current_setting('app.tenant', true));
    INSERT INTO rows SELECT t::text, n FROM generate_series(0, 199) t, generate_series(1, 3) n;
    CREATE TABLE logins (tenant text); GRANT ALL ON logins TO PUBLIC;
    CREATE FUNCTION log_in() RETURNS trigger LANGUAGE plpgsql AS
      $$ BEGIN PERFORM set_config('app.tenant', NEW.tenant, false); RETURN NEW; END $$;
    CREATE TRIGGER t BEFORE INSERT ON logins FOR EACH ROW EXECUTE FUNCTION log_in();
    DO $$ BEGIN FOR i IN 0..4 LOOP
      EXECUTE format('CREATE ROLE r%s; GRANT r%s TO app; CREATE SCHEMA s%s; CREATE TABLE s%s.place AS SELECT %L AS name', i, i, i, i, 's' || i);
      EXECUTE format('GRANT USAGE ON SCHEMA s%s TO PUBLIC; GRANT SELECT ON s%s.place TO PUBLIC', i, i);
    END LOOP; END $$";

/// What goes wrong on purpose: PostgreSQL shuts the backend down, a cancel arrives, the connection is cut.
fn is_sabotage(error: &Error) -> bool {
    match error.code() {
        Some(code) => ["57P01", "57014", "08006", "53300", "25P02"].contains(&code.code()),
        None => true,
    }
}

/// A session of one tenant, set up in its own way.
struct Tenant {
    number: usize,
    client: Client,
    mine: Statement,
}

impl Tenant {
    async fn log_in(url: &str, number: usize, round: usize) -> Result<Self, Error> {
        let (client, connection) = tokio_postgres::connect(url, NoTls).await?;
        tokio::task::spawn_local(connection);
        let log_in = match round % 3 {
            0 => format!("SET app.tenant = '{number}'"),
            1 => format!("SELECT set_config('app.tenant', '{number}', false)"),
            _ => format!("INSERT INTO logins VALUES ('{number}')"),
        };
        client.batch_execute(&log_in).await?;
        let (role, schema) = (number % 5, number % 5);
        client
            .batch_execute(&format!("SET search_path = s{schema}, public"))
            .await?;
        client
            .batch_execute(&format!("PREPARE mine AS SELECT {number}, name FROM place"))
            .await?;
        client.batch_execute(&format!("SET ROLE r{role}")).await?;
        let text =
            format!("SELECT '{number}:' || $1::text || ':' || tenant FROM public.rows LIMIT 1");
        let mine = client.prepare(&text).await?;
        Ok(Self {
            number,
            client,
            mine,
        })
    }

    /// The first row of a simple query.
    async fn row(&self, sql: &str) -> Result<Vec<String>, Error> {
        let rows = self.client.simple_query(sql).await?;
        let row = rows.iter().find_map(|message| match message {
            SimpleQueryMessage::Row(row) => Some(row),
            _ => None,
        });
        let row = row.expect("a row");
        Ok((0..row.len())
            .map(|at| row.get(at).unwrap_or_default().to_owned())
            .collect())
    }

    /// Looks at everything that could be another's.
    async fn work(&self, round: usize) -> Result<(), Error> {
        let own = self.number.to_string();
        let place = format!("s{}", self.number % 5);
        match (self.number + round) % 6 {
            0 => {
                let seen = self
                    .row("SELECT string_agg(DISTINCT tenant, ',') FROM public.rows")
                    .await?;
                assert_eq!(seen, [own]);
            }
            1 => assert_eq!(self.row("EXECUTE mine").await?, [own, place]),
            2 => {
                let row = self.client.query_one(&self.mine, &[&"bound"]).await?;
                assert_eq!(row.get::<_, String>(0), format!("{own}:bound:{own}"));
            }
            3 => {
                let who =
                    "SELECT current_user, current_setting('app.tenant'), (SELECT name FROM place)";
                let role = format!("r{}", self.number % 5);
                assert_eq!(self.row(who).await?, [role, own, place]);
            }
            4 => {
                self.client.batch_execute("BEGIN").await?;
                let insert = "INSERT INTO public.rows VALUES (current_setting('app.tenant'), 7) RETURNING tenant";
                assert_eq!(self.row(insert).await?, [own]);
                self.client.batch_execute("ROLLBACK").await?;
            }
            _ => {
                let row = self
                    .client
                    .query_one("SELECT tenant, count(*) FROM public.rows GROUP BY 1", &[])
                    .await?;
                assert_eq!(row.get::<_, String>(0), own);
            }
        }
        Ok(())
    }
}

/// One tenant, from login to login, for so many rounds.
async fn live(
    url: Rc<str>,
    number: usize,
    rounds: usize,
    tokens: Rc<RefCell<Vec<CancelToken>>>,
) -> usize {
    let mut done = 0;
    let mut round = 0;
    while round < rounds {
        let tenant = match Tenant::log_in(&url, number, round).await {
            Ok(tenant) => tenant,
            Err(error) if is_sabotage(&error) => continue,
            Err(error) => panic!("tenant {number} can't log in: {error:?}"),
        };
        let token = tenant.client.cancel_token();
        {
            let mut tokens = tokens.borrow_mut();
            let at = number.min(tokens.len());
            if at < tokens.len() {
                tokens[at] = token;
            } else {
                tokens.push(token);
            }
        }
        // Some clients go away by themselves, without a word.
        while round < rounds && (round + number) % 11 != 10 {
            round += 1;
            match tenant.work(round).await {
                Ok(()) => done += 1,
                Err(error) if is_sabotage(&error) => {
                    if tenant.client.is_closed()
                        || tenant.client.batch_execute("ROLLBACK").await.is_err()
                    {
                        break;
                    }
                }
                Err(error) => panic!("tenant {number}: {error:?}"),
            }
        }
        round += 1;
    }
    done
}

/// Kills a backend and cancels somebody's statement, again and again.
async fn sabotage(postgres: &str, tokens: &RefCell<Vec<CancelToken>>, over: &Cell<bool>) -> usize {
    let (boss, connection) = tokio_postgres::connect(postgres, NoTls)
        .await
        .expect("a superuser");
    tokio::task::spawn_local(connection);
    let mut deeds = 0;
    while !over.get() {
        deeds += 1;
        let kill = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'app' ORDER BY random() LIMIT 1";
        if deeds % 8 == 0 {
            boss.batch_execute(kill)
                .await
                .expect("a backend can be killed");
        }
        let token = {
            let tokens = tokens.borrow();
            tokens
                .get(deeds * 31 % TENANTS.min(tokens.len().max(1)))
                .cloned()
        };
        if let Some(token) = token {
            // The session may have gone.
            let _ = token.cancel_query(NoTls).await;
        }
        boss.batch_execute("SELECT pg_sleep(0.02)")
            .await
            .expect("a pause");
    }
    deeds
}

#[tokio::test]
async fn nobody_sees_anything_of_another_tenant() {
    if crate::support::no_valet() {
        return;
    }
    let rounds = std::env::var("PGVALET_TEST_ROUNDS")
        .ok()
        .and_then(|rounds| rounds.parse().ok());
    let rounds = rounds.unwrap_or(8);
    let postgres = Postgres::start();
    postgres.sql(SCHEMA);
    let valet = Valet::front_with(
        &postgres,
        &[
            "--max-backends",
            "5",
            "--mode",
            "transaction",
            "--acquire-timeout",
            "25s",
        ],
    );
    let url: Rc<str> = valet.url("app", "postgres").into();
    let tokens: Rc<RefCell<Vec<CancelToken>>> = Rc::default();
    let over = Rc::new(Cell::new(false));
    let done = LocalSet::new()
        .run_until(async {
            let saboteur = {
                let (url, tokens, over) = (
                    postgres.url("postgres", "postgres"),
                    tokens.clone(),
                    over.clone(),
                );
                tokio::task::spawn_local(async move { sabotage(&url, &tokens, &over).await })
            };
            let lives: Vec<_> = (0..TENANTS)
                .map(|number| {
                    tokio::task::spawn_local(live(url.clone(), number, rounds, tokens.clone()))
                })
                .collect();
            let mut done = 0;
            for life in lives {
                done += life.await.expect("no tenant saw another's");
            }
            over.set(true);
            assert!(saboteur.await.expect("a saboteur") > 0);
            done
        })
        .await;
    assert!(
        done > TENANTS * rounds / 4,
        "only {done} looks of {TENANTS} tenants"
    );
}
