//! tokio-postgres: pipelining by itself, typed and prepared; portals, COPY, cancellation, notices and notifications.

use std::future::poll_fn;
use std::pin::pin;

use bytes::Bytes;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio_postgres::error::SqlState;
use tokio_postgres::{AsyncMessage, Client, NoTls};

use crate::programs::stage;
use crate::support::Valet;

/// A client, with what reaches it asynchronously.
async fn connect(valet: &Valet) -> (Client, UnboundedReceiver<AsyncMessage>) {
    let (client, mut connection) =
        tokio_postgres::connect(&valet.url("postgres", "postgres"), NoTls)
            .await
            .expect("a connection");
    let (sender, messages) = unbounded_channel();
    tokio::spawn(async move {
        while let Some(Ok(message)) = poll_fn(|context| connection.poll_message(context)).await {
            let _ = sender.send(message);
        }
    });
    (client, messages)
}

#[tokio::test]
async fn typed_and_prepared_queries() {
    let (_postgres, valet) = stage();
    let (client, _messages) = connect(&valet).await;
    client
        .batch_execute("CREATE TYPE mood AS ENUM ('sad', 'happy')")
        .await
        .expect("a type");
    let statement = client
        .prepare("SELECT $1::int8 + 1, $2::text, 'happy'::mood")
        .await
        .expect("a statement");
    for n in 0..50i64 {
        let row = client
            .query_one(&statement, &[&n, &"text"])
            .await
            .expect("a row");
        assert_eq!(
            (row.get::<_, i64>(0), row.get::<_, &str>(1)),
            (n + 1, "text")
        );
    }
}

#[tokio::test]
async fn concurrent_requests_share_the_connection_in_order() {
    let (_postgres, valet) = stage();
    let (client, _messages) = connect(&valet).await;
    let client = std::sync::Arc::new(client);
    let mut tasks = tokio::task::JoinSet::new();
    for n in 0..200i32 {
        let client = std::sync::Arc::clone(&client);
        tasks.spawn(async move {
            (
                n,
                client
                    .query_one("SELECT $1::int4", &[&n])
                    .await
                    .map(|row| row.get::<_, i32>(0)),
            )
        });
    }
    while let Some(done) = tasks.join_next().await {
        let (n, answer) = done.expect("a task ends");
        assert_eq!(answer.expect("an answer"), n);
    }
}

#[tokio::test]
async fn a_portal_is_read_in_parts() {
    let (_postgres, valet) = stage();
    let (mut client, _messages) = connect(&valet).await;
    let transaction = client.transaction().await.expect("a transaction");
    let portal = transaction
        .bind("SELECT generate_series(1, 25)", &[])
        .await
        .expect("a portal");
    let mut sizes = Vec::new();
    for _ in 0..3 {
        sizes.push(
            transaction
                .query_portal(&portal, 10)
                .await
                .expect("rows")
                .len(),
        );
    }
    transaction.commit().await.expect("a commit");
    assert_eq!(sizes, [10, 10, 5]);
}

#[tokio::test]
async fn copy_in_and_out() {
    use futures_util::{SinkExt, TryStreamExt};
    let (_postgres, valet) = stage();
    let (client, _messages) = connect(&valet).await;
    client
        .batch_execute("CREATE TABLE t (a int)")
        .await
        .expect("a table");
    let mut sink = pin!(client.copy_in("COPY t FROM stdin").await.expect("a copy"));
    for n in 0..1000 {
        sink.send(Bytes::from(format!("{n}\n")))
            .await
            .expect("a row");
    }
    assert_eq!(sink.finish().await.expect("the copy ends"), 1000);
    let stream = client
        .copy_out("COPY (SELECT a FROM t ORDER BY a) TO stdout")
        .await
        .expect("a copy");
    let chunks: Vec<Bytes> = stream.try_collect().await.expect("all rows");
    assert_eq!(
        chunks.concat(),
        (0..1000)
            .map(|n| format!("{n}\n"))
            .collect::<String>()
            .into_bytes()
    );
}

#[tokio::test]
async fn a_cancel_reaches_its_own_query_and_the_session_goes_on() {
    let (postgres, valet) = stage();
    let (client, _messages) = connect(&valet).await;
    let token = client.cancel_token();
    let sleeping = client.simple_query("SELECT pg_sleep(600)");
    let cancelling = async {
        let active = "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND query LIKE 'SELECT pg_sleep%'";
        while postgres.sql(active) != "1" {
            tokio::task::yield_now().await;
        }
        token.cancel_query(NoTls).await
    };
    let (slept, cancelled) = tokio::join!(sleeping, cancelling);
    cancelled.expect("the cancel is accepted");
    assert_eq!(
        slept.expect_err("it was cancelled").code(),
        Some(&SqlState::QUERY_CANCELED)
    );
    assert_eq!(
        client
            .query_one("SELECT 1", &[])
            .await
            .expect("a row")
            .get::<_, i32>(0),
        1
    );
}

#[tokio::test]
async fn notices_and_notifications_arrive() {
    let (_postgres, valet) = stage();
    let (listener, mut messages) = connect(&valet).await;
    let (notifier, _) = connect(&valet).await;
    listener
        .batch_execute("LISTEN news; DO $$ BEGIN RAISE NOTICE 'hello'; END $$")
        .await
        .expect("it listens");
    notifier
        .batch_execute("NOTIFY news, 'first'")
        .await
        .expect("it notifies");
    match messages.recv().await {
        Some(AsyncMessage::Notice(notice)) => assert_eq!(notice.message(), "hello"),
        other => panic!("not a notice: {other:?}"),
    }
    match messages.recv().await {
        Some(AsyncMessage::Notification(news)) => {
            assert_eq!((news.channel(), news.payload()), ("news", "first"))
        }
        other => panic!("not a notification: {other:?}"),
    }
}

#[tokio::test]
async fn a_dropped_transaction_rolls_back() {
    let (postgres, valet) = stage();
    postgres.sql("CREATE TABLE t (a int)");
    let (mut client, _messages) = connect(&valet).await;
    let transaction = client.transaction().await.expect("a transaction");
    transaction
        .execute("INSERT INTO t VALUES (1)", &[])
        .await
        .expect("an insert");
    drop(transaction);
    assert_eq!(
        client
            .query_one("SELECT count(*) FROM t", &[])
            .await
            .expect("a row")
            .get::<_, i64>(0),
        0
    );
}
