//! The broker's verdict on a publish.

use std::{
    borrow::Cow,
    future::Future,
    pin::Pin,
    task::{Context, Poll},
};

use tokio::sync::oneshot::{self, error::TryRecvError};

use crate::{Error, ErrorKind, Result};

/// What the broker did with a message.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use = "a message is stored only when its verdict is Accepted"]
pub enum Verdict {
    /// Every queue it was routed to has it.
    Accepted,
    /// At least one queue refused it, for this reason.
    Rejected(Cow<'static, str>),
    /// It was routed to no queue.
    Unroutable,
    /// It was sent, and what became of it is not known, for this cause. Sending it again may make
    /// a second copy with the same message id.
    Unknown(Cow<'static, str>),
}

impl Verdict {
    /// Whether the message is stored.
    #[must_use]
    pub const fn is_accepted(&self) -> bool {
        matches!(self, Self::Accepted)
    }

    /// `Ok` when the message is stored, else an error of the like kind.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Rejected`], [`ErrorKind::Unroutable`] or [`ErrorKind::Unknown`].
    pub fn into_result(self) -> Result<()> {
        let (kind, message) = match self {
            Self::Accepted => return Ok(()),
            Self::Rejected(reason) => (
                ErrorKind::Rejected,
                Cow::Owned(format!("the broker refused the message: {reason}")),
            ),
            Self::Unroutable => {
                (ErrorKind::Unroutable, Cow::Borrowed("no queue gets this message"))
            }
            Self::Unknown(cause) => {
                (ErrorKind::Unknown, Cow::Owned(format!("it may or may not be stored: {cause}")))
            }
        };
        Err(Error::new(kind, "publish", message))
    }
}

/// The verdict to come on one message. Await it.
///
/// Dropping it loses the verdict and not the message. It is cancellation safe: awaiting it by
/// reference and giving up leaves it as it was.
#[derive(Debug)]
#[must_use = "a message is stored only when its confirm says so"]
pub struct Confirm(State);

#[derive(Debug)]
enum State {
    Ready(Option<Verdict>),
    Pending(oneshot::Receiver<Verdict>),
}

impl Confirm {
    /// A confirm whose verdict is known.
    pub const fn ready(verdict: Verdict) -> Self {
        Self(State::Ready(Some(verdict)))
    }

    /// A confirm and the means to resolve it. Dropping the sender resolves it as `Unknown`.
    pub fn pending() -> (ConfirmSender, Self) {
        let (sender, receiver) = oneshot::channel();
        (ConfirmSender(sender), Self(State::Pending(receiver)))
    }
}

impl Future for Confirm {
    type Output = Verdict;

    /// # Panics
    ///
    /// When it is polled again after it gave its verdict.
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Verdict> {
        match &mut self.0 {
            State::Ready(verdict) => {
                Poll::Ready(verdict.take().expect("a confirm gives its verdict once"))
            }
            State::Pending(receiver) => {
                // A verdict that is there is given whatever is left of the task's budget.
                let answer = match receiver.try_recv() {
                    Ok(verdict) => Poll::Ready(Some(verdict)),
                    Err(TryRecvError::Closed) => Poll::Ready(None),
                    Err(TryRecvError::Empty) => Pin::new(receiver).poll(cx).map(Result::ok),
                };
                answer.map(|answer| {
                    answer.unwrap_or(Verdict::Unknown(Cow::Borrowed("the publisher ended first")))
                })
            }
        }
    }
}

/// Resolves one [`Confirm`]; for transports.
#[derive(Debug)]
pub struct ConfirmSender(oneshot::Sender<Verdict>);

impl ConfirmSender {
    /// Gives the verdict. Nobody may be waiting for it any more, which is no error.
    pub fn resolve(self, verdict: Verdict) {
        let _abandoned = self.0.send(verdict);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_confirm_whose_sender_is_gone_is_unknown_and_never_accepted() {
        let (sender, confirm) = Confirm::pending();
        drop(sender);
        assert!(matches!(confirm.await, Verdict::Unknown(_)));
        let (sender, confirm) = Confirm::pending();
        sender.resolve(Verdict::Unroutable);
        assert_eq!(confirm.await, Verdict::Unroutable);
        assert_eq!(Confirm::ready(Verdict::Accepted).await, Verdict::Accepted);
    }

    #[tokio::test]
    async fn verdicts_that_are_there_are_given_at_once_however_many() {
        for _ in 0..1_000 {
            let (sender, confirm) = Confirm::pending();
            sender.resolve(Verdict::Accepted);
            let verdict = futures_util::FutureExt::now_or_never(confirm);
            assert_eq!(verdict, Some(Verdict::Accepted));
        }
    }
}
