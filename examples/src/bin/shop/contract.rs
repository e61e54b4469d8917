//! What the services say to each other: the one file that all of them know.

use std::{borrow::Cow, fmt};

use postrider::{Event, Request, Task};
use serde::{Deserialize, Serialize};

use crate::units::{Cents, Day};

/// The id of an order: the run of the shop it belongs to, and its number in that run.
///
/// A message may come twice, and a broker may still hold some of an earlier run. By this id every
/// service tells both.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct OrderId(String);

impl OrderId {
    pub(crate) fn new(run: &str, number: usize) -> Self {
        Self(format!("{run}-{number:06}"))
    }

    pub(crate) fn is_of(&self, run: &str) -> bool {
        self.0.strip_prefix(run).is_some_and(|rest| rest.starts_with('-'))
    }
}

impl fmt::Display for OrderId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// An order of CDs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Order {
    pub(crate) id: OrderId,
    pub(crate) customer: u32,
    pub(crate) day: Day,
    pub(crate) cds: u32,
    pub(crate) price: Cents,
}

// Requests

/// To the inventory: keep CDs for an order.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Reserve {
    pub(crate) order: OrderId,
    pub(crate) cds: u32,
}

impl Request for Reserve {
    const METHOD: &'static str = "reserve";
    type Reply = ();
}

/// To the inventory: put the CDs of an order back.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Release {
    pub(crate) order: OrderId,
}

impl Request for Release {
    const METHOD: &'static str = "release";
    type Reply = ();
}

/// To the payment service: charge the customer.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Charge {
    pub(crate) order: OrderId,
    pub(crate) customer: u32,
    pub(crate) price: Cents,
}

impl Request for Charge {
    const METHOD: &'static str = "charge";
    type Reply = ();
}

// Events

/// A customer ordered.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct OrderCreated {
    pub(crate) order: Order,
}

/// The CDs are reserved and the customer was charged.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct OrderPaid {
    pub(crate) order: Order,
}

/// The order came to nothing.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct OrderRefused {
    pub(crate) order: Order,
    /// The service that said no.
    pub(crate) by: String,
    pub(crate) reason: String,
}

/// The CDs are on their way.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct OrderShipped {
    pub(crate) order: Order,
}

impl Event for OrderCreated {
    const TYPE: &'static str = "order.created";

    fn aggregate_id(&self) -> Option<Cow<'_, str>> {
        Some(Cow::Borrowed(&self.order.id.0))
    }
}

impl Event for OrderPaid {
    const TYPE: &'static str = "order.paid";

    fn aggregate_id(&self) -> Option<Cow<'_, str>> {
        Some(Cow::Borrowed(&self.order.id.0))
    }
}

impl Event for OrderRefused {
    const TYPE: &'static str = "order.refused";

    fn aggregate_id(&self) -> Option<Cow<'_, str>> {
        Some(Cow::Borrowed(&self.order.id.0))
    }
}

impl Event for OrderShipped {
    const TYPE: &'static str = "order.shipped";

    fn aggregate_id(&self) -> Option<Cow<'_, str>> {
        Some(Cow::Borrowed(&self.order.id.0))
    }
}

// Tasks

/// Tell a customer what became of an order.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct SendEmail {
    pub(crate) order: Order,
    pub(crate) news: News,
}

/// What there is to tell.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum News {
    Shipped,
    Refused { reason: String },
}

impl Task for SendEmail {
    const TYPE: &'static str = "send_email";
}

/// Write the sales report of a day.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct GenerateReport {
    pub(crate) run: String,
    pub(crate) day: Day,
}

impl Task for GenerateReport {
    const TYPE: &'static str = "generate_report";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_order_belongs_to_its_run_alone() {
        let order = OrderId::new("ab12", 7);
        assert_eq!(order.to_string(), "ab12-000007");
        assert!(order.is_of("ab12"));
        assert!(!order.is_of("ab1") && !order.is_of("ab123"));
    }
}
