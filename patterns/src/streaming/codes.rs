//! The codes by which a stream ends early, as they stand on the wire.

/// A checksum, the hash or the content of a repeated chunk is not what it should be.
pub const CORRUPT: &str = "CORRUPT";
/// Something was sent that the protocol does not allow.
pub const BROKEN_PROTOCOL: &str = "BROKEN_PROTOCOL";
/// The payload, or a chunk of it, is larger than the receiver takes.
pub const TOO_LARGE: &str = "TOO_LARGE";
/// Chunks stayed missing however often they were asked for.
pub const CHUNKS_MISSING: &str = "CHUNKS_MISSING";
/// Nothing was heard of the other side for too long.
pub const IDLE_TIMEOUT: &str = "IDLE_TIMEOUT";
/// The sender called it off.
pub const ABORTED: &str = "ABORTED";
/// The receiver lacks what the source cannot give again.
pub const NOT_RESUMABLE: &str = "NOT_RESUMABLE";
/// Another transfer writes the same file.
pub const BUSY: &str = "BUSY";
/// One of the sides stopped.
pub const INTERRUPTED: &str = "INTERRUPTED";
/// The receiver's handler ended before the stream did.
pub const NOT_READ: &str = "NOT_READ";
/// Another receiver has taken the transfer over.
pub const SUPERSEDED: &str = "SUPERSEDED";
/// The sender knows no such transfer, or not any more.
pub const UNKNOWN_STREAM: &str = "UNKNOWN_STREAM";
