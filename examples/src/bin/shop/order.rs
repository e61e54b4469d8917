//! The order service: takes orders and leads each of them to its end.

use std::sync::Arc;

use postrider::{
    CallOptions, Context, EventBus, HandlerError, PublishError, Request, RpcClient, RpcError,
    Running, Subscription, Transport,
};

use crate::{
    book::Book,
    contract::{Charge, Order, OrderCreated, OrderPaid, OrderRefused, Release, Reserve},
    setup::Setup,
};

/// How many orders it works on at once.
const AT_ONCE: usize = 64;

/// Where orders are placed.
#[derive(Debug, Clone)]
pub(crate) struct OrderDesk {
    bus: EventBus,
    services: RpcClient,
    placed: Arc<Book<()>>,
    settled: Arc<Book<()>>,
    setup: Setup,
}

/// How an order ends.
enum Outcome {
    Paid,
    Refused { by: &'static str, reason: String },
}

/// Starts the service.
pub(crate) async fn start(
    transport: &Arc<dyn Transport>,
    setup: &Setup,
) -> postrider::Result<(OrderDesk, Running)> {
    let events = EventBus::builder(transport).codec(setup.codec).source("order");
    let client = RpcClient::builder(transport).codec(setup.codec).name("order");
    let desk = OrderDesk {
        bus: events.connect().await?,
        services: client.connect().await?,
        placed: Arc::new(Book::new(setup.board.clone())),
        settled: Arc::new(Book::new(setup.board.clone())),
        setup: setup.clone(),
    };
    // The service works on orders from its own event: an order that was taken is then worked on
    // even if the process dies right after it took it.
    let handling = desk.clone();
    let subscription = Subscription::durable("order", "incoming")
        .on(move |event: OrderCreated, context| handling.clone().settle(event.order, context))
        .concurrency(AT_ONCE);
    let running = desk.bus.subscribe(subscription).await?;
    Ok((desk, running))
}

impl OrderDesk {
    /// Takes orders. After an error some of them may be taken; placing all again does no harm.
    pub(crate) async fn place(&self, orders: &[Order]) -> Result<(), PublishError> {
        let events: Vec<_> =
            orders.iter().map(|order| OrderCreated { order: order.clone() }).collect();
        self.bus.publish_all(&events).await?;
        for order in orders.iter().filter(|order| !self.placed.knows(&order.id)) {
            self.placed.once(&order.id, || {
                self.setup.board.note(|figures| figures.events_published += 1);
            });
        }
        Ok(())
    }

    /// Leads an order to its end. Any error that `?` passes on makes the framework try again later,
    /// which is safe: inventory and payment know an order that they have seen.
    async fn settle(self, order: Order, context: Context) -> Result<(), HandlerError> {
        if !self.setup.is_ours(&order.id) {
            return Ok(());
        }
        if self.settled.knows(&order.id) {
            self.setup.board.note(|figures| figures.duplicates += 1);
            return Ok(());
        }
        let id = order.id.clone();
        let (outcome, calls) = self.outcome(&order, &context).await?;
        match outcome {
            Outcome::Paid => {
                self.bus.publish_from(&context, &OrderPaid { order }).await?;
            }
            Outcome::Refused { by, reason } => {
                let refused = OrderRefused { order, by: by.to_owned(), reason };
                self.bus.publish_from(&context, &refused).await?;
            }
        }
        // Only now, when the broker has the event, is there nothing left to do for this order.
        self.settled.once(&id, || {
            self.setup.board.note(|figures| {
                figures.events_published += 1;
                figures.rpc_calls += calls;
            });
        });
        Ok(())
    }

    /// How an order ends, and how many calls that takes.
    async fn outcome(
        &self,
        order: &Order,
        context: &Context,
    ) -> Result<(Outcome, u64), HandlerError> {
        let reserve = Reserve { order: order.id.clone(), cds: order.cds };
        if let Err(reason) = self.ask("inventory", &reserve, context).await? {
            return Ok((Outcome::Refused { by: "inventory", reason }, 1));
        }
        let charge =
            Charge { order: order.id.clone(), customer: order.customer, price: order.price };
        if let Err(reason) = self.ask("payment", &charge, context).await? {
            let release = Release { order: order.id.clone() };
            self.call("inventory", &release, context).await?;
            return Ok((Outcome::Refused { by: "payment", reason }, 3));
        }
        Ok((Outcome::Paid, 2))
    }

    /// Calls a service that may say no. A no is an answer, the inner result; the outer one fails
    /// when there is no answer.
    async fn ask<R: Request>(
        &self,
        service: &str,
        request: &R,
        context: &Context,
    ) -> Result<Result<R::Reply, String>, RpcError> {
        match self.call(service, request, context).await {
            Ok(reply) => Ok(Ok(reply)),
            Err(RpcError::Rejected { message, .. }) => Ok(Err(message)),
            Err(error) => Err(error),
        }
    }

    async fn call<R: Request>(
        &self,
        service: &str,
        request: &R,
        context: &Context,
    ) -> Result<R::Reply, RpcError> {
        self.services.call_with(service, request, CallOptions::default().within(context)).await
    }
}
