//! Copies of messages on their way, and what they carry.

use std::{collections::VecDeque, sync::Arc};

use postrider_core::{Address, Confirm, Envelope, Publisher, Result};

use super::{flow::FlowCounters, inbound::Inbound};
use crate::{
    handler::{HandlerError, codes},
    headers,
};

/// How many copies may be without a verdict at once.
const WINDOW: usize = 256;

/// Sends copies, and is done when the broker has them all.
#[derive(Debug)]
pub(super) struct Copies {
    pub(super) publisher: Arc<dyn Publisher>,
    pub(super) max_hops: u32,
    pub(super) counters: Arc<FlowCounters>,
}

impl Copies {
    /// The header of everything that is sent because of this message. A message that came through
    /// too many routers goes in a circle.
    pub(super) fn next_hop(&self, inbound: &Inbound) -> std::result::Result<i64, HandlerError> {
        let hops = inbound.hops();
        if hops < i64::from(self.max_hops) {
            return Ok(hops + 1);
        }
        let why = format!("it came through {hops} routers, which go in a circle or are too many");
        Err(HandlerError::unsupported(why).with_code(codes::TOO_MANY_HOPS))
    }

    /// Sends the message itself on to each address.
    ///
    /// When the future is dropped or fails, some may have their copies; the next try sends all
    /// again.
    pub(super) async fn forward(
        &self,
        inbound: &Inbound,
        addresses: Vec<Address>,
    ) -> std::result::Result<(), HandlerError> {
        let hop = self.next_hop(inbound)?;
        let copy = |address| {
            let mut message = inbound.message().clone();
            message.headers.set(headers::HOPS, hop);
            Envelope::new(address, message)
        };
        Ok(self.send(addresses.into_iter().map(copy)).await?)
    }

    /// Sends several and waits for all verdicts. On a failure nothing more is sent, and what is on
    /// its way is waited for.
    pub(super) async fn send(
        &self,
        envelopes: impl Iterator<Item = Envelope> + Send,
    ) -> Result<()> {
        let mut outstanding = VecDeque::new();
        let mut failed = None;
        for envelope in envelopes {
            if outstanding.len() >= WINDOW
                && let Some(oldest) = outstanding.pop_front()
                && let Err(error) = self.verdict(oldest).await
            {
                failed = Some(error);
                break;
            }
            let address = envelope.address.clone();
            match self.publisher.send(envelope).await {
                Ok(confirm) => outstanding.push_back((address, confirm)),
                Err(error) => {
                    failed = Some(error.with_context("address", address.to_string()));
                    break;
                }
            }
        }
        for sent in outstanding {
            if let Err(error) = self.verdict(sent).await {
                failed.get_or_insert(error);
            }
        }
        failed.map_or(Ok(()), Err)
    }

    async fn verdict(&self, (address, confirm): (Address, Confirm)) -> Result<()> {
        let verdict = confirm.await.into_result();
        verdict.map_err(|error| error.with_context("address", address.to_string()))?;
        self.counters.sent.add(1);
        Ok(())
    }
}
