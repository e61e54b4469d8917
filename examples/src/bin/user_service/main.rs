//! A service for clients in any language: the customers of the CDNOW sample, by RPC in JSON.
//!
//! `cargo run -p postrider-examples --features amqp091 --bin user_service -- --broker amqp://…`
//!
//! It takes requests from the queue `rpc_user_service`, as `docs/wire.md` says, for example
//! `{"method": "get_user_info", "params": {"user_id": 4}}`. It prints `ready` when it serves, and
//! runs until Ctrl-C or SIGTERM.

mod users;

use std::{error::Error, future::Future, sync::Arc, time::Duration};

use clap::Parser;
use postrider::{Context, HandlerError, RpcServer, Running, Transport};
use postrider_examples::BrokerArgs;
use serde::{Deserialize, Serialize};
use tokio::signal::unix::{SignalKind, signal};

use crate::users::{User, Users};

/// The service's name on the wire.
const SERVICE: &str = "user_service";

/// How long requests in hand may take when it stops.
const STOP_WITHIN: Duration = Duration::from_secs(10);

/// Serves the customers of the CDNOW sample to clients in any language.
#[derive(Parser)]
struct Args {
    #[command(flatten)]
    broker: BrokerArgs,
    /// How many requests are handled at once
    #[arg(long, default_value_t = 16)]
    concurrency: usize,
}

/// What each method takes.
#[derive(Debug, Deserialize)]
struct WhichUser {
    user_id: UserId,
}

/// Clients in some languages send numbers as text.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
enum UserId {
    Number(u32),
    Text(String),
}

impl UserId {
    fn number(&self) -> Result<u32, HandlerError> {
        match self {
            Self::Number(number) => Ok(*number),
            Self::Text(text) => text.parse().map_err(|_| {
                HandlerError::invalid("user_id is a whole number").with_code("INVALID_PARAMS")
            }),
        }
    }
}

/// A method that shows one side of a user.
fn show<T: Serialize + Send + 'static>(
    users: &Arc<Users>,
    side: impl Fn(&User) -> T + Send + Sync + 'static,
) -> impl Fn(WhichUser, Context) -> Reply<T> + Send + Sync + 'static {
    let users = Arc::clone(users);
    move |WhichUser { user_id }, _context| {
        let shown = user_id.number().and_then(|number| {
            let user = users.get(number).ok_or_else(|| {
                HandlerError::not_found(format!("there is no user {number}"))
                    .with_code("USER_NOT_FOUND")
            })?;
            Ok(side(user))
        });
        std::future::ready(shown)
    }
}

type Reply<T> = std::future::Ready<Result<T, HandlerError>>;

async fn serve(
    transport: &Arc<dyn Transport>,
    users: Users,
    concurrency: usize,
) -> postrider::Result<Running> {
    let users = Arc::new(users);
    RpcServer::new(SERVICE)
        .method_named("get_user_info", show(&users, User::info))
        .method_named("get_user_profile", show(&users, User::profile))
        .method_named("get_user_orders", show(&users, User::orders))
        .method_named("get_user_preferences", show(&users, User::preferences))
        .concurrency(concurrency)
        .start(transport)
        .await
}

/// What tells a program to end.
fn told_to_end() -> std::io::Result<impl Future<Output = ()>> {
    let (mut interrupt, mut terminate) =
        (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    Ok(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
    })
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let Args { broker, concurrency } = Args::parse();
    // Before it is ready, so that no signal is missed.
    let told_to_end = told_to_end()?;
    let transport = broker.connect().await?;
    let running = serve(&transport, Users::of_the_sample(), concurrency).await?;
    println!("ready: {} serves {}", SERVICE, running.queue());
    tokio::select! {
        () = told_to_end => {}
        ended = running.ended() => ended?,
    }
    let report = running.stop(STOP_WITHIN).await;
    println!("stopped, {} requests were finished meanwhile", report.finished);
    transport.close(STOP_WITHIN).await?;
    Ok(())
}
