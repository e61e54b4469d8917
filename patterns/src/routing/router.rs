use std::{fmt, sync::Arc};

use futures_util::FutureExt;
use postrider_core::{
    Address, Capabilities, Error, ErrorKind, PublisherOptions, Result, Transport,
};
use tokio::sync::{Mutex as AsyncMutex, watch};

use super::{
    condition::Condition,
    control::{self, Control, TableStore},
    copies::Copies,
    flow::{Flow, FlowCounters},
    forwarding::{Forwarding, Recipients, Ways},
    inbound::Inbound,
    intake::{Begin, Intake},
    route::Route,
    table::{Matching, Otherwise, RoutingTable, Rule},
    tap::Tap,
};
use crate::{
    consuming::Outline,
    handler::HandlerError,
    middleware::{Layers, Middleware},
};

/// Takes messages from a queue and sends each on to where its rules say.
///
/// A copy is the message as it came, its id included, with one more in the header `postrider-hops`.
/// The message is acknowledged when the broker has every copy. If one of them cannot be sent, or it
/// is not known whether it was, the message is tried again by the retry policy and all of its
/// copies are sent again: a destination may get a copy twice, which has the same id then. What is
/// left after the last try is dead-lettered, and so is at once a message that no rule is for,
/// unless the table says otherwise.
///
/// | pattern | how |
/// |---|---|
/// | content-based router | [`rule`](Self::rule)s in their order |
/// | recipient list, fan-out | a rule with several routes, [`Matching::All`], or [`recipients`](Self::recipients) |
/// | message filter | [`filter`](Self::filter) |
/// | fan-in | an [`Intake`] of several queues |
/// | wire tap | [`tap`](Self::tap) |
/// | partitions | [`Route::partition`] |
/// | dynamic router | [`controlled`](Self::controlled) |
#[must_use = "call start"]
pub struct Router {
    intake: Intake,
    table: RoutingTable,
    recipients: Option<Recipients>,
    tap: Option<Address>,
    service: Option<String>,
    store: Option<Arc<dyn TableStore>>,
    begins_blank: bool,
    layers: Layers,
}

impl Router {
    /// A router without rules.
    pub fn new(intake: impl Into<Intake>) -> Self {
        Self {
            intake: intake.into(),
            table: RoutingTable::default(),
            recipients: None,
            tap: None,
            service: None,
            store: None,
            begins_blank: false,
            layers: Layers::default(),
        }
    }

    /// A router that sends on the messages for which a condition holds, and drops and counts the
    /// rest. To send the rest elsewhere, set [`otherwise`](Self::otherwise).
    pub fn filter(intake: impl Into<Intake>, when: Condition, to: Route) -> Self {
        Self::new(intake).rule(Rule::new("filter", when, [to])).otherwise(Otherwise::Drop)
    }

    /// Adds a rule after those that are there.
    pub fn rule(mut self, rule: Rule) -> Self {
        self.table.rules.push(rule);
        self
    }

    /// What becomes of messages that no rule is for. Default: they are dead-lettered.
    pub fn otherwise(mut self, otherwise: Otherwise) -> Self {
        self.table.otherwise = otherwise;
        self
    }

    /// How many rules a message follows. Default: the first that holds.
    pub fn matching(mut self, matching: Matching) -> Self {
        self.table.matching = matching;
        self
    }

    /// Replaces rules, matching and what becomes of the rest, for a table that is read from a file.
    pub fn table(mut self, table: RoutingTable) -> Self {
        self.table = table;
        self
    }

    /// Puts a middleware around the routing, within those that were added before it. Each try of a
    /// message passes through all of them. A message that a middleware takes as done is sent
    /// nowhere but to the [tap](Self::tap).
    pub fn with(mut self, middleware: impl Middleware) -> Self {
        self.layers.push(middleware);
        self
    }

    /// Computes the recipients of each message in place of rules. A message without any goes where
    /// [`otherwise`](Self::otherwise) says; an error is treated as that of a handler, and a panic
    /// is caught. It is asked again on every try. It must not block, but for messages with bodies
    /// of more than 128 KiB, for which it runs on a thread of its own.
    pub fn recipients<F>(mut self, recipients: F) -> Self
    where
        F: Fn(&Inbound) -> Result<Vec<Address>, HandlerError> + Send + Sync + 'static,
    {
        self.recipients = Some(Arc::new(recipients));
        self
    }

    /// Sends a copy of each message that was dealt with to this address too, the message as it
    /// came, also of those that no rule wanted. The tap delays and fails nothing: at most 1,000
    /// copies and 16 MiB wait for the broker, and those that find no room or are not taken are
    /// dropped and [counted](super::FlowStats::tap_dropped).
    pub fn tap(mut self, address: Address) -> Self {
        self.tap = Some(address);
        self
    }

    /// Lets the rules be changed while the router runs: it serves
    /// [`ChangeRules`](super::ChangeRules) and [`ListRules`](super::ListRules) as the RPC service
    /// of this name. A message in hand follows the table that it began with.
    ///
    /// A router that has neither rules nor anything but the default for the rest takes no message
    /// before somebody has changed that: what waits in its queue is not dead-lettered for want of
    /// the rules that are still on their way. [`Flow::is_held`] tells. Once changed, a table
    /// without rules is one like others. See [`begin_blank`](Self::begin_blank).
    pub fn controlled(mut self, service: impl Into<String>) -> Self {
        self.service = Some(service.into());
        self
    }

    /// Where the changed table is kept, under the name of [`controlled`](Self::controlled). A table
    /// that is there at the start takes the place of the router's own. Default: nowhere, and a
    /// router that is started again begins with its own.
    pub fn store(mut self, store: Arc<dyn TableStore>) -> Self {
        self.store = Some(store);
        self
    }

    /// Begins without rules, where it is [controlled](Self::controlled): messages that come before
    /// the first rules are dead-lettered. Default: it waits for rules.
    pub fn begin_blank(mut self) -> Self {
        self.begins_blank = true;
        self
    }

    pub(crate) const fn intake(&self) -> &Intake {
        &self.intake
    }

    pub(crate) fn outline(&self, capabilities: &Capabilities) -> Result<Outline> {
        self.check(capabilities)?;
        let mut outline = self.intake.outline(false, capabilities);
        if let Some(service) = &self.service {
            let server = control::server(service, &self.intake.naming);
            outline.topology = outline.topology.and(server.topology(Outline::ID));
            outline.queues.push(server.describe().queue);
        }
        Ok(outline)
    }

    /// Declares the queues and their dead-letter queues, and begins to route. Where messages go is
    /// not declared.
    ///
    /// Cancellation safe: when the future is dropped, nothing is routed, and what was declared
    /// stays.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Invalid`] for a table that [`RoutingTable::check`] refuses, a router that has
    /// neither rules nor somewhere for the rest, or both rules and computed recipients, or that is
    /// controlled and computes its recipients, or has a store or begins blank and is not
    /// controlled; what the store fails with; and what [`Worker::start`](crate::Worker::start)
    /// fails with.
    pub async fn start(self, transport: &Arc<dyn Transport>) -> Result<Flow> {
        self.check(transport.capabilities())?;
        let Self { intake, table, recipients, tap, service, store, begins_blank, layers } = self;
        let table = match (&store, &service) {
            (Some(store), Some(service)) => stored(&**store, service).await?.unwrap_or(table),
            _ => table,
        };
        let publisher = transport.publisher(PublisherOptions::default()).await?;
        let counters = Arc::new(FlowCounters::default());
        let (tap, inlet) = match tap {
            Some(address) => {
                // Its own, so that its copies take no room of the others.
                let publisher = transport.publisher(PublisherOptions::default()).await?;
                let (tap, inlet) = Tap::start(address, publisher, Arc::clone(&counters));
                (Some(tap), Some(inlet))
            }
            None => (None, None),
        };
        let (changes, table) = watch::channel(Arc::new(table));
        let naming = intake.naming.clone();
        let is_held = service.is_some() && !begins_blank && table.borrow().is_blank();
        let begin = is_held.then(|| first_rules(table.clone()));
        let is_ruled = recipients.is_none();
        let process = Forwarding {
            table: table.clone(),
            ways: Arc::new(Ways { recipients, naming: naming.clone() }),
            tap: inlet,
            limits: intake.limits,
            layers,
            env: transport.env().clone(),
            retrying: intake.retrying(transport, intake.by(transport.capabilities())),
            copies: Copies {
                publisher: Arc::clone(&publisher),
                max_hops: intake.max_hops,
                counters: Arc::clone(&counters),
            },
        };
        let running = intake.start(transport, &publisher, process, false, begin).await?;
        let mut flow = Flow::new(running, counters, transport.env().clone()).tapped(tap);
        if is_ruled {
            flow = flow.showing(table);
        }
        if let Some(service) = service {
            if is_held {
                tracing::warn!(
                    router = service,
                    "it has no rules yet, and takes nothing until then"
                );
            }
            let turn = AsyncMutex::default();
            let control = Control { service, store, table: changes, turn };
            flow = flow.controlled(control.start(transport, &naming).await?);
        }
        Ok(flow)
    }

    fn check(&self, capabilities: &Capabilities) -> Result<()> {
        self.intake.check(capabilities)?;
        self.layers.check("start")?;
        self.table.check()?;
        if let Some(address) = &self.tap {
            address.check("start")?;
        }
        let computes = self.recipients.is_some();
        let has_way = computes
            || self.service.is_some()
            || !self.table.rules.is_empty()
            || matches!(self.table.otherwise, Otherwise::Send(_));
        let why = if !has_way {
            "it has no rules, and sends nothing anywhere"
        } else if computes && !self.table.rules.is_empty() {
            "it has rules and computes its recipients; it takes one of both"
        } else if computes && self.service.is_some() {
            "it computes its recipients, and has no rules that could be changed"
        } else if self.store.is_some() && self.service.is_none() {
            "it has a store for changes and nobody can change it; call controlled"
        } else if self.begins_blank && self.service.is_none() {
            "it begins without rules and nobody can give it some; call controlled"
        } else {
            return Ok(());
        };
        let error =
            Error::new(ErrorKind::Invalid, "start", format!("the router is not sound: {why}"));
        Err(error.with_context("queues", self.intake.queues.join(", ")))
    }
}

/// Waits until somebody has changed a table that says nothing.
fn first_rules(mut table: watch::Receiver<Arc<RoutingTable>>) -> Begin {
    let changed = async move { table.wait_for(|table| !table.is_blank()).await.is_ok() };
    changed.boxed().shared()
}

async fn stored(store: &dyn TableStore, service: &str) -> Result<Option<RoutingTable>> {
    let table = store.load(service).await.map_err(|error| {
        Error::new(
            ErrorKind::Unavailable,
            "start",
            format!("the stored table is not known: {error}"),
        )
        .with_context("router", service.to_owned())
    })?;
    if let Some(table) = &table {
        table.check()?;
    }
    Ok(table)
}

impl fmt::Debug for Router {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Router")
            .field("intake", &self.intake)
            .field("table", &self.table)
            .field("computes", &self.recipients.is_some())
            .field("tap", &self.tap)
            .field("service", &self.service)
            .finish_non_exhaustive()
    }
}
