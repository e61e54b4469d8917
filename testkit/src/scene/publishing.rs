use std::sync::Arc;

use bytes::Bytes;
use postrider_core::{Address, Confirm, Envelope, Message, Publisher, PublisherOptions, Verdict};

use super::Scene;

/// Publishing that has to succeed.
impl Scene {
    /// The behaviour's own publisher on its first connection.
    ///
    /// # Panics
    ///
    /// When the transport gives none.
    pub async fn publisher(&self) -> Arc<dyn Publisher> {
        self.0
            .publisher
            .get_or_init(|| self.publisher_with(PublisherOptions::default()))
            .await
            .clone()
    }

    /// A new publisher on the first connection.
    ///
    /// # Panics
    ///
    /// When the transport gives none.
    pub async fn publisher_with(&self, options: PublisherOptions) -> Arc<dyn Publisher> {
        let publisher = self.transport().publisher(options).await;
        publisher.expect("a publisher with valid options")
    }

    /// Publishes bodies to a queue, pipelined, and sees every one accepted.
    ///
    /// # Panics
    ///
    /// When one is not.
    pub async fn publish<B: Into<Bytes>>(&self, queue: &str, bodies: impl IntoIterator<Item = B>) {
        let address = Address::queue(queue.to_owned());
        let envelopes =
            bodies.into_iter().map(|body| Envelope::new(address.clone(), Message::new(body)));
        self.publish_envelopes(envelopes).await;
    }

    /// Publishes one message to a queue and sees it accepted.
    ///
    /// # Panics
    ///
    /// When it is not.
    pub async fn publish_message(&self, queue: &str, message: Message) {
        self.publish_envelopes([Envelope::new(Address::queue(queue.to_owned()), message)]).await;
    }

    /// Publishes envelopes, pipelined, and sees every one accepted.
    ///
    /// # Panics
    ///
    /// When one is not.
    pub async fn publish_envelopes(&self, envelopes: impl IntoIterator<Item = Envelope>) {
        let publisher = self.publisher().await;
        let mut confirms = Vec::new();
        for envelope in envelopes {
            let address = envelope.address.clone();
            confirms.push((address, self.send(&*publisher, envelope).await));
        }
        for (address, confirm) in confirms {
            let verdict = self.verdict(confirm).await;
            assert_eq!(verdict, Verdict::Accepted, "a publish to {address} must be stored");
        }
    }

    /// Sends and expects that it could be sent.
    ///
    /// # Panics
    ///
    /// When it could not.
    pub async fn send(&self, publisher: &dyn Publisher, envelope: Envelope) -> Confirm {
        let address = envelope.address.clone();
        let sent = self.soon("a send", publisher.send(envelope)).await;
        sent.unwrap_or_else(|error| panic!("a send to {address} must succeed: {error}"))
    }

    /// The verdict of a confirm.
    ///
    /// # Panics
    ///
    /// When it does not come.
    pub async fn verdict(&self, confirm: Confirm) -> Verdict {
        self.soon("a verdict", confirm).await
    }
}
