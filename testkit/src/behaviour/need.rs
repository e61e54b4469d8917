use std::fmt;

use postrider_core::{Capabilities, Delay, ReplyMode};

use crate::harness::Fault;

/// Something that a behaviour needs of the broker or of the harness to apply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Need {
    /// Queues, exchanges and bindings can be declared.
    Topology,
    /// A publish can be delayed.
    DelayedPublish,
    /// A retry can be delayed.
    DelayedRetry,
    /// A quorum queue keeps this many priorities apart.
    PriorityLevels(u8),
    /// A quorum queue stops at its delivery limit.
    DeliveryLimit,
    /// Releasing a delivery leaves its failures as they were.
    UncountedRelease,
    /// Attempts are exact on classic queues.
    ExactAttempts,
    /// There is a largest message.
    MaxMessageSize,
    /// A consumer can keep others from its queue.
    ExclusiveConsumers,
    /// Headers may be lists and maps.
    NestedHeaders,
    /// The reason of a reject travels with the dead letter.
    RejectReason,
    /// Answers come by direct reply-to.
    DirectReplies,
    /// The harness can bring about a fault.
    Fault(Fault),
}

impl Need {
    /// Whether a broker with these capabilities and a harness with these faults meet it.
    #[must_use]
    pub fn is_met(&self, capabilities: &Capabilities, faults: &[Fault]) -> bool {
        match self {
            Self::Topology => capabilities.topology,
            Self::DelayedPublish => capabilities.delayed_publish != Delay::None,
            Self::DelayedRetry => capabilities.delayed_retry != Delay::None,
            Self::PriorityLevels(levels) => capabilities.priority_levels >= *levels,
            Self::DeliveryLimit => capabilities.delivery_limit,
            Self::UncountedRelease => capabilities.uncounted_release,
            Self::ExactAttempts => capabilities.exact_attempts,
            Self::MaxMessageSize => capabilities.max_message_size.is_some(),
            Self::ExclusiveConsumers => capabilities.exclusive_consumers,
            Self::NestedHeaders => capabilities.nested_headers,
            Self::RejectReason => capabilities.reject_reason,
            Self::DirectReplies => capabilities.reply_mode == ReplyMode::Direct,
            Self::Fault(fault) => faults.contains(fault),
        }
    }
}

impl fmt::Display for Need {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Topology => f.write_str("topology"),
            Self::DelayedPublish => f.write_str("delayed_publish"),
            Self::DelayedRetry => f.write_str("delayed_retry"),
            Self::PriorityLevels(levels) => write!(f, "priority_levels of at least {levels}"),
            Self::DeliveryLimit => f.write_str("delivery_limit"),
            Self::UncountedRelease => f.write_str("uncounted_release"),
            Self::ExactAttempts => f.write_str("exact_attempts"),
            Self::MaxMessageSize => f.write_str("max_message_size"),
            Self::ExclusiveConsumers => f.write_str("exclusive_consumers"),
            Self::NestedHeaders => f.write_str("nested_headers"),
            Self::RejectReason => f.write_str("reject_reason"),
            Self::DirectReplies => f.write_str("direct replies"),
            Self::Fault(fault) => fault.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_broker_that_can_do_nothing_meets_no_need() {
        let nothing = Capabilities::minimal();
        for need in [
            Need::Topology,
            Need::DelayedPublish,
            Need::DelayedRetry,
            Need::PriorityLevels(2),
            Need::DeliveryLimit,
            Need::UncountedRelease,
            Need::ExactAttempts,
            Need::MaxMessageSize,
            Need::ExclusiveConsumers,
            Need::NestedHeaders,
            Need::RejectReason,
            Need::DirectReplies,
            Need::Fault(Fault::Alarm),
        ] {
            assert!(!need.is_met(&nothing, &[Fault::ConnectionLoss]), "{need}");
        }
    }
}
