use std::{borrow::Cow, fmt};

use crate::{HeaderValue, Headers};

/// What a binding leads to.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Target {
    /// A queue.
    Queue(Cow<'static, str>),
    /// Another exchange, which routes the message on by its own bindings.
    Exchange(Cow<'static, str>),
}

/// A way from an exchange to a queue or another exchange.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Binding {
    /// The exchange that messages come from.
    pub exchange: Cow<'static, str>,
    /// Where they go.
    pub target: Target,
    /// The binding key; what it means depends on the exchange's kind.
    pub key: Cow<'static, str>,
    /// What a headers exchange matches, with `x-match` as `all` (default), `any`, `all-with-x` or
    /// `any-with-x`. Names that begin with `x-` are compared by the last two only.
    pub arguments: Headers,
}

impl Binding {
    /// A binding from `exchange` to `queue` by `key`.
    pub fn queue(
        exchange: impl Into<Cow<'static, str>>,
        queue: impl Into<Cow<'static, str>>,
        key: impl Into<Cow<'static, str>>,
    ) -> Self {
        Self {
            exchange: exchange.into(),
            target: Target::Queue(queue.into()),
            key: key.into(),
            arguments: Headers::new(),
        }
    }

    /// A binding from `exchange` to the exchange `destination` by `key`.
    pub fn exchange(
        exchange: impl Into<Cow<'static, str>>,
        destination: impl Into<Cow<'static, str>>,
        key: impl Into<Cow<'static, str>>,
    ) -> Self {
        Self {
            exchange: exchange.into(),
            target: Target::Exchange(destination.into()),
            key: key.into(),
            arguments: Headers::new(),
        }
    }

    /// Sets one argument.
    #[must_use]
    pub fn with_argument(
        mut self,
        name: impl Into<Cow<'static, str>>,
        value: impl Into<HeaderValue>,
    ) -> Self {
        self.arguments.set(name, value);
        self
    }
}

impl fmt::Display for Binding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (kind, name) = match &self.target {
            Target::Queue(name) => ("queue", name),
            Target::Exchange(name) => ("exchange", name),
        };
        write!(f, "exchange '{}' -> {kind} '{name}' by key '{}'", self.exchange, self.key)
    }
}
