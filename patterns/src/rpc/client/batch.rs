use std::time::Duration;

use futures_util::{StreamExt, stream};
use postrider_core::Result;

use super::{CallOptions, RpcClient};
use crate::{
    handler::Context,
    rpc::{Request, RpcError},
};

/// How a batch of calls is made.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct BatchOptions {
    /// How many of the calls may be under way at once; zero is one. Default: 64.
    pub in_flight: usize,
    /// How long the whole batch may take, at most a day. Default: the client's timeout.
    pub timeout: Option<Duration>,
    /// The handler that the calls are made from. Default: none.
    pub parent: Option<Context>,
}

impl Default for BatchOptions {
    fn default() -> Self {
        Self { in_flight: 64, timeout: None, parent: None }
    }
}

impl BatchOptions {
    /// Sets [`in_flight`](Self::in_flight).
    #[must_use]
    pub const fn with_in_flight(mut self, calls: usize) -> Self {
        self.in_flight = calls;
        self
    }

    /// Sets [`timeout`](Self::timeout).
    #[must_use]
    pub const fn with_timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    /// Sets [`parent`](Self::parent), as [`CallOptions::within`].
    #[must_use]
    pub fn within(mut self, context: &Context) -> Self {
        self.parent = Some(context.clone());
        self
    }
}

impl RpcClient {
    /// Calls the method of each of `requests` at `service` and gives each outcome, in the order of
    /// the requests. One deadline holds for all; what it cuts off is [`RpcError::TimedOut`], and
    /// was not sent where `after` is zero.
    ///
    /// When the future is dropped, the calls under way are given up and the others are not made.
    pub async fn call_batch<R: Request>(
        &self,
        service: &str,
        requests: impl IntoIterator<Item = R>,
        options: BatchOptions,
    ) -> Vec<Result<R::Reply, RpcError>> {
        let BatchOptions { in_flight, timeout, parent } = options;
        let whole = CallOptions { timeout, parent, ..CallOptions::default() };
        let until = self.inner.env().now() + whole.time(self.inner.timeout);
        let calls = requests.into_iter().enumerate().map(|(place, request)| {
            let options = whole.clone();
            async move {
                let left = until.saturating_duration_since(self.inner.env().now());
                let options = options.with_timeout(left);
                (place, self.call_with(service, &request, options).await)
            }
        });
        // Not `buffered`: an outcome that waits for its turn would keep the next call from its own.
        let calls = stream::iter(calls).buffer_unordered(in_flight.max(1));
        let mut outcomes: Vec<_> = calls.collect().await;
        outcomes.sort_unstable_by_key(|(place, _)| *place);
        outcomes.into_iter().map(|(_, outcome)| outcome).collect()
    }
}
