//! What events and tasks share when they are published.

use std::{borrow::Cow, collections::VecDeque, fmt};

use postrider_core::{Confirm, Envelope, ErrorKind, Publisher, Result, Verdict};

use crate::error::PublishError;

/// How many publishes of one batch may be without a verdict at once.
const WINDOW: usize = 256;

/// The id of a published message: a UUIDv7 as text.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MessageId(Cow<'static, str>);

impl MessageId {
    pub(crate) fn new(id: impl Into<Cow<'static, str>>) -> Self {
        Self(id.into())
    }

    /// The id as it stands in the message's properties.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Publishes messages in their order with many verdicts outstanding, and takes each verdict through
/// `judge`. On a failure nothing more is sent, and what is on its way is waited for.
pub(crate) async fn publish_each(
    publisher: &dyn Publisher,
    messages: impl Iterator<Item = Result<Envelope, PublishError>>,
    judge: fn(Verdict) -> Result<()>,
) -> Result<(), PublishError> {
    let mut outstanding: VecDeque<Confirm> = VecDeque::with_capacity(WINDOW);
    let mut failed = None;
    for message in messages {
        if outstanding.len() >= WINDOW
            && let Some(confirm) = outstanding.pop_front()
            && let Err(error) = judge(confirm.await)
        {
            failed = Some(error.into());
            break;
        }
        let sent = match message {
            Ok(envelope) => publisher.send(envelope).await.map_err(PublishError::from),
            Err(error) => Err(error),
        };
        match sent {
            Ok(confirm) => outstanding.push_back(confirm),
            Err(error) => {
                failed = Some(error);
                break;
            }
        }
    }
    for confirm in outstanding {
        if let Err(error) = judge(confirm.await) {
            failed.get_or_insert(error.into());
        }
    }
    failed.map_or(Ok(()), Err)
}

/// An event that nobody subscribed to is no failure.
pub(crate) fn stored_or_unwanted(verdict: Verdict) -> Result<()> {
    match verdict.into_result() {
        Err(error) if error.kind() == ErrorKind::Unroutable => Ok(()),
        result => result,
    }
}
