//! What a transport and its broker can do, as facts.

/// How something is held back for a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Delay {
    /// The broker does it, to the millisecond.
    Native,
    /// A ladder of queues with fixed times to live does it; each rung is a message written again.
    Ladder,
    /// Nothing does it: asking for a delay is an error.
    None,
}

/// How a requester gets its answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ReplyMode {
    /// By a queue that it declares, and that goes with its connection. Its name stays.
    ExclusiveQueue,
    /// By a queue that the broker makes and names for its consumer, and that goes with it.
    TemporaryQueue,
    /// By the broker's direct reply-to, without a queue: an answer is handed to the requester or
    /// lost.
    Direct,
}

/// What a transport and its broker can do.
///
/// A pattern that needs what is missing emulates it by a documented means or refuses at start.
/// Nothing is silently left out.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Capabilities {
    /// Whether queues, exchanges and bindings can be declared.
    pub topology: bool,
    /// How a publish with a delay is held back.
    pub delayed_publish: Delay,
    /// How a retry with a delay is held back.
    pub delayed_retry: Delay,
    /// How many priorities a quorum queue keeps apart; 0 when it has none.
    pub priority_levels: u8,
    /// Whether a quorum queue counts failures and stops at its delivery limit.
    pub delivery_limit: bool,
    /// Whether releasing a delivery leaves the failures of [`delivery_limit`](Self::delivery_limit)
    /// as they were.
    pub uncounted_release: bool,
    /// Whether a delivery's attempt is exact on classic queues too, not only first or later.
    pub exact_attempts: bool,
    /// Whether there are stream queues.
    pub streams: bool,
    /// The largest body in bytes; `None` when there is no limit.
    pub max_message_size: Option<u64>,
    /// The lightest way for a requester to get its answers. [`ReplyMode::ExclusiveQueue`] is there
    /// as well wherever there is [`topology`](Self::topology).
    pub reply_mode: ReplyMode,
    /// Whether a consumer can keep others from its queue.
    pub exclusive_consumers: bool,
    /// Whether headers may be lists and maps whatever their names. Where not, those may be whose names
    /// begin with `x-`, and a send refuses others.
    pub nested_headers: bool,
    /// Whether the reason of a reject travels with the dead letter, as header `postrider-reason`.
    pub reject_reason: bool,
}

impl Capabilities {
    /// Nothing but plain publishing and consuming: the ground to build a transport's facts on.
    #[must_use]
    pub const fn minimal() -> Self {
        Self {
            topology: false,
            delayed_publish: Delay::None,
            delayed_retry: Delay::None,
            priority_levels: 0,
            delivery_limit: false,
            uncounted_release: false,
            exact_attempts: false,
            streams: false,
            max_message_size: None,
            reply_mode: ReplyMode::ExclusiveQueue,
            exclusive_consumers: false,
            nested_headers: false,
            reject_reason: false,
        }
    }
}
