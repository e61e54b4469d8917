//! The shipping service: sends what was paid.

use std::{mem, sync::Arc};

use postrider::{Context, EventBus, HandlerError, Running, Subscription, Transport};

use crate::{
    book::Book,
    contract::{Order, OrderPaid, OrderShipped},
    setup::Setup,
};

#[derive(Clone)]
struct Shipping {
    bus: EventBus,
    shipped: Arc<Book<Shipment>>,
    setup: Setup,
}

/// Whether the others were told of an order that was shipped.
#[derive(Debug, Clone, Copy)]
enum Shipment {
    Untold,
    Told,
}

/// Starts the service.
pub(crate) async fn start(
    transport: &Arc<dyn Transport>,
    setup: &Setup,
) -> postrider::Result<Running> {
    let events = EventBus::builder(transport).codec(setup.codec).source("shipping");
    let bus = events.connect().await?;
    let shipped = Arc::new(Book::new(setup.board.clone()));
    let shipping = Shipping { bus: bus.clone(), shipped, setup: setup.clone() };
    let subscription = Subscription::durable("shipping", "paid")
        .on(move |event: OrderPaid, context| shipping.clone().ship(event.order, context));
    bus.subscribe(subscription).await
}

impl Shipping {
    async fn ship(self, order: Order, context: Context) -> Result<(), HandlerError> {
        if !self.setup.is_ours(&order.id) {
            return Ok(());
        }
        self.shipped.once(&order.id, || {
            self.setup.board.note(|figures| {
                figures.completed += 1;
                figures.cds_shipped += u64::from(order.cds);
            });
            Shipment::Untold
        });
        // Every time, also for an order that is shipped already: the try before this one may have
        // failed at just this point.
        let id = order.id.clone();
        self.bus.publish_from(&context, &OrderShipped { order }).await?;
        self.shipped.change(&id, |shipment| {
            if let Shipment::Untold = mem::replace(shipment, Shipment::Told) {
                self.setup.board.note(|figures| figures.events_published += 1);
            }
        });
        Ok(())
    }
}
