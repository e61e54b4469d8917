/// How far a transfer is. A new value is told with each chunk; whoever looks later sees the newest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Progress {
    /// Bytes that arrived: for a sender those that the receiver has said it has, for a receiver
    /// those that were handed out. A resumed transfer begins with what was there.
    pub bytes: u64,
    /// How many bytes it will be, where the sender said so. Not to be trusted by a receiver.
    pub length: Option<u64>,
    /// Chunks that were sent, or asked for, more than once.
    pub repeated: u64,
    /// How often the transfer was taken up after the first time.
    pub resumed: u32,
}

impl Progress {
    /// The part that is done, from 0 to 1, where the length is known.
    #[must_use]
    pub fn fraction(&self) -> Option<f64> {
        match self.length {
            Some(0) => Some(1.0),
            Some(length) => Some((self.bytes as f64 / length as f64).min(1.0)),
            None => None,
        }
    }
}
