use std::collections::BTreeMap;

use semver::Version;

/// One running instance of a service, as it said itself.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Instance {
    /// The service that it is an instance of.
    pub service: String,
    /// Its id; a service that is started again has another one.
    pub id: String,
    /// The version of the service that it runs.
    pub version: Version,
    /// What can be called there.
    pub methods: Vec<String>,
    /// What else it says of itself, for example its zone.
    pub metadata: BTreeMap<String, String>,
    /// How it fares.
    pub health: InstanceHealth,
}

/// How an instance says that it fares.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum InstanceHealth {
    /// It does its work.
    #[default]
    Healthy,
    /// It does its work badly, for this reason: it is picked only where nobody is healthy.
    Degraded(String),
    /// It cannot do its work, for this reason: it is not picked.
    Unhealthy(String),
}

impl InstanceHealth {
    /// Why it is not healthy.
    #[must_use]
    pub fn reason(&self) -> Option<&str> {
        match self {
            Self::Healthy => None,
            Self::Degraded(reason) | Self::Unhealthy(reason) => Some(reason),
        }
    }
}
