//! Answers by what the broker makes for a link: direct reply-to and temporary queues.
//!
//! The link asks for a source without an address, and says by a capability what that shall be:
//! "Direct Reply-To" and "Dynamic Sources" of RabbitMQ's documentation on AMQP 1.0.

use std::sync::Arc;

use fe2o3_amqp::Receiver;
use fe2o3_amqp_types::{
    definitions::SenderSettleMode,
    messaging::{Source, TerminusExpiryPolicy},
    primitives::Symbol,
};
use postrider_core::{Error, ErrorKind, ReplyAddressSender, ReplyMode, Result};
use postrider_rabbitmq::Version;

use crate::{consumer::OUTCOMES, dialect::Dialect};

/// What the answers of a requester come by, where it is no queue that was declared.
#[derive(Debug)]
pub(crate) struct Dynamic {
    capability: &'static str,
    /// Whether the broker hands answers over and forgets them.
    pub(crate) is_direct: bool,
    address: ReplyAddressSender,
}

/// The lightest mode that a broker of this version has.
pub(crate) const fn lightest(version: Version) -> ReplyMode {
    if version.has_direct_replies() {
        ReplyMode::Direct
    } else if version.has_temporary_queues() {
        ReplyMode::TemporaryQueue
    } else {
        ReplyMode::ExclusiveQueue
    }
}

impl Dynamic {
    /// # Errors
    ///
    /// [`ErrorKind::Unsupported`] for what the broker has not.
    pub(crate) fn new(
        dialect: &Dialect,
        mode: ReplyMode,
        address: ReplyAddressSender,
    ) -> Result<Self> {
        let version = dialect.version();
        let (capability, has, since) = match mode {
            ReplyMode::Direct => ("rabbitmq:volatile-queue", version.has_direct_replies(), "4.2"),
            _ => ("temporary-queue", version.has_temporary_queues(), "4.1"),
        };
        if !has {
            let why = format!("over AMQP 1.0 RabbitMQ has such replies since {since}");
            let error = Error::new(ErrorKind::Unsupported, "replies", why);
            return Err(error.with_context("mode", format!("{mode:?}")));
        }
        Ok(Self { capability, is_direct: mode == ReplyMode::Direct, address })
    }

    /// What the link asks for.
    pub(crate) fn source(&self) -> Source {
        let source = Source::builder()
            .dynamic(true)
            .expiry_policy(TerminusExpiryPolicy::LinkDetach)
            .capabilities(vec![Symbol::from(self.capability)]);
        // What comes settled has no outcome.
        match self.is_direct {
            true => source.build(),
            false => source.outcomes(OUTCOMES.map(Symbol::from).to_vec()).build(),
        }
    }

    pub(crate) const fn settle_mode(&self) -> SenderSettleMode {
        match self.is_direct {
            true => SenderSettleMode::Settled,
            false => SenderSettleMode::Unsettled,
        }
    }

    /// Says where answers go from now on, if anywhere.
    pub(crate) fn tell(&self, address: Option<Arc<str>>) {
        self.address.set(address);
    }
}

/// The queue that the broker made for a link, or what stands for one.
///
/// # Errors
///
/// When it does not name it.
pub(crate) fn made(dialect: &Dialect, receiver: &Receiver) -> Result<Arc<str>> {
    let source = receiver.source().as_ref();
    let address = source.and_then(|source| source.address.as_deref()).ok_or_else(|| {
        Error::new(ErrorKind::Internal, "replies", "the broker names no address for replies")
    })?;
    Ok(dialect.queue_of(address).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mode_is_the_lightest_of_the_version() {
        let mode = |minor| lightest(Version { major: 4, minor });
        assert_eq!(mode(0), ReplyMode::ExclusiveQueue);
        assert_eq!(mode(1), ReplyMode::TemporaryQueue);
        assert_eq!((mode(2), mode(3)), (ReplyMode::Direct, ReplyMode::Direct));
    }
}
