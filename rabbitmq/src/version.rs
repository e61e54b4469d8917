//! What differs from one version of RabbitMQ to the next.

use postrider_core::{Capabilities, Delay, ReplyMode};

/// The largest message that RabbitMQ takes by default (`max_message_size`), in bytes.
const MAX_MESSAGE_SIZE: u64 = 16 * 1024 * 1024;

/// A broker's version, as far as it matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    /// The first number.
    pub major: u16,
    /// The second number.
    pub minor: u16,
}

impl Version {
    /// Reads a version such as `4.3.6`.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split('.');
        let major = parts.next()?.parse().ok()?;
        let minor = parts.next()?.parse().ok()?;
        Some(Self { major, minor })
    }

    /// Whether quorum queues count failures apart from returns, and keep 32 priorities.
    #[must_use]
    pub const fn counts_failures_apart(self) -> bool {
        self.major > 4 || (self.major == 4 && self.minor >= 3)
    }

    /// Whether a quorum queue delays the messages that failed.
    #[must_use]
    pub const fn delays_retries(self) -> bool {
        self.counts_failures_apart()
    }

    /// Whether a consumer that leaves a delivery unsettled for too long is cancelled; before, its
    /// channel is closed.
    #[must_use]
    pub const fn cancels_slow_consumers(self) -> bool {
        self.counts_failures_apart()
    }

    /// Whether the address of a reply queue is the queue's name to who consumes it over AMQP 0.9.1,
    /// and the other way.
    #[must_use]
    pub const fn converts_reply_addresses(self) -> bool {
        self.major > 4 || (self.major == 4 && self.minor >= 2)
    }

    /// Whether direct reply-to is there over AMQP 1.0.
    #[must_use]
    pub const fn has_direct_replies(self) -> bool {
        self.converts_reply_addresses()
    }

    /// Whether the broker makes a queue for a consumer over AMQP 1.0.
    #[must_use]
    pub const fn has_temporary_queues(self) -> bool {
        self.major > 4 || (self.major == 4 && self.minor >= 1)
    }

    /// What the broker can do over either protocol.
    #[must_use]
    pub fn capabilities(self) -> Capabilities {
        let mut capabilities = Capabilities::minimal();
        capabilities.topology = true;
        capabilities.delayed_publish = Delay::Ladder;
        capabilities.delayed_retry = Delay::Ladder;
        capabilities.priority_levels = if self.counts_failures_apart() { 32 } else { 2 };
        capabilities.delivery_limit = true;
        capabilities.uncounted_release = self.counts_failures_apart();
        capabilities.exact_attempts = false;
        capabilities.streams = true;
        capabilities.max_message_size = Some(MAX_MESSAGE_SIZE);
        capabilities.reply_mode = ReplyMode::ExclusiveQueue;
        capabilities.exclusive_consumers = true;
        capabilities.nested_headers = true;
        capabilities.reject_reason = false;
        capabilities
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_and_compared() {
        let newest = Version::parse("4.3.6").unwrap();
        assert_eq!(newest, Version { major: 4, minor: 3 });
        assert!(newest.capabilities().uncounted_release);
        let older = Version::parse("4.0.5").unwrap();
        assert_eq!(older.capabilities().priority_levels, 2);
        assert!(older < newest);
        assert_eq!(Version::parse("4"), None);
        assert_eq!(Version::parse(""), None);
    }
}
