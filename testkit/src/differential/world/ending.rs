//! The end of a program: everything is received and acknowledged on both sides, and taken away.

use postrider_core::{Exchange, Topology};
use tokio::time::sleep;

use super::{AT_ONCE, World};
use crate::differential::{
    observe::{Seen, SeenDelivery},
    side::{named_topology, receive},
};

impl World<'_> {
    /// Acknowledges all that is held, and receives and acknowledges all that is left.
    pub(super) async fn drain(&mut self) -> Result<(), String> {
        self.ack_held().await;
        let mut names: Vec<_> = self.queues.keys().cloned().collect();
        names.sort();
        for queue in names {
            if !self.readers.iter().any(|reader| reader.queue == queue) {
                let opened = self.consume(0, &queue, 10, false).await;
                if let Some((reference, subject)) = opened {
                    self.compare(&reference, &subject)?;
                }
            }
            while let Some(reader) = self.readers.iter().position(|reader| reader.queue == queue) {
                loop {
                    let (reference, subject) = self.receive(reader, 1).await;
                    self.compare(&reference, &subject)?;
                    self.ack_held().await;
                    if reference == Seen::Deliveries(Vec::new()) {
                        break;
                    }
                }
                let mut reader = self.readers.remove(reader);
                let (more, _) = receive(&mut reader.subject, AT_ONCE, &self.prefix).await;
                let expected =
                    if reader.ended { SeenDelivery::End(None) } else { SeenDelivery::Nothing };
                if more != expected {
                    return Err(format!("more from '{queue}' than the reference has: {more:?}"));
                }
                self.drop_reader(reader).await;
            }
        }
        self.agree().await
    }

    async fn ack_held(&mut self) {
        for held in std::mem::take(&mut self.held) {
            held.reference.ack();
            held.subject.ack();
        }
        self.leaving.clear();
        sleep(self.pace).await;
    }

    pub(super) async fn clean_up(&mut self) {
        self.readers.clear();
        self.held.clear();
        let mut topology = Topology::new();
        for queue in self.queues.values() {
            topology = topology.queue(queue.clone());
        }
        for exchange in &self.exchanges {
            topology = topology.exchange(Exchange::direct(exchange.clone()));
        }
        let topology = named_topology(&self.prefix, &topology);
        tokio::join!(self.reference.remove(0, &topology), self.subject.remove(0, &topology));
    }
}
