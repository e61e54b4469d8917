use std::{borrow::Cow, fmt};

/// How an exchange chooses the queues of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ExchangeKind {
    /// The binding key equals the routing key.
    Direct,
    /// The binding key is a pattern of words parted by dots: `*` is one word, `#` any number.
    Topic,
    /// Every binding matches.
    Fanout,
    /// The binding's arguments match the headers, all or any of them as its `x-match` says.
    Headers,
}

impl fmt::Display for ExchangeKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Direct => "direct",
            Self::Topic => "topic",
            Self::Fanout => "fanout",
            Self::Headers => "headers",
        })
    }
}

/// An exchange to declare.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Exchange {
    /// Its name, at most 255 bytes.
    pub name: Cow<'static, str>,
    /// How it routes.
    pub kind: ExchangeKind,
    /// Whether it outlives a restart of the broker. Default: true.
    pub durable: bool,
    /// Whether it goes when its last binding goes. Default: false.
    pub auto_delete: bool,
    /// Whether publishers are refused, so that only other exchanges feed it. Default: false.
    pub internal: bool,
    /// The exchange that gets what this one cannot route. Default: none.
    pub alternate: Option<Cow<'static, str>>,
}

impl Exchange {
    /// A durable exchange of `kind`.
    pub fn new(name: impl Into<Cow<'static, str>>, kind: ExchangeKind) -> Self {
        Self {
            name: name.into(),
            kind,
            durable: true,
            auto_delete: false,
            internal: false,
            alternate: None,
        }
    }

    /// A durable direct exchange.
    pub fn direct(name: impl Into<Cow<'static, str>>) -> Self {
        Self::new(name, ExchangeKind::Direct)
    }

    /// A durable topic exchange.
    pub fn topic(name: impl Into<Cow<'static, str>>) -> Self {
        Self::new(name, ExchangeKind::Topic)
    }

    /// A durable fanout exchange.
    pub fn fanout(name: impl Into<Cow<'static, str>>) -> Self {
        Self::new(name, ExchangeKind::Fanout)
    }

    /// A durable headers exchange.
    pub fn headers(name: impl Into<Cow<'static, str>>) -> Self {
        Self::new(name, ExchangeKind::Headers)
    }

    /// Sets [`durable`](Self::durable) to false.
    #[must_use]
    pub fn transient(mut self) -> Self {
        self.durable = false;
        self
    }

    /// Sets [`auto_delete`](Self::auto_delete).
    #[must_use]
    pub fn auto_delete(mut self) -> Self {
        self.auto_delete = true;
        self
    }

    /// Sets [`internal`](Self::internal).
    #[must_use]
    pub fn internal(mut self) -> Self {
        self.internal = true;
        self
    }

    /// Sets [`alternate`](Self::alternate).
    #[must_use]
    pub fn with_alternate(mut self, exchange: impl Into<Cow<'static, str>>) -> Self {
        self.alternate = Some(exchange.into());
        self
    }
}
