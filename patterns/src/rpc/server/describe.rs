use serde::{Deserialize, Serialize};

/// What a server serves, for people and tools.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ServiceDescription {
    /// The service's name.
    pub service: String,
    /// The queue that it takes requests from.
    pub queue: String,
    /// How many requests a server handles at once.
    pub concurrency: usize,
    /// How many requests may wait in the queue.
    pub max_waiting: u64,
    /// Its methods, by their names.
    pub methods: Vec<MethodDescription>,
}

/// One method of a service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct MethodDescription {
    /// Its name on the wire.
    pub name: String,
    /// Whether a request that comes again gets the reply that was stored.
    pub idempotent: bool,
    /// Whether it answers by a stream.
    pub streams: bool,
}
