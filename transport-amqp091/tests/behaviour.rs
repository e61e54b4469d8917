//! The behaviour suite on RabbitMQ, on each broker that the environment names.
//!
//! `scripts/brokers up` starts them and `scripts/brokers env` prints the variables;
//! `cargo test -p postrider-transport-amqp091 --test behaviour -- rabbitmq-4.3::priority` runs what
//! has this in its name.

use std::{env, process::ExitCode, sync::Arc, time::Duration};

use async_trait::async_trait;
use postrider_core::{Env, Error, ErrorKind, Result, Transport};
use postrider_testkit::{
    behaviour,
    harness::{Clock, Connection, Fault, Harness, TestBroker, Wire},
};
use postrider_transport_amqp091::{Amqp091, Options};
use tokio::{process::Command, task::spawn_blocking, time::sleep};

/// The script that starts, stops and commands the brokers.
const BROKERS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../scripts/brokers");

const ALARM: &str = "{resource_limit, memory, node()}";

/// How long the management API may take to show a connection.
const SHOWN_WITHIN: Duration = Duration::from_secs(10);

#[derive(Debug, Clone)]
struct RabbitMq {
    name: &'static str,
    version: &'static str,
    url_variable: &'static str,
    management_variable: &'static str,
}

const NEWEST: RabbitMq = RabbitMq {
    name: "rabbitmq-4.3",
    version: "4.3",
    url_variable: "POSTRIDER_AMQP_URL",
    management_variable: "POSTRIDER_AMQP_MANAGEMENT_URL",
};

const OLDEST: RabbitMq = RabbitMq {
    name: "rabbitmq-4.0",
    version: "4.0",
    url_variable: "POSTRIDER_AMQP_URL_40",
    management_variable: "POSTRIDER_AMQP_MANAGEMENT_URL_40",
};

fn variable(name: &str) -> Result<String> {
    env::var(name).map_err(|_| {
        Error::new(
            ErrorKind::Unavailable,
            "connect",
            format!("{name} is not set; start the brokers by `eval \"$(scripts/brokers up)\"`"),
        )
    })
}

fn failed(what: &str, error: impl std::fmt::Display) -> Error {
    Error::new(ErrorKind::Internal, "inject", format!("{what}: {error}"))
}

impl RabbitMq {
    async fn script(&self, arguments: &[&str]) -> Result<()> {
        let output = Command::new(BROKERS)
            .args(arguments)
            .args(["--version", self.version])
            .output()
            .await
            .map_err(|error| failed(BROKERS, error))?;
        if output.status.success() {
            return Ok(());
        }
        Err(failed(&arguments.join(" "), String::from_utf8_lossy(&output.stderr)))
    }
}

#[async_trait]
impl Harness for RabbitMq {
    fn name(&self) -> &str {
        self.name
    }

    fn clock(&self) -> Clock {
        Clock::Real
    }

    fn faults(&self) -> &[Fault] {
        &[Fault::ConnectionLoss, Fault::Alarm, Fault::Outage]
    }

    async fn broker(&self, _behaviour: &str) -> Result<Arc<dyn TestBroker>> {
        Ok(Arc::new(Broker {
            kind: self.clone(),
            url: variable(self.url_variable)?,
            management: Management::new(&variable(self.management_variable)?),
        }))
    }

    fn time_limit(&self) -> Duration {
        Duration::from_secs(150)
    }
}

struct Broker {
    kind: RabbitMq,
    url: String,
    management: Management,
}

#[async_trait]
impl TestBroker for Broker {
    async fn connect(&self) -> Result<Connection> {
        let name = format!("test {}", Env::system().new_id());
        let options =
            Options::default().with_name(name.clone()).with_reconnect_pause(Duration::from_secs(1));
        let transport: Arc<dyn Transport> =
            Arc::new(Amqp091::connect_with(&self.url, options).await?);
        let cutter = Cutter { name, management: self.management.clone() };
        Ok(Connection::new(transport, Arc::new(cutter)))
    }

    async fn begin(&self, fault: Fault) -> Result<()> {
        match fault {
            Fault::Alarm => {
                let set = format!("rabbit_alarm:set_alarm({{{ALARM}, []}}).");
                self.kind.script(&["ctl", "eval", &set]).await
            }
            Fault::Outage => self.kind.script(&["stop"]).await,
            other => Err(failed("RabbitMQ knows no fault", format!("{other:?}"))),
        }
    }

    async fn end(&self, fault: Fault) -> Result<()> {
        match fault {
            Fault::Alarm => {
                let clear = format!("rabbit_alarm:clear_alarm({ALARM}).");
                self.kind.script(&["ctl", "eval", &clear]).await
            }
            Fault::Outage => self.kind.script(&["start"]).await,
            other => Err(failed("RabbitMQ knows no fault", format!("{other:?}"))),
        }
    }
}

/// The management API of a broker.
#[derive(Clone)]
struct Management {
    /// Without its credentials.
    url: String,
    authorization: String,
}

impl Management {
    fn new(url: &str) -> Self {
        let (scheme, rest) = url.split_once("://").unwrap_or(("http", url));
        let (credentials, host) = rest.rsplit_once('@').unwrap_or(("guest:guest", rest));
        Self {
            url: format!("{scheme}://{}", host.trim_end_matches('/')),
            authorization: format!("Basic {}", base64(credentials.as_bytes())),
        }
    }

    /// The names under which the broker has connections of clients called `name`.
    fn connections(&self, name: &str) -> Result<Vec<String>> {
        let url = format!("{}/api/connections?columns=name,client_properties", self.url);
        let listed: serde_json::Value = ureq::get(&url)
            .header("authorization", &self.authorization)
            .call()
            .and_then(|mut answer| answer.body_mut().read_json())
            .map_err(|error| failed("listing connections", error))?;
        let connections = listed.as_array().into_iter().flatten();
        Ok(connections
            .filter(|connection| {
                let given = &connection["client_properties"]["connection_name"];
                given.as_str().is_some_and(|given| given.starts_with(name))
            })
            .filter_map(|connection| connection["name"].as_str().map(ToOwned::to_owned))
            .collect())
    }

    /// Closes a connection; `false` when it has gone by itself.
    fn close(&self, connection: &str) -> Result<bool> {
        let url = format!("{}/api/connections/{}", self.url, percent_encoded(connection));
        match ureq::delete(&url).header("authorization", &self.authorization).call() {
            Ok(_) => Ok(true),
            // The list lags behind.
            Err(ureq::Error::StatusCode(404)) => Ok(false),
            Err(error) => Err(failed("closing a connection", error)),
        }
    }
}

fn percent_encoded(text: &str) -> String {
    text.bytes()
        .map(|byte| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                char::from(byte).to_string()
            }
            _ => format!("%{byte:02X}"),
        })
        .collect()
}

fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let group = chunk.iter().fold(0_u32, |group, byte| group << 8 | u32::from(*byte))
            << (8 * (3 - chunk.len()));
        for place in 0..4 {
            let digit = DIGITS[(group >> (18 - 6 * place)) as usize & 63];
            text.push(if place <= chunk.len() { char::from(digit) } else { '=' });
        }
    }
    text
}

/// Has the broker close the connections of one transport, without a word to it.
struct Cutter {
    name: String,
    management: Management,
}

#[async_trait]
impl Wire for Cutter {
    async fn cut(&self) -> Result<()> {
        let deadline = Env::system().now() + SHOWN_WITHIN;
        loop {
            let (management, name) = (self.management.clone(), self.name.clone());
            let cut = spawn_blocking(move || {
                let mut cut = false;
                for connection in management.connections(&name)? {
                    cut |= management.close(&connection)?;
                }
                Ok(cut)
            });
            let cut: Result<bool> = cut.await.map_err(|error| failed("cutting", error))?;
            if cut? {
                return Ok(());
            }
            if Env::system().now() > deadline {
                return Err(failed("cutting", "the broker shows no connection of this name"));
            }
            sleep(Duration::from_millis(50)).await;
        }
    }
}

fn main() -> ExitCode {
    let mut harnesses: Vec<Arc<dyn Harness>> = vec![Arc::new(NEWEST)];
    if env::var_os(OLDEST.url_variable).is_some() {
        harnesses.push(Arc::new(OLDEST));
    }
    behaviour::main(&harnesses)
}
