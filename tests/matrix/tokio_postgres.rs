//! tokio-postgres: what it sees and is told, a line each, is the same in each mode.

use std::fmt::Debug;
use std::future::poll_fn;
use std::pin::pin;

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt, TryStreamExt};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio_postgres::{AsyncMessage, Client, Error, IsolationLevel, SimpleQueryMessage};

use crate::certificates::{Authority, KeyKind};
use crate::encrypted::Rustls;
use crate::support::{Auth, Postgres, Valet, no_valet};
use crate::{MODES, says_the_same_in_each_mode};

#[test]
fn tokio_postgres_sees_the_same_in_each_mode() {
    let postgres = Postgres::start();
    let authority = Authority::new("root");
    let tls = Rustls::trusting(&authority.root());
    says_the_same_in_each_mode(&postgres, |port| said(&postgres, port, "disable", &tls));
}

#[test]
fn tokio_postgres_sees_the_same_encrypted_in_each_mode() {
    if no_valet() {
        return;
    }
    let postgres = Postgres::start();
    let authority = Authority::new("root");
    let pair = authority.issue("server", "localhost", KeyKind::Ec);
    let tls = Rustls::trusting(&authority.root());
    let straight = said(&postgres, postgres.port(), "disable", &tls);
    for flags in MODES {
        let flags = [&pair.flags("require"), flags].concat();
        let valet = Valet::front_with(&postgres, &flags);
        let encrypted = said(&postgres, valet.port(), "require", &tls);
        assert_eq!(encrypted, straight, "{flags:?}");
    }
}

#[test]
fn tokio_postgres_binds_its_login_to_the_encryption() {
    if no_valet() {
        return;
    }
    let postgres = Postgres::start_with(Auth::Scram, &[]);
    let authority = Authority::new("root");
    let pair = authority.issue("server", "localhost", KeyKind::Rsa);
    let url = postgres.url("postgres:postgres", "postgres");
    let flags = [&["--upstream", &url][..], &pair.flags("require")].concat();
    let valet = Valet::serve(&flags).unwrap_or_else(|exit| panic!("{}", exit.log));
    let tls = Rustls::trusting(&authority.root());
    let config = format!(
        "host=localhost hostaddr=127.0.0.1 port={} user=postgres password=postgres \
         sslmode=require channel_binding=require",
        valet.port()
    );
    runtime().block_on(async {
        let (client, connection) = tokio_postgres::connect(&config, tls)
            .await
            .expect("a login");
        tokio::spawn(connection);
        let row = client.query_one("SELECT 1", &[]).await.expect("a row");
        assert_eq!(row.get::<_, i32>(0), 1);
    });
}

fn runtime() -> tokio::runtime::Runtime {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder.enable_all().build().expect("a runtime")
}

fn said(postgres: &Postgres, port: u16, sslmode: &str, tls: &Rustls) -> Vec<String> {
    postgres.sql("DROP SCHEMA public CASCADE; CREATE SCHEMA public");
    let said = runtime().block_on(all(port, sslmode, tls));
    assert!(said.len() > 25, "{said:?}");
    said
}

/// A client, what reaches it asynchronously, and what it has said.
struct Talk {
    client: Client,
    tls: Rustls,
    messages: UnboundedReceiver<AsyncMessage>,
    said: Vec<String>,
}

impl Talk {
    async fn begin(port: u16, sslmode: &str, tls: &Rustls) -> Result<Self, Error> {
        let config = format!(
            "host=localhost hostaddr=127.0.0.1 port={port} user=postgres dbname=postgres \
             application_name=matrix sslmode={sslmode}"
        );
        let (client, mut connection) = tokio_postgres::connect(&config, tls.clone()).await?;
        let (sender, messages) = unbounded_channel();
        tokio::spawn(async move {
            while let Some(Ok(message)) = poll_fn(|context| connection.poll_message(context)).await
            {
                // Nobody listens any more at the end.
                let _ = sender.send(message);
            }
        });
        let said = Vec::new();
        Ok(Self {
            client,
            tls: tls.clone(),
            messages,
            said,
        })
    }

    fn say(&mut self, what: &str, value: impl Debug) {
        self.said.push(format!("{what}: {value:?}"));
    }

    fn refused<T>(&mut self, what: &str, outcome: Result<T, Error>) {
        let error = outcome.err().expect(what);
        let told = error.as_db_error().map(|told| {
            let place = (told.severity(), told.code(), told.position());
            format!(
                "{place:?} {} {:?} {:?}",
                told.message(),
                told.detail(),
                told.hint()
            )
        });
        self.say(what, told.unwrap_or_else(|| error.to_string()));
    }
}

async fn all(port: u16, sslmode: &str, tls: &Rustls) -> Vec<String> {
    let mut said = Vec::new();
    for number in 0..6 {
        let mut talk = Talk::begin(port, sslmode, tls).await.expect("a connection");
        let done = match number {
            0 => statements(&mut talk).await,
            1 => transactions(&mut talk).await,
            2 => copies(&mut talk).await,
            3 => pipelines(&mut talk).await,
            4 => cancels(&mut talk).await,
            _ => settings_and_news(&mut talk).await,
        };
        done.unwrap_or_else(|error| panic!("{number}: {error}, after {:?}", talk.said));
        said.append(&mut talk.said);
    }
    said
}

async fn statements(talk: &mut Talk) -> Result<(), Error> {
    talk.client
        .batch_execute("CREATE TYPE mood AS ENUM ('sad', 'happy')")
        .await?;
    let text =
        "SELECT $1::int8 + 1, $2::text, 'happy'::mood::text, $3::float8, $4::bytea, $5::int4[]";
    let statement = talk.client.prepare(text).await?;
    talk.say("parameters", statement.params());
    let columns: Vec<_> = statement
        .columns()
        .iter()
        .map(|column| (column.name(), column.type_()))
        .collect();
    let columns = format!("{columns:?}");
    talk.say("columns", columns);
    for n in 0..20_i64 {
        let row = talk
            .client
            .query_one(
                &statement,
                &[&n, &"Ünï", &0.5_f64, &&b"\0\xff"[..], &vec![1, 2]],
            )
            .await?;
        let values: (i64, String, String, f64, Vec<u8>, Vec<i32>) = (
            row.get(0),
            row.get(1),
            row.get(2),
            row.get(3),
            row.get(4),
            row.get(5),
        );
        talk.say("row", values);
    }
    let wrong = talk.client.prepare("SELECT nothing FROM nowhere").await;
    talk.refused("no table", wrong);
    let typed = talk
        .client
        .query_typed("SELECT $1", &[(&7_i32, tokio_postgres::types::Type::INT4)])
        .await?;
    talk.say("typed", typed[0].get::<_, i32>(0));
    let simple = talk
        .client
        .simple_query("SELECT 1 AS one; SELECT 'a' WHERE false; CREATE TABLE s ()")
        .await?;
    let simple: Vec<String> = simple
        .iter()
        .map(|message| match message {
            SimpleQueryMessage::Row(row) => format!("{:?}", row.get(0)),
            SimpleQueryMessage::CommandComplete(count) => count.to_string(),
            other => format!("{other:?}").chars().take(14).collect(),
        })
        .collect();
    talk.say("simple", simple);
    Ok(())
}

async fn transactions(talk: &mut Talk) -> Result<(), Error> {
    talk.client
        .batch_execute("CREATE TABLE t (a int UNIQUE)")
        .await?;
    let mut begun = talk
        .client
        .build_transaction()
        .isolation_level(IsolationLevel::Serializable)
        .start()
        .await?;
    begun.execute("INSERT INTO t VALUES ($1)", &[&1]).await?;
    let inner = begun.savepoint("step").await?;
    let twice = inner.execute("INSERT INTO t VALUES ($1)", &[&1]).await;
    let failed = inner.query("SELECT 1", &[]).await;
    inner.rollback().await?;
    let portal = begun.bind("SELECT generate_series(1, 25)", &[]).await?;
    let mut sizes = Vec::new();
    for _ in 0..3 {
        sizes.push(begun.query_portal(&portal, 10).await?.len());
    }
    begun.commit().await?;
    talk.refused("twice", twice);
    talk.refused("in a failed one", failed);
    talk.say("in parts", sizes);
    drop(talk.client.transaction().await?);
    let count: i64 = talk
        .client
        .query_one("SELECT count(*) FROM t", &[])
        .await?
        .get(0);
    talk.say("count", count);
    Ok(())
}

async fn copies(talk: &mut Talk) -> Result<(), Error> {
    talk.client.batch_execute("CREATE TABLE c (a int)").await?;
    let mut sink = pin!(talk.client.copy_in("COPY c FROM stdin").await?);
    for n in 0..1000 {
        sink.send(Bytes::from(format!("{n}\n"))).await?;
    }
    let count = sink.finish().await?;
    talk.say("copied", count);
    let mut sink = pin!(talk.client.copy_in("COPY c FROM stdin").await?);
    sink.send(Bytes::from_static(b"no number\n")).await?;
    let refused = sink.finish().await;
    talk.refused("no number", refused);
    // Given up.
    drop(talk.client.copy_in::<_, Bytes>("COPY c FROM stdin").await?);
    let out = talk
        .client
        .copy_out("COPY (SELECT a FROM c ORDER BY a) TO stdout")
        .await?;
    let out: Vec<Bytes> = out.try_collect().await?;
    talk.say("copied out", (out.concat().len(), out.len()));
    Ok(())
}

async fn pipelines(talk: &mut Talk) -> Result<(), Error> {
    let client = &talk.client;
    let requests = (0..50_i32).map(|n| async move {
        let row = client.query_one("SELECT 100 / ($1::int4 % 7)", &[&n]).await;
        row.map(|row| row.get::<_, i32>(0))
            .map_err(|error| error.code().cloned())
    });
    let answers: Vec<_> = futures_util::stream::iter(requests)
        .buffered(50)
        .collect()
        .await;
    talk.say("pipelined", answers);
    Ok(())
}

async fn cancels(talk: &mut Talk) -> Result<(), Error> {
    let slept = {
        let token = talk.client.cancel_token();
        let mut sleeping = pin!(talk.client.simple_query("SELECT pg_sleep(600)"));
        // One that comes before PostgreSQL runs the query hits nothing: it is repeated.
        loop {
            tokio::select! {
                slept = &mut sleeping => break slept,
                sent = token.cancel_query(talk.tls.clone()) => sent?,
            }
        }
    };
    talk.refused("cancelled", slept);
    let one: i32 = loop {
        // A cancel may have come late.
        if let Ok(row) = talk.client.query_one("SELECT 1", &[]).await {
            break row.get(0);
        }
    };
    talk.say("goes on", one);
    Ok(())
}

async fn settings_and_news(talk: &mut Talk) -> Result<(), Error> {
    let asked = "SELECT current_setting('application_name'), current_setting('TimeZone'), current_setting('app.tenant', true)";
    for sql in [
        "",
        "SET TimeZone = 'Asia/Tokyo'; SET app.tenant = 'acme'",
        "RESET ALL",
    ] {
        talk.client.batch_execute(sql).await?;
        let row = talk.client.query_one(asked, &[]).await?;
        let values: (String, String, Option<String>) = (row.get(0), row.get(1), row.get(2));
        talk.say("settings", values);
    }
    let news = "LISTEN news; DO $$ BEGIN RAISE NOTICE 'hello'; END $$; NOTIFY news, 'first'";
    talk.client.batch_execute(news).await?;
    for _ in 0..2 {
        match talk.messages.recv().await {
            Some(AsyncMessage::Notice(notice)) => talk.say("notice", notice.message().to_owned()),
            Some(AsyncMessage::Notification(news)) => {
                talk.say(
                    "news",
                    (news.channel().to_owned(), news.payload().to_owned()),
                );
            }
            other => panic!("neither notice nor news: {other:?}"),
        }
    }
    Ok(())
}
