//! Chunks in any order to bytes in theirs: decisions without I/O.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;

use super::{
    StreamError,
    integrity::checksum,
    wire::{Chunk, Close},
};

/// What a receiver lets a stream be.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    /// The bytes of every chunk but the last.
    pub(super) chunk_size: u64,
    /// How many chunks may be on their way or held.
    pub(super) window: u64,
    /// What the sender said of the length.
    pub(super) declared: Option<u64>,
    /// The most bytes that are taken.
    pub(super) max_length: u64,
}

/// What became of a chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Accepted {
    New,
    Duplicate,
}

/// Puts chunks in order, within a window, and refuses what does not fit together.
///
/// A stream is `chunks` times `chunk_size` bytes, of which the last chunk may have fewer; so an offset
/// follows from its sequence number, and a short chunk says where the stream ends.
#[derive(Debug)]
pub(super) struct Reassembly {
    bounds: Bounds,
    /// Chunks handed out.
    taken: u64,
    /// Chunks that arrived and wait for those before them, or for their reader.
    held: BTreeMap<u64, Held>,
    /// The checksums of the last chunks that were handed out, for duplicates.
    recent: VecDeque<u32>,
    /// Chunks that the sender has said it sent.
    sent: u64,
    /// The length, as a short chunk or the close tells it.
    length: Option<u64>,
    close: Option<Close>,
}

#[derive(Debug)]
struct Held {
    body: Bytes,
    checksum: u32,
}

fn broken<T>(what: String) -> Result<T, StreamError> {
    Err(StreamError::BrokenProtocol(what))
}

impl Reassembly {
    /// A stream of which the first `taken` chunks are there already.
    pub(super) fn new(bounds: Bounds, taken: u64) -> Self {
        Self {
            bounds,
            taken,
            held: BTreeMap::new(),
            recent: VecDeque::new(),
            sent: taken,
            length: None,
            close: None,
        }
    }

    /// Takes a chunk in.
    ///
    /// It fails for good with [`StreamError::Corrupt`], [`StreamError::BrokenProtocol`] or
    /// [`StreamError::TooLarge`].
    pub(super) fn accept(&mut self, chunk: Chunk) -> Result<Accepted, StreamError> {
        let Chunk { seq, offset, checksum: claimed, body } = chunk;
        let end = self.check_place(seq, offset, body.len() as u64)?;
        if checksum(&body) != claimed {
            return Err(StreamError::Corrupt(format!("chunk {seq} has not its checksum")));
        }
        if let Some(known) = self.checksum_of(seq) {
            return match known == claimed {
                true => Ok(Accepted::Duplicate),
                false => Err(StreamError::Corrupt(format!("chunk {seq} came with two contents"))),
            };
        }
        if seq < self.taken {
            return Ok(Accepted::Duplicate);
        }
        if seq >= self.until() {
            return broken(format!("chunk {seq} came, and {} were allowed", self.until()));
        }
        if (body.len() as u64) < self.bounds.chunk_size {
            if self.highest() > seq + 1 {
                return broken(format!("chunk {seq} is short and not the last"));
            }
            self.length = Some(end);
        }
        self.held.insert(seq, Held { body, checksum: claimed });
        self.sent = self.sent.max(seq + 1);
        Ok(Accepted::New)
    }

    /// Whether a chunk of `size` bytes can be where it says it is; gives the offset of its end.
    fn check_place(&self, seq: u64, offset: u64, size: u64) -> Result<u64, StreamError> {
        let Bounds { chunk_size, declared, max_length, .. } = self.bounds;
        if size == 0 || size > chunk_size {
            return broken(format!("chunk {seq} has {size} bytes, of at most {chunk_size}"));
        }
        if seq.checked_mul(chunk_size) != Some(offset) {
            return broken(format!("chunk {seq} says that it is at byte {offset}"));
        }
        let Some(end) = offset.checked_add(size) else {
            return broken(format!("chunk {seq} ends beyond all bytes"));
        };
        if end > max_length {
            return Err(StreamError::TooLarge { limit: max_length });
        }
        if let Some(declared) = declared
            && end > declared
        {
            return broken(format!("{declared} bytes were announced, and there are more"));
        }
        match self.length {
            Some(length) if end > length || (size < chunk_size && end != length) => {
                broken(format!("chunk {seq} ends at byte {end}, and the stream at {length}"))
            }
            _ => Ok(end),
        }
    }

    /// Takes the end in, which may overtake chunks. A second one must say the same.
    pub(super) fn close(&mut self, close: Close) -> Result<(), StreamError> {
        let Bounds { chunk_size, declared, max_length, .. } = self.bounds;
        let Close { chunks, length, .. } = close;
        if let Some(known) = self.close {
            return match known == close {
                true => Ok(()),
                false => broken("the stream was closed in two ways".to_owned()),
            };
        }
        if length > max_length {
            return Err(StreamError::TooLarge { limit: max_length });
        }
        if length.div_ceil(chunk_size) != chunks {
            return broken(format!("{length} bytes are not {chunks} chunks of {chunk_size}"));
        }
        if let Some(declared) = declared
            && declared != length
        {
            return broken(format!("{declared} bytes were announced, and it ends at {length}"));
        }
        if self.highest() > chunks || self.length.is_some_and(|known| known != length) {
            return broken(format!("it ends at byte {length}, and chunks say otherwise"));
        }
        // The last chunk may have come as a full one.
        if let Some(last) = chunks.checked_sub(1)
            && let Some(held) = self.held.get(&last)
            && last * chunk_size + held.body.len() as u64 != length
        {
            return broken(format!("it ends at byte {length}, and its last chunk does not"));
        }
        if chunks == self.taken && self.length.is_none() && length != chunks * chunk_size {
            return broken(format!("it ends at byte {length}, and more was taken"));
        }
        self.length = Some(length);
        self.close = Some(close);
        Ok(())
    }

    /// The sender says how many chunks it has sent, so that a lost tail is noticed.
    pub(super) fn note_sent(&mut self, chunks: u64) {
        self.sent = self.sent.max(chunks.min(self.until()));
    }

    /// Whether the next chunk in order is there.
    pub(super) fn has_next(&self) -> bool {
        self.held.first_key_value().is_some_and(|(seq, _)| *seq == self.taken)
    }

    /// Hands the next chunk out, in order.
    pub(super) fn take(&mut self) -> Option<Bytes> {
        if !self.has_next() {
            return None;
        }
        let (_, Held { body, checksum }) = self.held.pop_first()?;
        self.taken += 1;
        self.recent.push_back(checksum);
        if self.recent.len() as u64 > self.bounds.window {
            self.recent.pop_front();
        }
        Some(body)
    }

    /// The end, when everything before it was handed out.
    pub(super) fn end(&self) -> Option<&Close> {
        self.close.as_ref().filter(|close| close.chunks == self.taken)
    }

    /// Chunks that arrived without a gap.
    pub(super) fn received(&self) -> u64 {
        let in_order = self.held.keys().zip(self.taken..).take_while(|(seq, next)| *seq == next);
        self.taken + in_order.count() as u64
    }

    /// How many chunks the sender may send, from the first.
    pub(super) const fn until(&self) -> u64 {
        self.taken.saturating_add(self.bounds.window)
    }

    /// Chunks that were sent and are not here, as far as is known, as ranges `from..to`.
    pub(super) fn gaps(&self) -> Vec<(u64, u64)> {
        let known = self.close.map_or(self.sent, |close| close.chunks);
        self.absent(known.min(self.until()))
    }

    /// Chunks that may have been sent and are not here: after a loss of what was on its way.
    pub(super) fn lost(&self) -> Vec<(u64, u64)> {
        let end = self.close.map_or(u64::MAX, |close| close.chunks);
        self.absent(end.min(self.until()))
    }

    fn absent(&self, end: u64) -> Vec<(u64, u64)> {
        let mut ranges = Vec::new();
        let mut next = self.received();
        for seq in self.held.range(next..).map(|(seq, _)| *seq) {
            if seq > next {
                ranges.push((next, seq));
            }
            next = seq + 1;
        }
        if next < end {
            ranges.push((next, end));
        }
        ranges
    }

    /// One more than the highest chunk that was seen.
    fn highest(&self) -> u64 {
        self.held.last_key_value().map_or(self.taken, |(seq, _)| seq + 1)
    }

    fn checksum_of(&self, seq: u64) -> Option<u32> {
        if let Some(held) = self.held.get(&seq) {
            return Some(held.checksum);
        }
        let back = usize::try_from(self.taken.checked_sub(seq)?).ok()?;
        let index = self.recent.len().checked_sub(back)?;
        self.recent.get(index).copied()
    }
}

#[cfg(test)]
mod tests;
