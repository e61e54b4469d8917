//! The inventory service: reserves CDs for orders and takes them back.

use std::sync::Arc;

use postrider::{Context, HandlerError, RpcServer, Running, Transport};

use crate::{
    book::Book,
    contract::{Release, Reserve},
    setup::Setup,
};

/// The most CDs that one order gets.
pub(crate) const MOST_CDS: u32 = 20;

#[derive(Clone)]
struct Inventory {
    reservations: Arc<Book<Reservation>>,
    setup: Setup,
}

/// A reservation that was released stays in the book, so that a request to reserve that comes
/// again late does not take the CDs a second time.
#[derive(Debug, Clone, Copy)]
enum Reservation {
    Held { cds: u32 },
    Released,
    Refused,
}

/// Starts the service.
pub(crate) async fn start(
    transport: &Arc<dyn Transport>,
    setup: &Setup,
) -> postrider::Result<Running> {
    let reservations = Arc::new(Book::new(setup.board.clone()));
    let reserving = Inventory { reservations, setup: setup.clone() };
    let releasing = reserving.clone();
    RpcServer::new("inventory")
        .method(move |request: Reserve, _: Context| reserving.clone().reserve(request))
        .method(move |request: Release, _: Context| releasing.clone().release(request))
        .start(transport)
        .await
}

impl Inventory {
    async fn reserve(self, request: Reserve) -> Result<(), HandlerError> {
        let Reserve { order, cds } = request;
        self.setup.check(&order)?;
        let reservation = self.reservations.once(&order, || {
            if cds > MOST_CDS {
                self.setup.board.note(|figures| figures.refused_by_inventory += 1);
                return Reservation::Refused;
            }
            self.setup.board.note(|figures| figures.cds_reserved += u64::from(cds));
            Reservation::Held { cds }
        });
        match reservation {
            Reservation::Held { .. } | Reservation::Released => Ok(()),
            Reservation::Refused => Err(HandlerError::rejected(
                "TOO_MANY_CDS",
                format!("{cds} CDs in one order; we sell at most {MOST_CDS}"),
            )),
        }
    }

    async fn release(self, request: Release) -> Result<(), HandlerError> {
        self.setup.check(&request.order)?;
        self.reservations.change(&request.order, |reservation| match *reservation {
            Reservation::Held { cds } => {
                *reservation = Reservation::Released;
                self.setup.board.note(|figures| figures.cds_reserved -= u64::from(cds));
            }
            Reservation::Released | Reservation::Refused => {
                self.setup.board.note(|figures| figures.duplicates += 1);
            }
        });
        Ok(())
    }
}
