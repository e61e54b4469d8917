//! The HTTP endpoint of a service.

mod body;
mod bounded;
mod figures;

use std::{net::SocketAddr, time::Duration};

use axum::{
    Json, Router,
    extract::State,
    http::{HeaderValue, StatusCode, header},
    middleware::map_response,
    response::{IntoResponse, Response},
    routing::get,
};
use postrider_core::{Error, ErrorKind, Result};
use tokio::{net::TcpListener, task::JoinHandle, time::timeout};
use tokio_util::sync::{CancellationToken, DropGuard};

use self::bounded::Bounded;
use super::health::ServiceMonitor;

/// How long answers that are on their way may take when the service has ended.
const GRACE: Duration = Duration::from_millis(500);

/// An address that is taken, and does not answer yet.
pub(super) struct Listener {
    socket: TcpListener,
    address: SocketAddr,
}

impl Listener {
    pub(super) async fn bind(address: SocketAddr) -> Result<Self> {
        let bound = async {
            let socket = TcpListener::bind(address).await?;
            Ok(Self { address: socket.local_addr()?, socket })
        };
        bound.await.map_err(|error: std::io::Error| {
            let why = format!("the endpoint cannot listen: {error}");
            Error::new(ErrorKind::Unavailable, "start", why)
                .with_context("address", address.to_string())
                .with_source(error)
        })
    }

    pub(super) fn serve(self, monitor: ServiceMonitor) -> Endpoint {
        let Self { socket, address } = self;
        let ended = CancellationToken::new();
        let cut = CancellationToken::new();
        let serve = axum::serve(Bounded::new(socket, cut.clone()), routes(monitor))
            .with_graceful_shutdown(ended.clone().cancelled_owned());
        let task = tokio::spawn(async move {
            if let Err(error) = serve.await {
                tracing::error!(%error, "the endpoint answers no more");
            }
        });
        Endpoint { address, task, ended: ended.drop_guard(), cut: cut.drop_guard() }
    }
}

/// An endpoint that answers until it is dropped, which cuts its connections.
pub(super) struct Endpoint {
    address: SocketAddr,
    task: JoinHandle<()>,
    ended: DropGuard,
    cut: DropGuard,
}

impl Endpoint {
    pub(super) const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Takes no more questions and lets the answers on their way go out.
    pub(super) async fn end(self) {
        let Self { task, ended, cut, .. } = self;
        drop(ended);
        // What does not end in time is cut, and the task ends with its last connection.
        let _in_time = timeout(GRACE, task).await;
        drop(cut);
    }
}

fn routes(monitor: ServiceMonitor) -> Router {
    Router::new()
        .route("/health", get(health))
        .route("/ready", get(ready))
        .route("/metrics", get(metrics))
        .layer(map_response(for_one_question))
        .with_state(monitor)
}

/// Closes the connection behind the answer, so that idle ones take nobody's place.
async fn for_one_question(mut answer: Response) -> Response {
    answer.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    answer
}

async fn health(State(monitor): State<ServiceMonitor>) -> impl IntoResponse {
    let health = monitor.health();
    (status(health.is_live()), Json(body::json(monitor.service(), &health)))
}

async fn ready(State(monitor): State<ServiceMonitor>) -> impl IntoResponse {
    let health = monitor.health();
    (status(health.is_ready()), Json(body::json(monitor.service(), &health)))
}

async fn metrics(State(monitor): State<ServiceMonitor>) -> impl IntoResponse {
    let kind = [(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")];
    (kind, figures::text(monitor.service(), &monitor.health()))
}

const fn status(is_good: bool) -> StatusCode {
    if is_good { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }
}
