//! What the tests over RabbitMQ share.
#![allow(dead_code)] // Each test file uses a part of it.

use std::{env, time::Duration};

use postrider_testkit::rabbitmq::Management;
use tokio::time::{sleep, timeout};

/// How long anything may take that should happen at once.
pub(crate) const SOON: Duration = Duration::from_secs(60);

/// How a program speaks to RabbitMQ.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Protocol {
    Amqp091,
    Amqp10,
}

/// A virtual host for one test, with a user of the same name for the program under test.
pub(crate) struct VirtualHost {
    name: String,
    protocol: Protocol,
    /// What the names of the broker's variables end with.
    broker: &'static str,
    management: Management,
}

impl VirtualHost {
    /// One on RabbitMQ 4.3.
    pub(crate) async fn new(protocol: Protocol) -> Self {
        Self::new_on(protocol, "").await
    }

    /// One on the broker whose variables end with `broker`.
    pub(crate) async fn new_on(protocol: Protocol, broker: &'static str) -> Self {
        let name = format!("test-{}", postrider::Env::system().new_id());
        let management =
            Management::new(&variable(&format!("POSTRIDER_AMQP_MANAGEMENT_URL{broker}")));
        let host = Self { name, protocol, broker, management };
        host.management.make_virtual_host(&host.name).await.expect("a virtual host");
        host.management.make_user(&host.name).await.expect("a user");
        for user in [&host.name, "guest"] {
            host.management.permit(user, &host.name, true).await.expect("permissions");
        }
        host
    }

    /// Also the name and password of the program's user.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// The URL of the broker with this virtual host, for a user whose password is its name.
    pub(crate) fn url(&self, user: &str) -> String {
        self.url_by(self.protocol, user)
    }

    /// That URL for a client of either protocol.
    pub(crate) fn url_by(&self, protocol: Protocol, user: &str) -> String {
        let (scheme, of_protocol) = match protocol {
            Protocol::Amqp091 => ("amqp", "POSTRIDER_AMQP_URL"),
            Protocol::Amqp10 => ("amqp10", "POSTRIDER_AMQP10_URL"),
        };
        let url = variable(&format!("{of_protocol}{}", self.broker));
        let (_, host) = url.rsplit_once('@').expect("a URL with credentials");
        format!("{scheme}://{user}:{user}@{host}/{}", self.name)
    }

    pub(crate) fn users_url(&self) -> String {
        self.url(&self.name)
    }

    /// Has the broker close the connections of the program, and says how many there were.
    pub(crate) async fn lose_the_program(&self) -> usize {
        let closing = async {
            loop {
                let found = self.management.connections(&self.name).await;
                let found = found.expect("the management API").len();
                // While it reconnects there is nothing to close, and nothing that tells of it.
                if found == 0 {
                    sleep(Duration::from_millis(20)).await;
                    continue;
                }
                self.management.close_all(&self.name).await.expect("the management API");
                return found;
            }
        };
        timeout(SOON, closing).await.expect("the program connects again")
    }

    pub(crate) async fn remove(self) {
        self.management.remove_user(&self.name).await.expect("the user goes");
        self.management.remove_virtual_host(&self.name).await.expect("the virtual host goes");
    }
}

pub(crate) fn variable(name: &str) -> String {
    env::var(name).unwrap_or_else(|_| {
        panic!("{name} is not set; start the broker by `eval \"$(scripts/brokers up)\"`")
    })
}
