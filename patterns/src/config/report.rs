/// A value and its version.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Versioned<T> {
    /// Its version, from 1; 0 for a default.
    pub version: u64,
    /// The value.
    pub value: T,
}

/// Which version an instance runs.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ConfigReport {
    /// The name of the instance.
    pub instance: String,
    /// The version in force there; nothing when there is none, or only a default.
    pub version: Option<u64>,
    /// Why the newest value is not the one in force, when it is not.
    pub rejected: Option<Rejection>,
}

/// A value that an instance did not take.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Rejection {
    /// Its version.
    pub version: u64,
    /// Why, for people; at most 2,000 bytes.
    pub reason: String,
}
