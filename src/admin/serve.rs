//! Owns the serving of HTTP on a bound listener: TCP, TLS over it, or unix. Whoever is slow or many is bounded.

use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, to_bytes};
use axum::extract::Request;
use axum::http::StatusCode;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use axum::{Extension, Router};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;

use super::access::Link;
use super::bodies::MAX_BODY;
use super::problem::Problem;
use crate::clock::timers;
use crate::config::Tcp;
use crate::drain::{Phase, Shutdown};
use crate::net::listen::{Bound, HttpListener, HttpStream};
use crate::net::tls::{ClientTls, Handshakes};

/// How long to pause after an accept that failed: out of file descriptors must not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How many connections a listener serves at once; more wait to be accepted.
const MAX_CONNECTIONS: usize = 256;
/// How long a request's head may take to come, and a connection may idle between two.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a request's body may take to come.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a TLS handshake may take.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// How large a request's head may be, in bytes.
const MAX_HEAD: usize = 32 << 10;

/// What connections to the two HTTP listeners are like: a silent peer may leave an answer unacknowledged for so long.
pub const TCP: Tcp = Tcp {
    user_timeout: Duration::from_secs(30),
    ..Tcp::USUAL
};

/// How callers on TCP encrypt, where they do.
pub type Encryption = Option<(ClientTls, Handshakes)>;

/// Serves `router` until pgvalet ends.
///
/// # Errors
/// The runtime refused the listener.
pub async fn serve(
    bound: Bound,
    router: Router,
    encryption: Encryption,
    mut shutdown: Shutdown,
) -> std::io::Result<()> {
    let listener = HttpListener::new(bound)?;
    tokio::select! {
        () = accept(&listener, &router, &encryption) => {}
        () = shutdown.reached(Phase::Ending) => {}
    }
    Ok(())
}

/// Takes connections in. Dropped, it drops them all.
async fn accept(listener: &HttpListener, router: &Router, encryption: &Encryption) {
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut connections = JoinSet::new();
    loop {
        // The semaphore is never closed.
        let Ok(place) = places.clone().acquire_owned().await else {
            return;
        };
        match listener.accept().await {
            Ok(stream) => {
                while connections.try_join_next().is_some() {}
                connections.spawn(converse(stream, router.clone(), encryption.clone(), place));
            }
            Err(error) => {
                tracing::warn!("accept on the admin listener: {error}");
                timers::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// What a conversation goes over.
trait Wire: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Wire for T {}

/// Serves one connection to its end.
async fn converse(
    stream: HttpStream,
    router: Router,
    encryption: Encryption,
    _place: OwnedSemaphorePermit,
) {
    let (wire, link): (Box<dyn Wire>, _) = match (stream, encryption) {
        (HttpStream::Tcp(stream, address), Some((tls, handshakes))) => {
            let shaking = tls.accept_there(&handshakes, stream);
            match timers::timeout(HANDSHAKE_TIMEOUT, shaking).await {
                Ok(Ok(stream)) => {
                    let shown = stream.get_ref().1.peer_certificates();
                    let certificate = shown.and_then(|chain| chain.first().cloned());
                    (Box::new(stream), Link::Tcp(certificate))
                }
                Ok(Err(error)) => {
                    return tracing::info!(%address, "a TLS handshake on the admin listener failed: {error}");
                }
                Err(_) => return,
            }
        }
        (HttpStream::Tcp(stream, _), None) => (Box::new(stream), Link::Tcp(None)),
        (HttpStream::Unix(stream), _) => (Box::new(stream), Link::Unix),
    };
    let service = TowerToHyperService::new(router.layer(Extension(link)));
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(MAX_HEAD)
        .serve_connection(TokioIo::new(wire), service);
    if let Err(error) = connection.await {
        tracing::debug!("a connection to the admin listener ended: {error}");
    }
}

/// Reads the whole body before anybody looks at the request: it is bounded in size and in time.
pub(super) async fn bounded(request: Request, next: Next) -> Response {
    let (head, body) = request.into_parts();
    let problem = match timers::timeout(BODY_TIMEOUT, to_bytes(body, MAX_BODY)).await {
        Ok(Ok(body)) => return next.run(Request::from_parts(head, Body::from(body))).await,
        Ok(Err(error)) if is_too_long(&error) => Problem::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            format!("the body is longer than {} MiB", MAX_BODY >> 20),
        ),
        Ok(Err(_)) => Problem::new(StatusCode::BAD_REQUEST, "the body can't be read"),
        Err(_) => Problem::new(
            StatusCode::REQUEST_TIMEOUT,
            "the body took too long to come",
        ),
    };
    problem.into_response()
}

fn is_too_long(error: &axum::Error) -> bool {
    let mut source: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = source {
        if error.is::<http_body_util::LengthLimitError>() {
            return true;
        }
        source = error.source();
    }
    false
}
