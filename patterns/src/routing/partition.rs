use std::num::NonZeroU32;

use postrider_core::{Address, Error, ErrorKind, Queue, Result, Topology};
use serde::{Deserialize, Serialize};

use crate::{
    naming::Naming,
    resilience::{dead_letter_route, dead_letter_topology},
};

/// The most partitions of one queue.
const MAX_PARTITIONS: u32 = 1_024;

/// Spreads messages over a fixed number of queues by a key: messages of one key come to one queue
/// and stay in order there, since each queue has one active consumer at a time.
///
/// Which queue a key has depends on the key and the number of queues alone, by a consistent hash
/// (jump hash): when the number grows from `n` to `m`, about `1 - n / m` of all keys move, each to
/// a new queue, and none between old ones. What waits in the old queues stays there, so a key that
/// moves keeps its order only if its old queue is empty first.
///
/// # Example: a key has its queue
///
/// ```
/// use postrider_patterns::{Naming, routing::Partitioner};
///
/// let partitioner = Partitioner::new("orders", 4)?;
/// assert_eq!(partitioner.partition("customer-4"), partitioner.partition("customer-4"));
/// let queue = partitioner.queue(&Naming::default(), "customer-4");
/// assert!(queue.starts_with("orders.partition."));
/// # Ok::<(), postrider_core::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "Wire", into = "Wire")]
pub struct Partitioner {
    queue: String,
    count: NonZeroU32,
}

/// A partitioner as it is written.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Wire {
    queue: String,
    count: u32,
}

impl TryFrom<Wire> for Partitioner {
    type Error = Error;

    fn try_from(Wire { queue, count }: Wire) -> Result<Self> {
        Self::new(queue, count)
    }
}

impl From<Partitioner> for Wire {
    fn from(Partitioner { queue, count }: Partitioner) -> Self {
        Self { queue, count: count.get() }
    }
}

impl Partitioner {
    /// `count` queues whose names begin with `queue`.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Invalid`] for none or more than 1,024.
    pub fn new(queue: impl Into<String>, count: u32) -> Result<Self> {
        match NonZeroU32::new(count) {
            Some(count) if count.get() <= MAX_PARTITIONS => Ok(Self { queue: queue.into(), count }),
            _ => Err(Error::new(
                ErrorKind::Invalid,
                "partition",
                format!("there are 1 to {MAX_PARTITIONS} partitions, not {count}"),
            )),
        }
    }

    /// How many there are.
    #[must_use]
    pub const fn count(&self) -> u32 {
        self.count.get()
    }

    /// The partition of a key, from 0.
    #[must_use]
    pub fn partition(&self, key: &str) -> u32 {
        jump(hash(key.as_bytes()), self.count)
    }

    /// The slot of a key among so many, as a partition is chosen.
    pub(crate) fn slot(key: &str, slots: NonZeroU32) -> u32 {
        jump(hash(key.as_bytes()), slots)
    }

    /// The queue of a key.
    #[must_use]
    pub fn queue(&self, naming: &Naming, key: &str) -> String {
        naming.partition_queue(&self.queue, self.partition(key))
    }

    /// Where a message of this key goes.
    #[must_use]
    pub fn address(&self, naming: &Naming, key: &str) -> Address {
        Address::queue(self.queue(naming, key))
    }

    /// The names of all queues, in the order of the partitions.
    pub fn queues(&self, naming: &Naming) -> impl Iterator<Item = String> {
        (0..self.count.get()).map(|number| naming.partition_queue(&self.queue, number))
    }

    /// The queues, to be declared by whoever consumes them: each durable, with one active consumer
    /// at a time, the usual delivery limit and a dead-letter queue.
    #[must_use]
    pub fn topology(&self, naming: &Naming) -> Topology {
        self.queues(naming).fold(Topology::new(), |topology, name| {
            let queue = Queue::durable(name.clone())
                .with_dead_letter(dead_letter_route(naming, &name))
                .single_active_consumer();
            topology.and(dead_letter_topology(naming, &name)).queue(queue)
        })
    }
}

/// FNV-1a over the bytes, its bits then mixed as `SplitMix64` does: short, well spread, and the
/// same in any language.
fn hash(key: &[u8]) -> u64 {
    let fnv = key.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    });
    let mixed = (fnv ^ (fnv >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

/// "A Fast, Minimal Memory, Consistent Hash Algorithm", Lamping and Veach, 2014.
#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "as the algorithm is defined; both factors are positive and below 2^32"
)]
fn jump(mut key: u64, count: NonZeroU32) -> u32 {
    let (mut found, mut next) = (0_u64, 0_u64);
    while next < u64::from(count.get()) {
        found = next;
        key = key.wrapping_mul(2_862_933_555_777_941_757).wrapping_add(1);
        let scale = (1_u64 << 31) as f64 / ((key >> 33) + 1) as f64;
        next = ((found + 1) as f64 * scale) as u64;
    }
    found as u32
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{prop_assert, prop_assert_eq, proptest};

    use super::*;

    fn partition(key: &str, count: u32) -> u32 {
        Partitioner::new("q", count).unwrap().partition(key)
    }

    proptest! {
        #[test]
        fn a_key_stays_or_moves_to_a_new_queue(key in ".{0,40}", count in 1..1_024_u32) {
            let (before, after) = (partition(&key, count), partition(&key, count + 1));
            prop_assert!(before < count);
            if before != after {
                prop_assert_eq!(after, count);
            }
        }
    }

    #[test]
    fn keys_are_spread_evenly_and_as_few_move_as_can() {
        let keys: Vec<_> = (0..20_000).map(|number| format!("customer-{number}")).collect();
        let mut sizes = [0_u32; 8];
        for key in &keys {
            sizes[partition(key, 8) as usize] += 1;
        }
        assert!(sizes.iter().all(|size| (2_300..2_700).contains(size)), "{sizes:?}");
        let moved = keys.iter().filter(|key| partition(key, 8) != partition(key, 10)).count();
        assert!((3_700..4_300).contains(&moved), "{moved} of 20,000 moved, a fifth is 4,000");
    }

    #[test]
    fn no_partitions_are_refused_as_data_too() {
        assert!(Partitioner::new("q", 0).is_err());
        assert!(Partitioner::new("q", 1_025).is_err());
        assert!(serde_json::from_str::<Partitioner>(r#"{"queue":"q","count":0}"#).is_err());
    }
}
