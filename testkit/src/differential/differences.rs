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
    DEAD_LETTER_COUNTS,
    REDELIVERED_DEAD,
    COUNTED_RELEASE,
    UNLIMITED_RETURN,
    DEATHS_AT_ONCE,
    DEATHS_BY_LOSS,
    DEATHS_BY_DROP,
    RETURNED_INTO_FULL,
    DEATHS_INTO_GONE,
    INHERITED_FAILURES,
    CONSUMER_COUNTS,
    KEPT_BY_DROPPED,
    DROPPED_SINGLE_ACTIVE,
    DELETED_WITH_UNREAD,
    DECLARED_AGAIN,
    GONE_BEFORE_LOSS,
    DELAYED_RETRY,
    DELAYED_PUBLISH,
    DELAYED_ON_CLASSIC,
    OVERTAKING_EXPIRY,
    EXPIRY_BEHIND_RETURNED,
    QUORUM_REJECT_PUBLISH,
    QUORUM_BYTES,
    ENCODED_BYTES,
    PRIORITY_LEVELS,
    COMPETING_CONSUMERS,
    LOST_WITH_MORE_WAITING,
    EXCLUSIVE_ON_QUORUM,
    EXCLUSIVE_CONSUMERS,
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

pub(super) const DEAD_LETTER_COUNTS: KnownDifference = KnownDifference {
    name: "dead-letter-counts",
    reason: "RabbitMQ tells a dead letter as redelivered from the first time on when it was \
             redelivered in its first queue, and its attempt is read from that",
    comparison: "a dead letter may be told as redelivered with an attempt one more than its \
                 failures (on a classic queue, at least 2), where that is more than it should be",
};

pub(super) const REDELIVERED_DEAD: KnownDifference = KnownDifference {
    name: "redelivered-dead",
    reason: "over AMQP 1.0 RabbitMQ tells every dead letter as redelivered, with the counts of the \
             queues it was in, and counts a reject as a failure",
    comparison: "over AMQP 1.0 the counts of a dead letter are at least the exact side's; on classic \
                 queues an attempt of 2 is enough and failures are anything, as they are before 4.3",
};

pub(super) const COUNTED_RELEASE: KnownDifference = KnownDifference {
    name: "counted-release",
    reason: "before 4.3 RabbitMQ counts each return toward the delivery limit, and a dead letter of \
             a quorum queue as failed once (capability `uncounted_release`)",
    comparison: "failures are at least the exact side's, or anything for dead letters, and less \
                 than the attempt; a program with delivery limits releases nothing, and its quorum \
                 queues have no dead letters",
};

pub(super) const UNLIMITED_RETURN: KnownDifference = KnownDifference {
    name: "unlimited-return",
    reason: "before 4.3 a quorum queue without a delivery limit puts what comes back last",
    comparison: "where a release is counted, quorum queues have a delivery limit that is not reached",
};

pub(super) const DEATHS_BY_LOSS: KnownDifference = KnownDifference {
    name: "deaths-by-loss",
    reason: "before 4.3 a quorum queue that a lost connection makes too long drops what came back in \
             another order",
    comparison: "where a release is counted, a connection is not lost while it consumes a quorum \
                 queue with a maximum length and dead letters",
};

pub(super) const DEATHS_BY_DROP: KnownDifference = KnownDifference {
    name: "deaths-by-drop",
    reason: "over AMQP 0.9.1 a dropped consumer gives back what nobody read one by one, and a queue \
             that becomes too long by it drops another message each time",
    comparison: "consumers of queues that drop messages when they are too long are not dropped",
};

pub(super) const RETURNED_INTO_FULL: KnownDifference = KnownDifference {
    name: "returned-into-full",
    reason: "over AMQP 1.0 the credit of a delivery that is given back comes after it, so that it is \
             back in its queue for a moment, which may be too long by it and drop a message",
    comparison: "over AMQP 1.0 nothing is given back to queues that drop messages when they are too long \
                 and have some ready",
};

pub(super) const DEATHS_INTO_GONE: KnownDifference = KnownDifference {
    name: "deaths-into-gone",
    reason: "what a lost connection gives back may die at once, before or after the queue for dead \
             letters that went with the connection is declared again",
    comparison: "a connection with exclusive or auto-delete queues is not lost while it consumes a \
                 queue with dead letters",
};

pub(super) const INHERITED_FAILURES: KnownDifference = KnownDifference {
    name: "inherited-failures",
    reason: "since 4.3 a dead letter keeps the failures of the quorum queue it comes from, and the \
             next quorum queue with a delivery limit counts them",
    comparison: "in a program with delivery limits dead letters go to one classic queue, which has \
                 no dead letters itself",
};

pub(super) const DEATHS_AT_ONCE: KnownDifference = KnownDifference {
    name: "deaths-at-once",
    reason: "the dead letters of queues that one publish fills, and the message itself, come to \
             another queue in any order",
    comparison: "one queue of a program has dead letters for what dies of length or time, and then \
                 all is published to queues by name",
};

pub(super) const CONSUMER_COUNTS: KnownDifference = KnownDifference {
    name: "consumer-counts",
    reason: "RabbitMQ's quorum queues, and over AMQP 1.0 all queues, count a dropped consumer until it \
             has settled everything, and quorum queues no consumer that waits for a single active one \
             to go",
    comparison: "on those queues the wire's count is exactly the one that follows from this",
};

pub(super) const KEPT_BY_DROPPED: KnownDifference = KnownDifference {
    name: "kept-by-dropped",
    reason: "over AMQP 1.0 a dropped consumer is one of its queue's until it has settled everything, so \
             that a queue that goes without consumers stays until then",
    comparison: "over AMQP 1.0 consumers of auto-delete queues, and of queues that expire soon, are not \
                 dropped while they hold deliveries",
};

pub(super) const DROPPED_SINGLE_ACTIVE: KnownDifference = KnownDifference {
    name: "dropped-single-active",
    reason: "over AMQP 0.9.1 a dropped consumer of a single active consumer queue keeps its place \
             at the broker until all it handed out is settled, is sent messages until then, and \
             gives them back by the end of its channel, which a quorum queue counts as failed",
    comparison: "consumers of queues with a single active consumer are not dropped",
};

pub(super) const DELETED_WITH_UNREAD: KnownDifference = KnownDifference {
    name: "deleted-with-unread",
    reason: "a consumer whose queue is deleted may have deliveries in advance, and whether it still \
             hands them out is nobody's promise",
    comparison: "what one side hands out before its consumer ends is passed over when the other's \
                 has ended",
};

pub(super) const DECLARED_AGAIN: KnownDifference = KnownDifference {
    name: "declared-again",
    reason: "since 4.3 the broker cancels a consumer when its queue is deleted and when it is slow, \
             and does not say which; one that holds a delivery goes on where the queue is there",
    comparison: "a deleted queue is declared again only when its consumers have seen that it is gone",
};

pub(super) const GONE_BEFORE_LOSS: KnownDifference = KnownDifference {
    name: "gone-before-loss",
    reason: "over a wire it cannot be known whether an auto-delete or exclusive thing went with the \
             connection or before, so it is declared again",
    comparison: "the declaring connection is lost only while all its exclusive and auto-delete \
                 queues are there, it has declared no auto-delete exchange, and no other connection \
                 has removed an exchange",
};

pub(super) const DELAYED_PUBLISH: KnownDifference = KnownDifference {
    name: "delayed-publish",
    reason: "without means of the broker the verdict on a delayed publish is that of the queue it \
             waits in (capability `delayed_publish`)",
    comparison: "a message is delayed only on its way to a queue that is there and does not refuse \
                 publishes",
};

pub(super) const DELAYED_RETRY: KnownDifference = KnownDifference {
    name: "delayed-retry",
    reason: "without means of the broker a retry with a delay is a copy that is published to the \
             queue anew (capability `delayed_retry`): it comes back last, without its time to \
             live, its first address and the record of its deaths",
    comparison: "a delivery is retried later only where nothing else of its queue is ready or \
                 unsettled, it was published to the queue by name, has no time to live, and is no \
                 dead letter",
};

pub(super) const DELAYED_ON_CLASSIC: KnownDifference = KnownDifference {
    name: "delayed-on-classic",
    reason: "over AMQP 1.0 before 4.3 a classic queue does not tell that it delivers a message again that \
             was delayed before",
    comparison: "over AMQP 1.0 before 4.3 nothing is delayed on its way to classic queues",
};

pub(super) const OVERTAKING_EXPIRY: KnownDifference = KnownDifference {
    name: "overtaking-expiry",
    reason: "RabbitMQ's classic queues look for what has expired at their front when a message comes \
             to an empty queue, and do not notice one that gets to the front by its priority",
    comparison: "in classic queues with priorities, messages with a short time to live have none",
};

pub(super) const EXPIRY_BEHIND_RETURNED: KnownDifference = KnownDifference {
    name: "expiry-behind-returned",
    reason: "before 4.3 a quorum queue does not notice what has expired behind a message that came \
             back",
    comparison: "where a release is counted, messages with a short time to live go only to quorum \
                 queues where nothing waits",
};

pub(super) const QUORUM_REJECT_PUBLISH: KnownDifference = KnownDifference {
    name: "quorum-reject-publish",
    reason: "a quorum queue tells its publishers that it is full after it is, so that it takes \
             more than its maximum length; the in-memory broker does not",
    comparison: "only classic queues refuse publishes",
};

pub(super) const QUORUM_BYTES: KnownDifference = KnownDifference {
    name: "quorum-bytes",
    reason: "a quorum queue counts what it stores of a message, its properties included; the \
             in-memory broker counts bodies",
    comparison: "only classic queues have a maximum of bytes",
};

pub(super) const ENCODED_BYTES: KnownDifference = KnownDifference {
    name: "encoded-bytes",
    reason: "what comes over AMQP 1.0 counts in classic queues too with its encoded properties",
    comparison: "over AMQP 1.0 queues have no maximum of bytes",
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

pub(super) const EXCLUSIVE_CONSUMERS: KnownDifference = KnownDifference {
    name: "exclusive-consumers",
    reason: "over AMQP 1.0 a consumer cannot keep others from its queue (capability \
             `exclusive_consumers`)",
    comparison: "consumers are exclusive only where both sides can have such",
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
