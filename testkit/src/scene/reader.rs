use std::fmt;

use postrider_core::{Consumer, Delivery, Error};
use tokio::time;

use super::Scene;

/// A consumer whose reads say what was missing.
pub struct Reader {
    scene: Scene,
    queue: String,
    consumer: Consumer,
}

impl Reader {
    pub(crate) fn new(scene: Scene, queue: String, consumer: Consumer) -> Self {
        Self { scene, queue, consumer }
    }

    /// The next delivery.
    ///
    /// # Panics
    ///
    /// When none comes, or the consumer ends.
    pub async fn next(&mut self) -> Delivery {
        let waiting = format!("a delivery from '{}'", self.queue);
        match self.scene.soon(&waiting, self.consumer.recv()).await {
            Some(Ok(delivery)) => delivery,
            Some(Err(error)) => panic!("the consumer of '{}' failed: {error}", self.queue),
            None => panic!("the consumer of '{}' ended", self.queue),
        }
    }

    /// The next `count` deliveries, unsettled.
    ///
    /// # Panics
    ///
    /// When fewer come.
    pub async fn take(&mut self, count: usize) -> Vec<Delivery> {
        let mut deliveries = Vec::with_capacity(count);
        while deliveries.len() < count {
            deliveries.push(self.next().await);
        }
        deliveries
    }

    /// The bodies of the next `count` deliveries, each acked as it comes.
    ///
    /// # Panics
    ///
    /// When fewer come.
    pub async fn bodies(&mut self, count: usize) -> Vec<String> {
        let mut bodies = Vec::with_capacity(count);
        while bodies.len() < count {
            let delivery = self.next().await;
            bodies.push(text(&delivery));
            delivery.ack();
        }
        bodies
    }

    /// The delivery with this body, after a loss: what was acked just before it may come once more,
    /// since its ack may have gone with the connection, and is acked again.
    ///
    /// # Panics
    ///
    /// When it does not come, or something comes before it that was never delivered.
    pub async fn after_loss(&mut self, body: &str) -> Delivery {
        loop {
            let delivery = self.next().await;
            let came = text(&delivery);
            if came == body {
                return delivery;
            }
            assert!(delivery.info().redelivered, "'{came}' comes before '{body}'");
            delivery.ack();
        }
    }

    /// Sees that nothing comes for a while.
    ///
    /// # Panics
    ///
    /// When something comes, or the consumer ends.
    pub async fn is_silent(&mut self) {
        if let Ok(came) = time::timeout(self.scene.quiet(), self.consumer.recv()).await {
            let came = came.map(|result| result.map(|delivery| text(&delivery)));
            panic!("nothing may come from '{}' now: {came:?}", self.queue);
        }
    }

    /// Sees that the consumer ends, and gives the error that it ended with.
    ///
    /// # Panics
    ///
    /// When it goes on.
    pub async fn ends(&mut self) -> Option<Error> {
        let mut last = None;
        let waiting = format!("the end of the consumer of '{}'", self.queue);
        while let Some(came) = self.scene.soon(&waiting, self.consumer.recv()).await {
            match came {
                Ok(delivery) => delivery.release(),
                Err(error) => last = Some(error),
            }
        }
        last
    }

    /// The consumer itself.
    pub fn consumer(&mut self) -> &mut Consumer {
        &mut self.consumer
    }
}

impl fmt::Debug for Reader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reader").field("queue", &self.queue).finish_non_exhaustive()
    }
}

/// The body as text.
pub(crate) fn text(delivery: &Delivery) -> String {
    String::from_utf8_lossy(&delivery.message().body).into_owned()
}
