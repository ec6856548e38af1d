//! Owns the answers to a guest, by pgwire's handlers: both protocols end in the same commands.

use std::fmt::Debug;
use std::sync::Arc;

use async_trait::async_trait;
use futures_util::{Sink, SinkExt, stream};
use pgwire::api::portal::{Format, Portal};
use pgwire::api::query::{ExtendedQueryHandler, SimpleQueryHandler};
use pgwire::api::results::{FieldInfo, QueryResponse, Response, Tag};
use pgwire::api::stmt::QueryParser;
use pgwire::api::store::PortalStore;
use pgwire::api::{ClientInfo, ClientPortalStore, Type};
use pgwire::error::{ErrorInfo, PgWireError, PgWireResult};
use pgwire::messages::PgWireBackendMessage;
use pgwire::messages::response::NoticeResponse;

use super::command::{Command, Order, read_all};
use super::shows::{self, HELP};
use super::stats::Averages;
use super::table::{self, Column, Kind, Row, row};
use super::{RESEMBLES, orders};
use crate::admin::Desk;
use crate::session::Rank;
use crate::wire::reply::{ClientError, Fault};

/// Answers one guest.
#[derive(Debug)]
pub(super) struct Handler {
    pub desk: Desk,
    pub averages: Arc<Averages>,
    rank: Rank,
    parser: Arc<Parser>,
}

/// Makes commands of texts.
#[derive(Debug)]
pub(super) struct Parser;

/// An error as pgwire passes it on.
pub(super) fn error(error: &ClientError) -> PgWireError {
    let mut info = ErrorInfo::new("ERROR".into(), error.code.clone(), error.message.clone());
    info.severity_nonlocalized = Some("ERROR".into());
    info.detail.clone_from(&error.detail);
    info.hint.clone_from(&error.hint);
    PgWireError::UserError(Box::new(info))
}

fn not_a_command(text: String) -> PgWireError {
    error(&ClientError::new(Fault::Client, "42601", text))
}

impl Handler {
    pub fn new(desk: &Desk, averages: Arc<Averages>, rank: Rank) -> Self {
        Self {
            desk: desk.clone(),
            averages,
            rank,
            parser: Arc::new(Parser),
        }
    }

    async fn answer<C>(
        &self,
        client: &mut C,
        command: &Command,
        formats: Option<&Format>,
    ) -> PgWireResult<Response>
    where
        C: Sink<PgWireBackendMessage> + Unpin + Send,
        PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
    {
        match command {
            Command::Show(show) => {
                let rows = shows::rows(self, *show).await;
                let rows = rows.map_err(|ended| error(&ended))?;
                Ok(respond(show.columns(), &rows, formats))
            }
            Command::Parameter(name, value) => {
                Ok(respond(&[(name, Kind::Text)], &[row![*value]], formats))
            }
            Command::Help => {
                let mut notice =
                    ErrorInfo::new("NOTICE".into(), "00000".into(), "Console usage".into());
                notice.detail = Some(HELP.to_owned());
                let notice = PgWireBackendMessage::NoticeResponse(NoticeResponse::from(notice));
                client.feed(notice).await?;
                Ok(Response::Execution(Tag::new("SHOW")))
            }
            Command::Order(order) => self.obey(order).await.map_err(|refused| error(&refused)),
            Command::Ignored(tag) => Ok(Response::Execution(Tag::new(tag))),
            Command::Begin => Ok(Response::TransactionStart(Tag::new("BEGIN"))),
            Command::End(tag) => Ok(Response::TransactionEnd(Tag::new(tag))),
        }
    }

    async fn obey(&self, order: &Order) -> Result<Response, ClientError> {
        if self.rank < Rank::Operator {
            let refused = ClientError::new(Fault::Client, "42501", "admin access needed");
            return Err(refused.hint("`admin_users` of pgvalet names who may change things."));
        }
        tracing::info!(?order, "an order on the console");
        orders::carry_out(&self.desk, order)
            .await
            .map(|tag| Response::Execution(Tag::new(tag)))
    }
}

/// Rows as pgwire sends them.
fn respond(columns: &[Column], rows: &[Row], formats: Option<&Format>) -> Response {
    let schema = Arc::new(table::describe(columns, formats));
    let encode = |row: &Row| Ok(table::encode(columns, row, formats));
    let rows: Vec<_> = rows.iter().map(encode).collect();
    let mut response = QueryResponse::new(schema, stream::iter(rows));
    response.set_command_tag("SHOW");
    Response::Query(response)
}

/// What a command's rows consist of; nothing, where it has none.
fn schema(command: &Command, formats: Option<&Format>) -> Vec<FieldInfo> {
    match command {
        Command::Show(show) => table::describe(show.columns(), formats),
        Command::Parameter(name, _) => table::describe(&[(name, Kind::Text)], formats),
        Command::Help
        | Command::Order(_)
        | Command::Ignored(_)
        | Command::Begin
        | Command::End(_) => Vec::new(),
    }
}

/// The version that programs read.
pub(super) fn version() -> String {
    format!(
        "pgvalet {} (resembles PgBouncer {RESEMBLES})",
        env!("CARGO_PKG_VERSION")
    )
}

#[async_trait]
impl SimpleQueryHandler for Handler {
    async fn do_query<C>(&self, client: &mut C, query: &str) -> PgWireResult<Vec<Response>>
    where
        C: ClientInfo + ClientPortalStore + Sink<PgWireBackendMessage> + Unpin + Send + Sync,
        C::PortalStore: PortalStore,
        C::Error: Debug,
        PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
    {
        let mut answers = Vec::new();
        for command in read_all(query).map_err(not_a_command)? {
            answers.push(self.answer(client, &command, None).await?);
        }
        Ok(answers)
    }
}

#[async_trait]
impl ExtendedQueryHandler for Handler {
    type Statement = Command;
    type QueryParser = Parser;

    fn query_parser(&self) -> Arc<Parser> {
        self.parser.clone()
    }

    async fn do_query<C>(
        &self,
        client: &mut C,
        portal: &Portal<Command>,
        _max_rows: usize,
    ) -> PgWireResult<Response>
    where
        C: ClientInfo + ClientPortalStore + Sink<PgWireBackendMessage> + Unpin + Send + Sync,
        C::PortalStore: PortalStore<Statement = Command>,
        C::Error: Debug,
        PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
    {
        let formats = Some(&portal.result_column_format);
        self.answer(client, &portal.statement.statement, formats)
            .await
    }
}

#[async_trait]
impl QueryParser for Parser {
    type Statement = Command;

    async fn parse_sql<C>(
        &self,
        _client: &C,
        sql: &str,
        _types: &[Option<Type>],
    ) -> PgWireResult<Option<Command>>
    where
        C: ClientInfo + Unpin + Send + Sync,
    {
        let mut commands = read_all(sql).map_err(not_a_command)?;
        if commands.len() > 1 {
            let text = "cannot insert multiple commands into a prepared statement";
            return Err(not_a_command(text.to_owned()));
        }
        Ok(commands.pop())
    }

    fn get_parameter_types(&self, _statement: &Command) -> PgWireResult<Vec<Type>> {
        Ok(Vec::new())
    }

    fn get_result_schema(
        &self,
        statement: &Command,
        format: Option<&Format>,
    ) -> PgWireResult<Vec<FieldInfo>> {
        Ok(schema(statement, format))
    }
}
