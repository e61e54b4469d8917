//! The HTTP endpoint of a service.

mod body;
mod figures;
mod guests;

use std::{net::SocketAddr, time::Duration};

use axum::{
    Json, Router,
    extract::State,
    http::{StatusCode, header},
    response::IntoResponse,
    routing::get,
};
use postrider_core::{Error, ErrorKind, Result};
use tokio::{net::TcpListener, task::JoinHandle, time::sleep};
use tokio_util::sync::{CancellationToken, DropGuard};

use guests::Guests;

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
        let serve = axum::serve(Guests::new(socket, ended.clone()), routes(monitor))
            .with_graceful_shutdown(ended.clone().cancelled_owned());
        let until = ended.clone();
        let task = tokio::spawn(async move {
            let over = async {
                until.cancelled().await;
                sleep(GRACE).await;
            };
            tokio::select! {
                served = serve => if let Err(error) = served {
                    tracing::error!(%error, "the endpoint answers no more");
                },
                () = over => {}
            }
        });
        Endpoint { address, task, ended: ended.drop_guard() }
    }
}

/// An endpoint that answers until it is dropped.
pub(super) struct Endpoint {
    address: SocketAddr,
    task: JoinHandle<()>,
    ended: DropGuard,
}

impl Endpoint {
    pub(super) const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Takes no more questions and lets the answers on their way go out.
    pub(super) async fn end(self) {
        let Self { task, ended, .. } = self;
        drop(ended);
        let _panicked = task.await;
    }
}

fn routes(monitor: ServiceMonitor) -> Router {
    Router::new()
        .route("/health", get(health))
        .route("/ready", get(ready))
        .route("/metrics", get(metrics))
        .with_state(monitor)
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
