//! RabbitMQ as a broker under test, for every transport that reaches it; with the feature
//! `rabbitmq`.
//!
//! `scripts/brokers up --all` starts the brokers and prints the variables that name them. A test
//! target of a transport, with `harness = false`, says only how it connects and hands that to
//! [`main`]; the tests of another hand it to [`compare`].

mod differential;
mod management;

use std::{
    env,
    fmt::Display,
    net::{SocketAddr, ToSocketAddrs},
    process::ExitCode,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use futures_util::future::BoxFuture;
use postrider_core::{Env, Error, ErrorKind, Result, Transport};
use tokio::{process::Command, sync::OnceCell, time::sleep};

pub use self::{differential::compare, management::Management};
use crate::{
    behaviour,
    harness::{Clock, Connection, Fault, Harness, Route, TestBroker, Wire},
    proxy::{Direction, FaultProxy},
};

/// The script that starts, stops and commands the brokers.
const BROKERS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../scripts/brokers");

const ALARM: &str = "{resource_limit, memory, node()}";

/// How long the management API may take to show a connection with its name.
const SHOWN_WITHIN: Duration = Duration::from_secs(20);

/// What a transport needs to know to connect.
#[derive(Debug, Clone)]
pub struct Login {
    /// Where to connect.
    pub address: SocketAddr,
    /// The user, also the name that the connection should have in the broker's tools.
    pub user: String,
    /// The user's password.
    pub password: String,
    /// The virtual host.
    pub virtual_host: String,
    /// The heartbeat, in whole seconds, unless it is the transport's own.
    pub heartbeat: Option<Duration>,
}

/// A RabbitMQ that the environment may name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Release {
    name: &'static str,
    version: &'static str,
    url_variable: &'static str,
    management_variable: &'static str,
}

impl Release {
    /// The newest that is supported.
    pub const NEWEST: Self = Self {
        name: "rabbitmq-4.3",
        version: "4.3",
        url_variable: "POSTRIDER_AMQP_URL",
        management_variable: "POSTRIDER_AMQP_MANAGEMENT_URL",
    };

    /// The oldest that is supported.
    pub const OLDEST: Self = Self {
        name: "rabbitmq-4.0",
        version: "4.0",
        url_variable: "POSTRIDER_AMQP_URL_40",
        management_variable: "POSTRIDER_AMQP_MANAGEMENT_URL_40",
    };
}

/// Connects a transport.
pub type Connect = fn(Login) -> BoxFuture<'static, Result<Arc<dyn Transport>>>;

/// Runs the suite on each RabbitMQ that the environment names, for a test target with
/// `harness = false`. Transports should reconnect with pauses of a second at most.
///
/// `heartbeat` is the broker's own, in whole seconds, for a protocol in which a client has no say in
/// how long the broker waits for a sign of life.
#[must_use]
pub fn main(connect: Connect, heartbeat: Option<Duration>) -> ExitCode {
    behaviour::main(&harnesses(connect, heartbeat))
}

/// Each RabbitMQ that the environment names, for suites of other things than transports; see
/// [`main`].
#[must_use]
pub fn harnesses(connect: Connect, heartbeat: Option<Duration>) -> Vec<Arc<dyn Harness>> {
    let on = |release| RabbitMq { release, connect, heartbeat, is_set: Arc::default() };
    let (newest, oldest) = (on(Release::NEWEST), on(Release::OLDEST));
    let has_oldest = env::var_os(oldest.release.url_variable).is_some();
    let mut harnesses: Vec<Arc<dyn Harness>> = vec![Arc::new(newest)];
    if has_oldest {
        harnesses.push(Arc::new(oldest));
    } else {
        eprintln!("not run: {} ({} is not set)", oldest.release.name, oldest.release.url_variable);
    }
    harnesses
}

#[derive(Debug, Clone)]
struct RabbitMq {
    release: Release,
    connect: Connect,
    heartbeat: Option<Duration>,
    /// Whether the broker has the heartbeat.
    is_set: Arc<OnceCell<()>>,
}

fn variable(name: &str) -> Result<String> {
    env::var(name).map_err(|_| {
        Error::new(
            ErrorKind::Unavailable,
            "connect",
            format!(
                "{name} is not set; start the brokers by `eval \"$(scripts/brokers up --all)\"`"
            ),
        )
    })
}

fn failed(what: &str, error: impl Display) -> Error {
    Error::new(ErrorKind::Internal, "inject", format!("{what}: {error}"))
}

/// Where a URL leads.
fn address(url: &str) -> Result<SocketAddr> {
    let host = url.rsplit_once('@').map_or(url, |(_, host)| host);
    let host = host.split('/').next().unwrap_or_default();
    let addresses = host.to_socket_addrs().map_err(|error| failed(host, error))?;
    addresses.into_iter().next().ok_or_else(|| failed(host, "it has no address"))
}

/// The user of a URL and the password.
fn credentials(url: &str) -> (String, String) {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    let credentials = rest.rsplit_once('@').map_or("guest:guest", |(credentials, _)| credentials);
    let (user, password) = credentials.split_once(':').unwrap_or((credentials, ""));
    (user.to_owned(), password.to_owned())
}

impl RabbitMq {
    async fn script(&self, arguments: &[&str]) -> Result<()> {
        let output = Command::new(BROKERS)
            .args(arguments)
            .args(["--version", self.release.version])
            .output()
            .await
            .map_err(|error| failed(BROKERS, error))?;
        if output.status.success() {
            return Ok(());
        }
        Err(failed(&arguments.join(" "), String::from_utf8_lossy(&output.stderr)))
    }

    /// Sets what the broker forgets when it stops.
    async fn set_heartbeat(&self) -> Result<()> {
        let Some(heartbeat) = self.heartbeat else { return Ok(()) };
        let set = format!("application:set_env(rabbit, heartbeat, {}).", heartbeat.as_secs());
        self.script(&["ctl", "eval", &set]).await
    }
}

#[async_trait]
impl Harness for RabbitMq {
    fn name(&self) -> &str {
        self.release.name
    }

    fn clock(&self) -> Clock {
        Clock::Real
    }

    fn faults(&self) -> &[Fault] {
        &[
            Fault::ConnectionLoss,
            Fault::HeldConfirms,
            Fault::Alarm,
            Fault::Outage,
            Fault::Crash,
            Fault::Network,
            Fault::Refusal,
        ]
    }

    async fn broker(&self, faults: &[Fault]) -> Result<Arc<dyn TestBroker>> {
        let address = address(&variable(self.release.url_variable)?)?;
        self.is_set.get_or_try_init(|| self.set_heartbeat()).await?;
        let proxy = if faults.contains(&Fault::HeldConfirms) {
            let proxy = FaultProxy::start(address).await;
            Some(Arc::new(proxy.map_err(|error| failed("starting a proxy", error))?))
        } else {
            None
        };
        Ok(Arc::new(Broker {
            kind: self.clone(),
            address,
            proxy,
            management: Management::new(&variable(self.release.management_variable)?),
            users: Mutex::default(),
        }))
    }

    fn time_limit(&self) -> Duration {
        Duration::from_secs(300)
    }
}

struct Broker {
    kind: RabbitMq,
    address: SocketAddr,
    /// The way to the broker, for a behaviour that wants confirms held back.
    proxy: Option<Arc<FaultProxy>>,
    management: Management,
    /// One for each connection: what the broker knows of a user's connections is exact, while its
    /// list of all connections lags behind by seconds.
    users: Mutex<Vec<String>>,
}

impl Broker {
    fn way(&self) -> Result<&FaultProxy> {
        self.proxy.as_deref().ok_or_else(|| failed("holding confirms", "it was not announced"))
    }
}

#[async_trait]
impl TestBroker for Broker {
    async fn connect(&self) -> Result<Connection> {
        self.connect_by(&Route::default()).await
    }

    async fn connect_by(&self, route: &Route) -> Result<Connection> {
        let user = format!("test-{}", Env::system().new_id());
        match self.management.make_user(&user).await {
            Ok(()) => self.users.lock().unwrap_or_else(PoisonError::into_inner).push(user.clone()),
            Err(error) if self.management.answers().await => return Err(error),
            // A broker that is down; the transport is to say so.
            Err(_) => {}
        }
        let way = self.proxy.as_ref().map_or(self.address, |proxy| proxy.address());
        let login = Login {
            address: route.address.unwrap_or(way),
            user: user.clone(),
            password: route.password.clone().unwrap_or_else(|| user.clone()),
            virtual_host: route.virtual_host.clone().unwrap_or_else(|| "/".to_owned()),
            heartbeat: route.heartbeat,
        };
        let transport = (self.kind.connect)(login).await?;
        let management = self.management.clone();
        let proxy = self.proxy.clone();
        let operator = Operator { user, management, proxy, parts_cut: AtomicUsize::new(0) };
        Ok(Connection::new(transport, Arc::new(operator)))
    }

    fn address(&self) -> Option<SocketAddr> {
        Some(self.address)
    }

    async fn left_over(&self, prefix: &str) -> Result<Vec<String>> {
        let users = self.users.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let mut left = Vec::new();
        for user in users {
            let connections = self.management.connections(&user).await?;
            if connections.is_empty() {
                self.management.remove_user(&user).await?;
                let mut users = self.users.lock().unwrap_or_else(PoisonError::into_inner);
                users.retain(|other| *other != user);
            }
            left.extend(connections.into_iter().map(|name| format!("connection '{name}'")));
        }
        let queues = self.management.queues().await?;
        let queues = queues.into_iter().filter(|queue| queue.starts_with(prefix));
        left.extend(queues.map(|queue| format!("queue '{queue}'")));
        Ok(left)
    }

    async fn begin(&self, fault: Fault) -> Result<()> {
        match fault {
            Fault::HeldConfirms => self.way()?.stall(Direction::ToClient),
            Fault::Alarm => {
                let set = format!("rabbit_alarm:set_alarm({{{ALARM}, []}}).");
                self.kind.script(&["ctl", "eval", &set]).await?;
            }
            Fault::Outage => self.kind.script(&["stop"]).await?,
            Fault::Crash => self.kind.script(&["kill"]).await?,
            other => return Err(failed("RabbitMQ knows no fault", format!("{other:?}"))),
        }
        Ok(())
    }

    async fn end(&self, fault: Fault) -> Result<()> {
        match fault {
            Fault::HeldConfirms => self.way()?.heal(),
            Fault::Alarm => {
                let clear = format!("rabbit_alarm:clear_alarm({ALARM}).");
                self.kind.script(&["ctl", "eval", &clear]).await?;
            }
            Fault::Outage | Fault::Crash => {
                self.kind.script(&["start"]).await?;
                self.kind.set_heartbeat().await?;
            }
            other => return Err(failed("RabbitMQ knows no fault", format!("{other:?}"))),
        }
        Ok(())
    }
}

/// Does to the connections of one user what operators do, without a word to the transport.
struct Operator {
    user: String,
    management: Management,
    proxy: Option<Arc<FaultProxy>>,
    parts_cut: AtomicUsize,
}

#[async_trait]
impl Wire for Operator {
    async fn cut(&self) -> Result<()> {
        // What is held back must not be let go by the broker's closing.
        if let Some(proxy) = &self.proxy {
            proxy.cut();
            return Ok(());
        }
        let deadline = Env::system().now() + SHOWN_WITHIN;
        // While it reconnects there is nothing to cut.
        while self.management.connections(&self.user).await?.is_empty() {
            if Env::system().now() > deadline {
                return Err(failed("cutting", "the user has no connection"));
            }
            sleep(Duration::from_millis(20)).await;
        }
        self.management.close_all(&self.user).await
    }

    async fn cut_part(&self) -> Result<()> {
        let turn = self.parts_cut.fetch_add(1, Ordering::AcqRel);
        let deadline = Env::system().now() + SHOWN_WITHIN;
        loop {
            let mut parts = self.management.named_connections(&self.user).await?;
            parts.sort();
            let mut listed: Vec<_> = parts.iter().map(|(_, connection)| connection).collect();
            let mut open = self.management.connections(&self.user).await?;
            listed.sort();
            open.sort();
            // The list with the names lags behind, and of what was lost a part may still be closing.
            let settled =
                listed.into_iter().eq(&open) && parts.windows(2).all(|pair| pair[0].0 != pair[1].0);
            if settled && !parts.is_empty() {
                let (_, connection) = &parts[turn % parts.len()];
                if self.management.close(connection).await? {
                    return Ok(());
                }
            }
            if Env::system().now() > deadline {
                return Err(failed("cutting a part", "the broker shows no such connection"));
            }
            sleep(Duration::from_millis(100)).await;
        }
    }

    async fn permit(&self, allowed: bool) -> Result<()> {
        self.management.permit(&self.user, "/", allowed).await
    }
}
