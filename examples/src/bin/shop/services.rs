//! Starts the services, each on a connection of its own, and stops them.

use std::{future::poll_fn, pin::pin, sync::Arc, task::Poll, time::Duration};

use postrider::{Env, Running, Transport};

use crate::{
    contract::Order,
    inventory, notification,
    order::{self, OrderDesk},
    payment, sales,
    setup::Setup,
    shipping,
};

/// One connection for each service, as if each were a process.
pub(crate) struct Connections {
    pub(crate) order: Arc<dyn Transport>,
    pub(crate) inventory: Arc<dyn Transport>,
    pub(crate) payment: Arc<dyn Transport>,
    pub(crate) shipping: Arc<dyn Transport>,
    pub(crate) notification: Arc<dyn Transport>,
    pub(crate) sales: Arc<dyn Transport>,
}

/// All services at work.
pub(crate) struct Services {
    pub(crate) desk: OrderDesk,
    /// In the order in which they stop: who calls or tells others goes first.
    running: Vec<Running>,
    connections: Connections,
}

impl Services {
    /// Starts every service for `orders`, none of which is placed yet.
    pub(crate) async fn start(
        connections: Connections,
        setup: &Setup,
        orders: &[Order],
    ) -> postrider::Result<Self> {
        // Who listens starts before who speaks: an event that no queue waits for is gone.
        let inventory = inventory::start(&connections.inventory, setup).await?;
        let payment = payment::start(&connections.payment, setup).await?;
        let sales = sales::start(&connections.sales, setup, orders).await?;
        let notification = notification::start(&connections.notification, setup).await?;
        let shipping = shipping::start(&connections.shipping, setup).await?;
        let (desk, order) = order::start(&connections.order, setup).await?;

        let mut running = vec![order, shipping];
        running.extend(notification);
        running.extend(sales);
        running.extend([inventory, payment]);
        Ok(Self { desk, running, connections })
    }

    /// Waits until one of them ends by itself, and says which and why.
    pub(crate) async fn ended(&self) -> String {
        let mut watches: Vec<_> = self
            .running
            .iter()
            .map(|one| Box::pin(async { (one.queue(), one.ended().await) }))
            .collect();
        let first = poll_fn(|context| {
            let ended = watches.iter_mut().map(|watch| watch.as_mut().poll(context));
            ended.into_iter().find(Poll::is_ready).unwrap_or(Poll::Pending)
        });
        match pin!(first).await {
            (queue, Ok(())) => format!("nobody takes from queue '{queue}' any more"),
            (queue, Err(error)) => format!("queue '{queue}' is not consumed any more: {error}"),
        }
    }

    /// The queues with messages that were given up, for people who look for what is missing.
    pub(crate) fn given_up(&self) -> String {
        let given_up: Vec<_> = self
            .running
            .iter()
            .map(|one| (one.queue(), one.stats().dead_lettered))
            .filter(|(_, messages)| *messages > 0)
            .map(|(queue, messages)| format!("; {messages} given up in queue '{queue}'"))
            .collect();
        given_up.concat()
    }

    /// Lets every handler finish what it has in hand, and closes the connections. Returns how many
    /// messages went back to their queues because the deadline came first.
    pub(crate) async fn stop(self, env: &Env, deadline: Duration) -> u64 {
        let end = env.now() + deadline;
        let left = || end.saturating_duration_since(env.now());
        let mut released = 0;
        for running in self.running {
            released += running.stop(left()).await.released;
        }
        drop(self.desk);
        let Connections { order, inventory, payment, shipping, notification, sales } =
            self.connections;
        for connection in [order, shipping, notification, sales, inventory, payment] {
            if let Err(error) = connection.close(left()).await {
                eprintln!("shop: {error}");
            }
        }
        released
    }
}
