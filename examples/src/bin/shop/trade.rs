//! Places the orders and waits until everything that they cause has happened.

use std::time::Duration;

use indicatif::ProgressBar;
use postrider::{Env, PublishError};
use tokio::time::{sleep, timeout_at};

use crate::{book::Figures, contract::Order, services::Services, setup::Setup, units::grouped};

/// How many orders may be under way at once, from the moment they are placed until their e-mail is
/// sent. It bounds what waits in every queue.
const IN_FLIGHT: u64 = 64;

/// How long nothing may happen before something must be wrong.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// A run in hand.
pub(crate) struct Trade<'a> {
    pub(crate) services: &'a Services,
    pub(crate) setup: &'a Setup,
    pub(crate) env: &'a Env,
    pub(crate) orders: &'a [Order],
    pub(crate) days: u64,
    pub(crate) patience: Duration,
}

impl Trade<'_> {
    /// Runs to the end, or until nothing happens any more.
    pub(crate) async fn run(self, bar: &ProgressBar) -> Result<(), String> {
        let mut board = self.setup.board.watch();
        let mut waiting = self.orders;
        let mut placed = 0;
        let mut progress = (0, 0);
        let mut patience_ends = self.env.now() + self.patience;
        loop {
            let figures = board.borrow_and_update().clone();
            bar.set_position(figures.emails_sent);
            if figures.are_complete(self.orders.len() as u64, self.days) {
                return Ok(());
            }
            let happened = figures.settled()
                + figures.emails_sent
                + figures.reports
                + figures.events_published;
            if progress != (placed, happened) {
                progress = (placed, happened);
                patience_ends = self.env.now() + self.patience;
            }
            let room = usize::try_from(IN_FLIGHT - (placed - figures.emails_sent));
            let room = room.unwrap_or(usize::MAX).min(waiting.len());
            if room > 0 {
                let (batch, rest) = waiting.split_at(room);
                match timeout_at(patience_ends, self.place(batch)).await {
                    Ok(placing) => placing.map_err(|error| format!("placing orders: {error}"))?,
                    Err(_elapsed) => return Err(self.stalled(&figures, placed)),
                }
                waiting = rest;
                placed += room as u64;
                batch.last().inspect(|order| bar.set_message(order.day.to_string()));
                continue;
            }
            if timeout_at(patience_ends, board.changed()).await.is_err() {
                return Err(self.stalled(&figures, placed));
            }
        }
    }

    /// Places orders for as long as an error may pass. What is placed twice is one order.
    async fn place(&self, batch: &[Order]) -> Result<(), PublishError> {
        loop {
            match self.services.desk.place(batch).await {
                // A broker that refuses is given a moment; nothing tells when it has room again.
                Err(error) if error.class().is_retryable() => {
                    sleep(Duration::from_millis(100)).await;
                }
                result => return result,
            }
        }
    }

    fn stalled(&self, figures: &Figures, placed: u64) -> String {
        let orders = self.orders.len() as u64;
        let missing = [
            ("orders not placed", orders - placed),
            ("placed, but neither shipped nor refused", placed.saturating_sub(figures.settled())),
            ("e-mails not sent", figures.settled().saturating_sub(figures.emails_sent)),
            ("reports not written", self.days - figures.reports),
            ("events not confirmed", figures.events_due(placed)),
        ];
        let missing: Vec<_> = missing
            .iter()
            .filter(|(_, number)| *number > 0)
            .map(|(what, number)| format!("{what}: {}", grouped(*number)))
            .collect();
        format!(
            "nothing has happened for {} s: {}{}",
            self.patience.as_secs(),
            missing.join(", "),
            self.services.given_up()
        )
    }
}
