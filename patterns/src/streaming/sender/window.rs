//! Which chunks are to be sent, and again: decisions without I/O.

use std::collections::{BTreeSet, VecDeque};

use crate::streaming::{
    StreamError,
    wire::{Chunk, Credit},
};

/// The chunks that were sent and that the receiver has not said it has, kept to be sent again.
#[derive(Debug)]
pub(super) struct Window {
    /// The most chunks that are kept.
    most: u64,
    /// The first chunk that the receiver has not said it has.
    base: u64,
    /// The chunk that the source gives next.
    next: u64,
    /// How many chunks the receiver lets be sent.
    until: u64,
    /// The chunks from `base` to `next`; those that the receiver had before they were read are left
    /// out at the front.
    kept: VecDeque<Chunk>,
    again: BTreeSet<u64>,
    repeated: u64,
}

/// What a new session of the receiver needs of the source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Source {
    /// To go on.
    Goes,
    /// To go back to this chunk.
    Back(u64),
}

impl Window {
    pub(super) fn new(most: u64) -> Self {
        let (kept, again) = (VecDeque::new(), BTreeSet::new());
        Self { most, base: 0, next: 0, until: 0, kept, again, repeated: 0 }
    }

    /// The receiver begins, or begins anew, and has the first `received` chunks.
    pub(super) fn begin(&mut self, credit: &Credit) -> Source {
        self.again.clear();
        self.until = credit.until;
        let first_kept = self.next - self.kept.len() as u64;
        if credit.received < first_kept {
            (self.base, self.next) = (credit.received, credit.received);
            self.kept.clear();
            return Source::Back(credit.received);
        }
        self.forget(credit.received);
        // What was on its way went to a queue that nobody reads any more.
        self.again.extend(self.base..self.next);
        Source::Goes
    }

    /// The receiver says what it has and lacks.
    ///
    /// It fails with [`StreamError::BrokenProtocol`] for what the receiver cannot have.
    pub(super) fn credit(&mut self, credit: &Credit) -> Result<(), StreamError> {
        if credit.received > self.next.max(self.base) {
            let (has, sent) = (credit.received, self.next);
            let message = format!("the receiver has {has} chunks, and {sent} were sent");
            return Err(StreamError::BrokenProtocol(message));
        }
        self.forget(credit.received);
        self.until = self.until.max(credit.until);
        for &(from, to) in &credit.missing {
            self.again.extend(from.max(self.base)..to.min(self.next));
        }
        Ok(())
    }

    fn forget(&mut self, received: u64) {
        // One that is late says what is known.
        if received <= self.base {
            return;
        }
        let first_kept = self.next - self.kept.len() as u64;
        let gone = received.min(self.next).saturating_sub(first_kept);
        self.kept.drain(..usize::try_from(gone).unwrap_or(usize::MAX).min(self.kept.len()));
        self.base = received;
        self.again = self.again.split_off(&received);
    }

    /// A chunk did not reach the receiver, as far as the broker says.
    pub(super) fn lost(&mut self, seq: u64) {
        if (self.base..self.next).contains(&seq) {
            self.again.insert(seq);
        }
    }

    /// The next chunk to be sent again.
    pub(super) fn repeat(&mut self) -> Option<Chunk> {
        let seq = self.again.pop_first()?;
        let first_kept = self.next - self.kept.len() as u64;
        let chunk = self.kept.get(usize::try_from(seq.checked_sub(first_kept)?).ok()?)?;
        self.repeated += 1;
        Some(chunk.clone())
    }

    /// Whether the source's next chunk is wanted: to be sent, or because the receiver has it and it
    /// is only to be counted in.
    pub(super) fn wants_next(&self) -> bool {
        self.next < self.base || (self.next < self.until && self.next - self.base < self.most)
    }

    /// The sequence number of the source's next chunk.
    pub(super) const fn next(&self) -> u64 {
        self.next
    }

    /// Takes the source's next chunk; says whether it is to be sent.
    pub(super) fn push(&mut self, chunk: Chunk) -> bool {
        self.next += 1;
        let wanted = self.next > self.base;
        if wanted {
            self.kept.push_back(chunk);
        }
        wanted
    }

    /// How many chunks the receiver has said it has.
    pub(super) const fn received(&self) -> u64 {
        self.base
    }

    /// How many chunks were sent more than once.
    pub(super) const fn repeated(&self) -> u64 {
        self.repeated
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn credit(received: u64, until: u64, missing: &[(u64, u64)]) -> Credit {
        Credit { received, until, missing: missing.to_vec() }
    }

    fn fill(window: &mut Window) -> Vec<u64> {
        let mut sent = Vec::new();
        while window.wants_next() {
            let chunk = Chunk::new(window.next(), 4, Bytes::from_static(b"body"));
            let seq = chunk.seq;
            if window.push(chunk) {
                sent.push(seq);
            }
        }
        sent
    }

    fn repeats(window: &mut Window) -> Vec<u64> {
        std::iter::from_fn(|| window.repeat()).map(|chunk| chunk.seq).collect()
    }

    #[test]
    fn no_more_is_sent_than_is_granted_and_no_more_kept_than_is_set() {
        let mut window = Window::new(4);
        assert!(fill(&mut window).is_empty());
        assert_eq!(window.begin(&credit(0, 3, &[])), Source::Goes);
        assert_eq!(fill(&mut window), [0, 1, 2]);
        // A receiver that grants all there is does not make the sender hold it.
        window.credit(&credit(1, u64::MAX, &[])).unwrap();
        assert_eq!(fill(&mut window), [3, 4]);
        assert!(window.credit(&credit(6, 9, &[])).is_err());
    }

    #[test]
    fn what_is_missing_or_lost_is_sent_again_once_for_each_time_it_is_asked_for() {
        let mut window = Window::new(8);
        window.begin(&credit(0, 8, &[]));
        fill(&mut window);
        window.credit(&credit(2, 8, &[(0, 4), (6, 100)])).unwrap();
        window.lost(5);
        window.lost(1);
        window.lost(99);
        assert_eq!(repeats(&mut window), [2, 3, 5, 6, 7]);
        assert!(repeats(&mut window).is_empty());
        // What has arrived meanwhile is not sent again.
        window.lost(5);
        window.credit(&credit(6, 8, &[])).unwrap();
        assert!(repeats(&mut window).is_empty());
        assert_eq!(window.repeated(), 5);
    }

    #[test]
    fn a_new_session_gets_what_it_lacks_from_what_is_kept_or_from_the_source() {
        let mut window = Window::new(8);
        window.begin(&credit(0, 8, &[]));
        fill(&mut window);
        window.credit(&credit(4, 8, &[])).unwrap();
        assert_eq!(window.begin(&credit(6, 10, &[])), Source::Goes);
        assert_eq!(repeats(&mut window), [6, 7]);
        assert_eq!(fill(&mut window), [8, 9]);
        assert_eq!(window.begin(&credit(5, 9, &[])), Source::Back(5));
        assert_eq!(fill(&mut window), [5, 6, 7, 8]);
    }

    #[test]
    fn a_sender_that_comes_back_counts_what_the_receiver_has_and_does_not_send_it() {
        let mut window = Window::new(4);
        assert_eq!(window.begin(&credit(5, 9, &[])), Source::Goes);
        assert_eq!(fill(&mut window), [5, 6, 7, 8]);
        assert!(repeats(&mut window).is_empty());
        // While it still counts, the receiver may say again what it has.
        let mut window = Window::new(4);
        window.begin(&credit(5, 9, &[]));
        window.credit(&credit(5, 9, &[(5, 9)])).unwrap();
        assert_eq!(fill(&mut window), [5, 6, 7, 8]);
    }
}
