//! What a router does with one message.
//!
//! Looking for its ways may cost much: bodies are decoded, and each rule may search in them. On the
//! thread that serves others too, only so much is done; what costs more begins anew on a thread of
//! the blocking pool, and has an end there too, because such a thread cannot be given up.

use std::{panic::resume_unwind, sync::Arc};

use postrider_core::{Address, DeliveryInfo, Env, Envelope};
use tokio::{sync::watch, task::spawn_blocking};
use tokio_util::sync::CancellationToken;

use super::{copies::Copies, inbound::Inbound, table::RoutingTable, tap::TapInlet};
use crate::{
    codec::Limits,
    consuming::{Disposition, Outcome, Process, catch_panic},
    handler::{Context, HandlerError, codes},
    middleware::Layers,
    naming::Naming,
    resilience::Retrying,
};

/// How many steps are done at once: a millisecond or so at most.
const AT_ONCE: usize = 128 * 1024;

/// How many steps are done at most beyond decoding the body: parts of a second.
const AT_MOST: usize = 256 * 1024 * 1024;

pub(super) type Recipients =
    Arc<dyn Fn(&Inbound) -> Result<Vec<Address>, HandlerError> + Send + Sync>;

/// How it is known where a message goes, beside the table.
pub(super) struct Ways {
    pub(super) recipients: Option<Recipients>,
    pub(super) naming: Naming,
}

impl Ways {
    fn choose(
        &self,
        table: &RoutingTable,
        inbound: &Inbound,
    ) -> Result<Vec<Address>, HandlerError> {
        let Some(recipients) = &self.recipients else {
            return table.choose(inbound, &self.naming);
        };
        let mut chosen = Vec::new();
        for address in recipients(inbound)? {
            if !chosen.contains(&address) {
                chosen.push(address);
            }
        }
        if chosen.is_empty() {
            table.otherwise.choose(&mut chosen, inbound, &self.naming)?;
        }
        Ok(chosen)
    }
}

pub(super) struct Forwarding {
    pub(super) table: watch::Receiver<Arc<RoutingTable>>,
    pub(super) ways: Arc<Ways>,
    pub(super) tap: Option<TapInlet>,
    pub(super) limits: Limits,
    pub(super) layers: Layers,
    pub(super) env: Env,
    pub(super) retrying: Retrying,
    pub(super) copies: Copies,
}

impl Process for Forwarding {
    async fn process(
        &self,
        envelope: &Arc<Envelope>,
        info: &DeliveryInfo,
        cancellation: &CancellationToken,
    ) -> Disposition {
        let inbound = Arc::new(Inbound::new(envelope, info, self.limits));
        let context = |given_up: &CancellationToken| {
            Context::new(Arc::clone(envelope), info.clone(), self.env.clone(), given_up)
        };
        let attempt = |_context| catch_panic(self.forward(&inbound));
        let trying = self.retrying.run_handler(info, cancellation, &self.layers, context, attempt);
        let disposition = trying.await;
        if let (Disposition::Ack, Some(tap)) = (&disposition, &self.tap) {
            tap.copy(envelope);
        }
        disposition
    }

    fn stopping(&self) {
        self.layers.stop();
    }

    fn settled(&self, envelope: &Envelope, info: &DeliveryInfo, outcome: Outcome) {
        self.layers.settled(envelope, info, outcome);
    }
}

impl Forwarding {
    async fn forward(&self, inbound: &Arc<Inbound>) -> Result<(), HandlerError> {
        let addresses = self.choose(inbound).await?;
        if addresses.is_empty() {
            self.copies.counters.dropped.add(1);
            return Ok(());
        }
        self.copies.forward(inbound, addresses).await
    }

    async fn choose(&self, inbound: &Arc<Inbound>) -> Result<Vec<Address>, HandlerError> {
        let table = Arc::clone(&self.table.borrow());
        let mut most = u64::MAX;
        // What a program of its own costs is not known before, and it is not asked twice.
        if self.ways.recipients.is_none() {
            inbound.allow(AT_ONCE as u64);
            most = self.limits.max_body_bytes.saturating_add(AT_MOST) as u64;
        }
        if self.ways.recipients.is_none() || inbound.message().body.len() <= AT_ONCE {
            match self.ways.choose(&table, inbound) {
                Err(error) if error.code() == codes::TOO_COSTLY => {}
                chosen => return chosen,
            }
        }
        let (ways, inbound) = (Arc::clone(&self.ways), Arc::clone(inbound));
        let choosing = spawn_blocking(move || {
            inbound.allow(most);
            ways.choose(&table, &inbound)
        });
        choosing.await.unwrap_or_else(|failed| match failed.try_into_panic() {
            Ok(panic) => resume_unwind(panic),
            // The runtime ends.
            Err(_) => Err(HandlerError::given_back()),
        })
    }
}
