//! An admin API that gives every request the same answer, and remembers what it was asked.

use std::process::Output;
use std::sync::{Arc, Mutex, mpsc};
use std::thread::JoinHandle;

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use serde_json::Value;
use tokio::sync::oneshot;

type Asked = Arc<Mutex<Vec<String>>>;

/// Serves until it is dropped.
pub struct FakeAdmin {
    address: String,
    asked: Asked,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Clone)]
struct Script {
    status: StatusCode,
    content_type: &'static str,
    body: String,
    asked: Asked,
}

impl FakeAdmin {
    pub fn answering(body: Value) -> Self {
        Self::start(200, "application/json", body.to_string(), "127.0.0.1:0")
    }

    pub fn refusing(status: u16, problem: Value) -> Self {
        Self::start(
            status,
            "application/problem+json",
            problem.to_string(),
            "127.0.0.1:0",
        )
    }

    pub fn start(status: u16, content_type: &'static str, body: String, address: &str) -> Self {
        let asked = Asked::default();
        let status = StatusCode::from_u16(status).expect("a status");
        let script = Script {
            status,
            content_type,
            body,
            asked: asked.clone(),
        };
        let router = Router::new().fallback(answer).with_state(script);
        let (stop, stopped) = oneshot::channel();
        let (bound, address_bound) = mpsc::channel();
        let wanted = address.to_owned();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build();
            runtime.expect("a runtime").block_on(async {
                tokio::select! {
                    () = serve(&wanted, router, bound) => {}
                    _ = stopped => {}
                }
            });
        });
        let address = address_bound.recv().expect("it binds");
        Self {
            address,
            asked,
            stop: Some(stop),
            thread: Some(thread),
        }
    }

    /// Each request: method, path, body.
    pub fn asked(&self) -> Vec<String> {
        self.asked.lock().expect("the lock").clone()
    }

    /// Runs the program against it.
    pub fn run(&self, arguments: &[&str]) -> Output {
        super::pgvalet(arguments, &[("PGVALET_ADMIN_URL", &self.address)])
    }
}

impl Drop for FakeAdmin {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            thread.join().expect("the fake admin API didn't panic");
        }
    }
}

async fn answer(State(script): State<Script>, method: Method, uri: Uri, body: Bytes) -> Response {
    let body = String::from_utf8_lossy(&body);
    let asked = format!("{method} {uri} {body}").trim_end().to_owned();
    script.asked.lock().expect("the lock").push(asked);
    (
        script.status,
        [(header::CONTENT_TYPE, script.content_type)],
        script.body,
    )
        .into_response()
}

async fn serve(address: &str, router: Router, bound: mpsc::Sender<String>) {
    if let Some(path) = address.strip_prefix("unix:") {
        let listener = tokio::net::UnixListener::bind(path).expect("a socket");
        bound.send(address.to_owned()).expect("the test waits");
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(serve_one(stream, router.clone()));
        }
    } else {
        let listener = tokio::net::TcpListener::bind(address)
            .await
            .expect("a free port");
        let address = listener.local_addr().expect("an address").to_string();
        bound.send(address).expect("the test waits");
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(serve_one(stream, router.clone()));
        }
    }
}

async fn serve_one<S>(stream: S, router: Router)
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let service = hyper_util::service::TowerToHyperService::new(router);
    let io = hyper_util::rt::TokioIo::new(stream);
    // A client that goes early is no concern of the fake's.
    let _ = hyper::server::conn::http1::Builder::new()
        .serve_connection(io, service)
        .await;
}
