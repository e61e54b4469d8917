use postrider_core::{Address, Error, ErrorKind, Result, check_declared_name, check_name};
use serde::{Deserialize, Serialize};

use super::{field::Field, inbound::Inbound, partition::Partitioner};
use crate::{
    handler::{HandlerError, codes},
    naming::Naming,
};

/// How many routes a rule may have.
pub(super) const MAX_ROUTES: usize = 100;

/// Where copies of a message go. It is data.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
#[non_exhaustive]
pub enum Route {
    /// To a queue.
    Queue(String),
    /// To an exchange.
    Exchange {
        /// Its name.
        name: String,
        /// The routing key; `None` for the one that the message came with.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        key: Option<String>,
    },
    /// To one of several queues, by a key. A message without that key is dead-lettered.
    Partition {
        /// The queues.
        to: Partitioner,
        /// What the key is.
        by: Field,
    },
}

impl Route {
    /// To a queue.
    pub fn queue(name: impl Into<String>) -> Self {
        Self::Queue(name.into())
    }

    /// To an exchange, under a routing key.
    pub fn exchange(name: impl Into<String>, key: impl Into<String>) -> Self {
        Self::Exchange { name: name.into(), key: Some(key.into()) }
    }

    /// To an exchange, under the key that the message came with.
    pub fn exchange_as_it_came(name: impl Into<String>) -> Self {
        Self::Exchange { name: name.into(), key: None }
    }

    /// To one of several queues.
    #[must_use]
    pub const fn partition(to: Partitioner, by: Field) -> Self {
        Self::Partition { to, by }
    }

    /// Where this very message goes.
    ///
    /// # Errors
    ///
    /// When it has not the key of a partition.
    pub(super) fn address(
        &self,
        inbound: &Inbound,
        naming: &Naming,
    ) -> std::result::Result<Address, HandlerError> {
        Ok(match self {
            Self::Queue(name) => Address::queue(name.clone()),
            Self::Exchange { name, key: Some(key) } => Address::exchange(name.clone(), key.clone()),
            Self::Exchange { name, key: None } => {
                Address::exchange(name.clone(), inbound.address().routing_key().to_owned())
            }
            Self::Partition { to, by } => {
                let key = by.key(inbound)?.ok_or_else(|| {
                    HandlerError::invalid(format!("it has no {by} that could be its key"))
                        .with_code(codes::NO_KEY)
                })?;
                to.address(naming, &key)
            }
        })
    }

    pub(super) fn check(&self) -> Result<()> {
        match self {
            Self::Queue(name) if name.is_empty() => check_declared_name("route", name),
            Self::Queue(name) => check_name("route", name),
            Self::Exchange { name, key } => {
                check_name("route", name)?;
                check_name("route", key.as_deref().unwrap_or_default())
            }
            Self::Partition { by, .. } => by.check(),
        }
    }
}

/// Refuses none, too many, and those to what no broker has.
pub(super) fn check_routes(routes: &[Route]) -> Result<()> {
    if routes.is_empty() || routes.len() > MAX_ROUTES {
        let why = format!("messages go to 1 to {MAX_ROUTES} routes, not {}", routes.len());
        return Err(Error::new(ErrorKind::Invalid, "route", why));
    }
    routes.iter().try_for_each(Route::check)
}
