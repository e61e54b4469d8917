//! What every service is told at its start.

use postrider::{Codec, HandlerError};

use crate::{book::Board, contract::OrderId};

/// The settings of a run.
#[derive(Debug, Clone)]
pub(crate) struct Setup {
    /// The name of this run, unique among all that ever used the broker.
    pub(crate) run: String,
    /// How messages are encoded. They are decoded by what they say they are.
    pub(crate) codec: Codec,
    pub(crate) board: Board,
}

impl Setup {
    /// Whether an order is of this run. One that is not was left at the broker by a run that was
    /// cut short; it is taken off the queue and changes nothing.
    pub(crate) fn is_ours(&self, order: &OrderId) -> bool {
        let ours = order.is_of(&self.run);
        if !ours {
            self.board.note(|figures| figures.left_over += 1);
        }
        ours
    }

    /// The same for a request, which must be answered: an order of another run is not known here.
    pub(crate) fn check(&self, order: &OrderId) -> Result<(), HandlerError> {
        match self.is_ours(order) {
            true => Ok(()),
            false => Err(HandlerError::not_found(format!("there is no order {order}"))),
        }
    }
}
