//! The names of the headers that Postrider sets on messages.

/// The conversation that a request belongs to; its correlation id is taken by the call itself.
pub const CONVERSATION_ID: &str = "postrider-conversation-id";
/// The [`ErrorClass`](crate::ErrorClass) of an error reply or a dead letter.
pub const ERROR_CLASS: &str = "postrider-error-class";
/// The code of a dead letter's failure.
pub const ERROR_CODE: &str = "postrider-error-code";
/// What failed, for people; of a dead letter.
pub const ERROR_MESSAGE: &str = "postrider-error-message";
/// How often a dead letter was delivered.
pub const ATTEMPTS: &str = "postrider-attempts";
/// The machine on which a dead letter failed the last time.
pub const HOST: &str = "postrider-host";
/// The queue that a dead letter comes from.
pub const ORIGIN_QUEUE: &str = "postrider-origin-queue";
/// The exchange that a dead letter was first published to; empty for a queue.
pub const ORIGIN_EXCHANGE: &str = "postrider-origin-exchange";
/// The routing key that a dead letter was first published with.
pub const ORIGIN_KEY: &str = "postrider-origin-key";
/// When a dead letter failed for the first time that is known, RFC 3339 text.
pub const FIRST_FAILED_AT: &str = "postrider-first-failed-at";
/// When a message was dead-lettered, RFC 3339 text.
pub const DEAD_LETTERED_AT: &str = "postrider-dead-lettered-at";
/// The key that a dead letter of an ordered subscription parks.
pub const PARKED_KEY: &str = "postrider-parked-key";
/// The number of a dead letter among those of the key that it parks, from 0.
pub const PARKED_NUMBER: &str = "postrider-parked-number";
/// How long to wait before the next try, in milliseconds; of an error reply.
pub const RETRY_AFTER_MS: &str = "postrider-retry-after-ms";
/// The number of a stream's chunk, or of a frame of a streamed reply, from 0.
pub const STREAM_SEQ: &str = "postrider-stream-seq";
/// Where in the payload a chunk begins, in bytes.
pub const STREAM_OFFSET: &str = "postrider-stream-offset";
/// The CRC-32C of a chunk's body.
pub const STREAM_CRC32C: &str = "postrider-stream-crc32c";
/// What a rejection's domain error holds, in the codec of the reply: text in JSON, bytes in
/// MessagePack; of an error reply.
pub const ERROR_DETAIL: &str = "postrider-error-detail";
/// The key by which a service recognises a request that is sent again; without it the message id.
pub const IDEMPOTENCY_KEY: &str = "postrider-idempotency-key";
/// The key of a unique task: while one of a key is queued or at work, another is a duplicate.
pub const UNIQUE_KEY: &str = "postrider-unique-key";
/// Who gave the idempotency key: keys of different callers are different.
pub const CALLER: &str = "postrider-caller";
/// Which server answered; of the reply to a request that went to all of them.
pub const INSTANCE: &str = "postrider-instance";
/// How many frames of a streamed reply may be sent, counted from its start: in a request, that a
/// streamed reply is wanted, and in a credit, how far the stream may go on.
pub const STREAM_CREDIT: &str = "postrider-stream-credit";
/// How many routers, splitters and aggregators a message came through.
pub const HOPS: &str = "postrider-hops";
/// The id of the message that a part was made of.
pub const PART_OF: &str = "postrider-part-of";
/// The queue that the parent of a part was taken from: its id may be in use in another one.
pub const PART_FROM: &str = "postrider-part-from";
/// The number of a part, from 0.
pub const PART: &str = "postrider-part";
/// How many parts its message was split into.
pub const PARTS: &str = "postrider-parts";
/// Which of the 64 slots an event's key has, as text; the partitions of subscriptions that are
/// ordered by key are chosen by it.
pub const KEY_SLOT: &str = "postrider-key-slot";
/// True in a message that was made of parts before all of them were there.
pub const INCOMPLETE: &str = "postrider-incomplete";
/// The trace that a message belongs to, by W3C Trace Context.
pub const TRACEPARENT: &str = "traceparent";
/// What systems on the way have noted beside the trace, by W3C Trace Context.
pub const TRACESTATE: &str = "tracestate";
/// Which run of the request a frame of a streamed reply comes from.
pub const STREAM_RUN: &str = "postrider-stream-run";
/// Whether a frame is the last of its streamed reply; it holds no item then.
pub const STREAM_END: &str = "postrider-stream-end";
/// The number by which a registry knows its own echo.
pub const ECHO: &str = "postrider-echo";
/// The version of a configuration value.
pub const CONFIG_VERSION: &str = "postrider-config-version";
