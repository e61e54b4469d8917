//! Memory of messages that are done with.

use std::sync::Arc;

use postrider_core::Envelope;

/// Acknowledged messages whose memory publishers may use again.
///
/// Memory that one thread allocates and another frees makes both wait for the allocator; at a
/// million messages a second that costs more than all the rest.
#[derive(Debug, Default)]
pub(crate) struct Spent {
    envelopes: Vec<Arc<Envelope>>,
    bytes: usize,
}

impl Spent {
    const MOST: usize = 512;
    const MOST_BYTES: usize = 256 * 1024;

    pub(crate) fn add(&mut self, envelope: Arc<Envelope>) {
        let bytes = self.bytes + envelope.message.body.len();
        if self.envelopes.len() < Self::MOST && bytes <= Self::MOST_BYTES {
            self.envelopes.push(envelope);
            self.bytes = bytes;
        }
    }

    /// Gives them away, for their memory.
    pub(crate) fn take(&mut self) -> Vec<Arc<Envelope>> {
        self.bytes = 0;
        std::mem::take(&mut self.envelopes)
    }
}
