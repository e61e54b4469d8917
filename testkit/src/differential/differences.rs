//! Where the in-memory broker and RabbitMQ are known to differ.

/// A difference that is no error, and what the comparison does about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KnownDifference {
    /// A short name, the key of `docs/differences.md`.
    pub name: &'static str,
    /// Why the two differ.
    pub reason: &'static str,
    /// What the comparison forgives, exactly, or what the generator leaves out.
    pub comparison: &'static str,
}

/// All of them; `docs/differences.md` has the same table.
pub const DIFFERENCES: &[KnownDifference] = &[
    REJECT_REASON,
    CLASSIC_COUNTS,
    COUNTED_RELEASE,
    WAITING_CONSUMERS,
    DELAYED_RETRY,
    QUORUM_REJECT_PUBLISH,
    PRIORITY_LEVELS,
    COMPETING_CONSUMERS,
    LOST_WITH_MORE_WAITING,
    EXCLUSIVE_ON_QUORUM,
    STREAMS,
];

pub(super) const REJECT_REASON: KnownDifference = KnownDifference {
    name: "reject-reason",
    reason: "AMQP 0.9.1 carries no reason of a reject (capability `reject_reason`)",
    comparison: "the header `postrider-reason` is left out where one side cannot carry it",
};

pub(super) const CLASSIC_COUNTS: KnownDifference = KnownDifference {
    name: "classic-counts",
    reason: "RabbitMQ's classic queues tell only whether a message was delivered before \
             (capability `exact_attempts`)",
    comparison: "on classic queues an attempt is 1 or more than 1, and failures are no more than \
                 the exact side counts",
};

pub(super) const COUNTED_RELEASE: KnownDifference = KnownDifference {
    name: "counted-release",
    reason: "before 4.3 RabbitMQ counts each return toward the delivery limit (capability \
             `uncounted_release`)",
    comparison: "failures are at least the exact side's and less than the attempt; a program with \
                 delivery limits releases nothing",
};

pub(super) const WAITING_CONSUMERS: KnownDifference = KnownDifference {
    name: "dropped-single-active",
    reason: "over AMQP 0.9.1 a dropped consumer of a single active consumer queue keeps its place \
             at the broker until all it handed out is settled, which keeps the order",
    comparison: "such consumers are counted on the side of the wire, each until its last delivery \
                 is settled",
};

pub(super) const DELAYED_RETRY: KnownDifference = KnownDifference {
    name: "delayed-retry",
    reason: "without means of the broker a retry with a delay is a copy that is published to the \
             queue anew (capability `delayed_retry`): it comes back last, without its time to live \
             and its first address",
    comparison: "a delivery is retried later only where nothing else of its queue is ready or \
                 unsettled, it was published to the queue by name, and it has no time to live",
};

pub(super) const QUORUM_REJECT_PUBLISH: KnownDifference = KnownDifference {
    name: "quorum-reject-publish",
    reason: "a quorum queue tells its publishers that it is full after it is, so that it takes \
             more than its maximum length; the in-memory broker does not",
    comparison: "only classic queues refuse publishes",
};

pub(super) const PRIORITY_LEVELS: KnownDifference = KnownDifference {
    name: "priority-levels",
    reason: "before 4.3 RabbitMQ's quorum queues have two priorities, served two to one \
             (capability `priority_levels`)",
    comparison: "messages have a priority only where both sides have as many",
};

pub(super) const COMPETING_CONSUMERS: KnownDifference = KnownDifference {
    name: "competing-consumers",
    reason: "which of several consumers with credit gets a message is nobody's promise",
    comparison: "a queue has one consumer at a time, unless only one of them is active",
};

pub(super) const LOST_WITH_MORE_WAITING: KnownDifference = KnownDifference {
    name: "lost-connection-order",
    reason: "RabbitMQ may serve the new consumer before it has taken back what the lost one had, \
             and a message may fail twice where two consumers of its queue are lost together",
    comparison: "a connection is lost only where no queue that it consumes has messages ready or a \
                 second consumer",
};

pub(super) const EXCLUSIVE_ON_QUORUM: KnownDifference = KnownDifference {
    name: "exclusive-consumer-on-quorum",
    reason: "RabbitMQ ignores an exclusive consumer on a quorum queue, so the transport refuses it",
    comparison: "consumers of quorum queues are not exclusive",
};

pub(super) const STREAMS: KnownDifference = KnownDifference {
    name: "streams",
    reason: "the in-memory broker has no stream queues (capability `streams`)",
    comparison: "programs have none",
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_and_the_list_agree() {
        let page = include_str!("../../../docs/differences.md");
        let on_page: Vec<_> = page.lines().filter(|line| line.starts_with("| `")).collect();
        let listed: Vec<_> = DIFFERENCES
            .iter()
            .map(|KnownDifference { name, reason, comparison }| {
                format!("| `{name}` | {reason} | {comparison} |")
            })
            .collect();
        assert_eq!(on_page, listed);
    }
}
