use std::time::Duration;

use crate::handler::Context;

/// What one call differs in.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct CallOptions {
    /// How long the call may take, at most a day. Default: the client's timeout.
    pub timeout: Option<Duration>,
    /// The handler that the call is made from. Default: none.
    pub parent: Option<Context>,
    /// Whether the request is sent again when its outcome is unknown, until the timeout. Default:
    /// what [`Request::IDEMPOTENT`](super::super::Request::IDEMPOTENT) says, and false for calls by
    /// name.
    pub idempotent: Option<bool>,
    /// By what a service recognises that it has handled this before, in the place of the message
    /// id, which is another for each call. Default: none.
    pub idempotency_key: Option<String>,
}

impl CallOptions {
    /// Sets [`timeout`](Self::timeout).
    #[must_use]
    pub const fn with_timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    /// Sets [`parent`](Self::parent): the call belongs to the conversation of that handler's
    /// message, ends when that handler is cancelled, and leaves it some time before its deadline to
    /// answer: 50 milliseconds, or a tenth of what is left where that is less.
    #[must_use]
    pub fn within(mut self, context: &Context) -> Self {
        self.parent = Some(context.clone());
        self
    }

    /// Sets [`idempotent`](Self::idempotent).
    #[must_use]
    pub const fn idempotent(mut self, idempotent: bool) -> Self {
        self.idempotent = Some(idempotent);
        self
    }

    /// Sets [`idempotency_key`](Self::idempotency_key). Clients of the same name that give the same
    /// key mean the same request.
    #[must_use]
    pub fn with_idempotency_key(mut self, key: impl Into<String>) -> Self {
        self.idempotency_key = Some(key.into());
        self
    }

    /// How long the call may take where the client's timeout is `usual`.
    pub(super) fn time(&self, usual: Duration) -> Duration {
        let own = self.timeout.unwrap_or(usual).min(super::LONGEST);
        let parent = self.parent.as_ref().and_then(Context::time_to_answer);
        parent.map_or(own, |left| own.min(left))
    }
}
