//! The payment service: charges customers.

use std::sync::Arc;

use postrider::{Context, HandlerError, RpcServer, Running, Transport};

use crate::{book::Book, contract::Charge, setup::Setup, units::Cents};

/// The most that one order may cost.
pub(crate) const MOST: Cents = Cents(30_000);

#[derive(Clone)]
struct Payment {
    /// Whether the customer of an order was charged.
    charges: Arc<Book<bool>>,
    setup: Setup,
}

/// Starts the service.
pub(crate) async fn start(
    transport: &Arc<dyn Transport>,
    setup: &Setup,
) -> postrider::Result<Running> {
    let charges = Arc::new(Book::new(setup.board.clone()));
    let payment = Payment { charges, setup: setup.clone() };
    RpcServer::new("payment")
        .method(move |request: Charge, _: Context| payment.clone().charge(request))
        .start(transport)
        .await
}

impl Payment {
    async fn charge(self, request: Charge) -> Result<(), HandlerError> {
        let Charge { order, price, .. } = request;
        self.setup.check(&order)?;
        let charged = self.charges.once(&order, || {
            let accepted = price <= MOST;
            self.setup.board.note(|figures| match accepted {
                true => figures.revenue += price,
                false => figures.refused_by_payment += 1,
            });
            accepted
        });
        if charged {
            return Ok(());
        }
        Err(HandlerError::rejected("OVER_LIMIT", format!("{price} is over our limit of {MOST}")))
    }
}
