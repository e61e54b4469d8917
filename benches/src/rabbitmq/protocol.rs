//! The two protocols of RabbitMQ, and who the twins are over each.

use std::{str::FromStr, sync::Arc};

use postrider_core::Transport;
use postrider_transport_amqp10::Amqp10;
use postrider_transport_amqp091::Amqp091;

/// What RabbitMQ is spoken to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Protocol {
    /// AMQP 0.9.1, by lapin.
    #[default]
    Amqp091,
    /// AMQP 1.0, by fe2o3-amqp.
    Amqp10,
}

impl Protocol {
    /// Its name for the command line.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Amqp091 => "amqp091",
            Self::Amqp10 => "amqp10",
        }
    }

    /// The variable with the broker's address.
    #[must_use]
    pub const fn variable(self) -> &'static str {
        match self {
            Self::Amqp091 => "POSTRIDER_AMQP_URL",
            Self::Amqp10 => "POSTRIDER_AMQP10_URL",
        }
    }

    /// The client used well, and as most programs use it.
    pub(super) const fn twins(self) -> [&'static str; 2] {
        match self {
            Self::Amqp091 => ["lapin used well", "lapin as most write it"],
            Self::Amqp10 => ["fe2o3-amqp used well", "fe2o3-amqp as most write it"],
        }
    }

    pub(super) async fn connect(self, url: &str) -> Arc<dyn Transport> {
        match self {
            Self::Amqp091 => Arc::new(Amqp091::connect(url).await.expect("a broker")),
            Self::Amqp10 => Arc::new(Amqp10::connect(url).await.expect("a broker")),
        }
    }
}

impl FromStr for Protocol {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let named = [Self::Amqp091, Self::Amqp10].into_iter().find(|known| known.name() == name);
        named.ok_or_else(|| format!("there is no protocol '{name}': amqp091 or amqp10"))
    }
}
