//! The behaviour suite with its fault scenarios on RabbitMQ, on each broker that the environment
//! names.
//!
//! `scripts/brokers up` starts them and `scripts/brokers env` prints the variables;
//! `cargo test -p postrider-transport-amqp10 --features live-broker --test behaviour --
//! rabbitmq-4.3::priority` runs what has this in its name.

use std::{process::ExitCode, sync::Arc, time::Duration};

use postrider_core::{Result, Transport};
use postrider_testkit::rabbitmq::{self, Login};
use postrider_transport_amqp10::{Amqp10, Options};

async fn connect(login: Login) -> Result<Arc<dyn Transport>> {
    let Login { address, user, password, .. } = login;
    let virtual_host = login.virtual_host.replace('/', "%2f");
    let heartbeat = login
        .heartbeat
        .map_or_else(String::new, |heartbeat| format!("?heartbeat={}", heartbeat.as_secs()));
    let url = format!("amqp10://{user}:{password}@{address}/{virtual_host}{heartbeat}");
    let options = Options::default().with_name(user).with_reconnect_pause(Duration::from_secs(1));
    Ok(Arc::new(Amqp10::connect_with(&url, options).await?))
}

fn main() -> ExitCode {
    rabbitmq::main(|login| Box::pin(connect(login)), Some(Duration::from_secs(3)))
}
