//! One request to many: to every server of a service, or to several services.

use std::{collections::HashSet, sync::Arc, time::Duration};

use futures_util::{FutureExt, StreamExt, stream::FuturesUnordered};
use postrider_core::{Address, Envelope, HeaderValue, Verdict};
use tokio::time::timeout_at;

use super::{
    CallOptions, RpcClient,
    call::Call,
    exchange::{GivenUp, Inner, whole_millis},
    pending::Replies,
};
use crate::{
    handler::Context,
    headers,
    rpc::{Request, RpcError, control, wire},
};

/// How many answers may wait to be looked at.
const MOST_WAITING: usize = 1_024;

/// How many answers a gathering wants, and how long it waits for them.
#[derive(Debug, Clone)]
#[non_exhaustive]
#[must_use]
pub struct Gather {
    until: Until,
    expecting: Option<usize>,
    options: CallOptions,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Until {
    All,
    Answers(usize),
}

impl Gather {
    const fn new(until: Until) -> Self {
        let options =
            CallOptions { timeout: None, parent: None, idempotent: None, idempotency_key: None };
        Self { until, expecting: None, options }
    }

    /// Until everybody has answered.
    pub const fn all() -> Self {
        Self::new(Until::All)
    }

    /// Until one has answered without an error.
    pub const fn first() -> Self {
        Self::quorum(1)
    }

    /// Until so many have answered without an error, or so many cannot any more. At least one.
    pub const fn quorum(answers: usize) -> Self {
        // Without an answer nothing would be gathered.
        Self::new(Until::Answers(if answers == 0 { 1 } else { answers }))
    }

    /// Sets how long the gathering may take, at most a day. Default: the client's timeout.
    pub const fn with_timeout(mut self, timeout: Duration) -> Self {
        self.options.timeout = Some(timeout);
        self
    }

    /// Sets how many servers there are. Default: as many as take requests of the service now, which
    /// the broker knows. For services that are asked by name it is how many are asked.
    pub const fn expecting(mut self, servers: usize) -> Self {
        self.expecting = Some(servers);
        self
    }

    /// Sets the handler that it is made from, as [`CallOptions::within`].
    pub fn within(mut self, context: &Context) -> Self {
        self.options = self.options.within(context);
        self
    }
}

/// What was gathered, complete or not.
#[derive(Debug)]
#[non_exhaustive]
pub struct Gathered<R> {
    /// Who answered what, in the order of arrival.
    pub answers: Vec<Answer<R>>,
    /// Who failed, and how.
    pub errors: Vec<GatherFailure>,
    /// How many of those who were asked were not heard of when it ended.
    pub missing: usize,
    /// Whether it is what was asked for: all without an error, the first, or the quorum.
    pub reached: bool,
}

/// One answer of those that were gathered.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Answer<R> {
    /// Who gave it: a server's id, or the service's name where services were asked.
    pub from: String,
    /// What it is.
    pub data: R,
}

/// One failure of those that were gathered.
#[derive(Debug)]
#[non_exhaustive]
pub struct GatherFailure {
    /// Who failed, as in [`Answer::from`].
    pub from: String,
    /// How.
    pub error: RpcError,
}

impl<R> Gathered<R> {
    fn new() -> Self {
        Self { answers: Vec::new(), errors: Vec::new(), missing: 0, reached: false }
    }

    fn add(&mut self, from: String, outcome: Result<R, RpcError>) {
        match outcome {
            Ok(data) => self.answers.push(Answer { from, data }),
            Err(error) => self.errors.push(GatherFailure { from, error }),
        }
    }

    fn tally(&self, until: Until, expected: usize) -> Tally {
        Tally { until, expected, answers: self.answers.len(), errors: self.errors.len() }
    }

    fn end(mut self, tally: Tally) -> Self {
        self.missing = tally.missing();
        self.reached = tally.is_reached();
        self
    }
}

/// How a gathering stands.
#[derive(Debug, Clone, Copy)]
struct Tally {
    until: Until,
    expected: usize,
    answers: usize,
    errors: usize,
}

impl Tally {
    const fn missing(self) -> usize {
        self.expected.saturating_sub(self.answers + self.errors)
    }

    const fn is_reached(self) -> bool {
        match self.until {
            Until::All => self.answers >= self.expected,
            Until::Answers(wanted) => self.answers >= wanted,
        }
    }

    /// Whether nothing that may still come can change whether it is reached.
    const fn is_over(self) -> bool {
        match self.until {
            Until::All => self.missing() == 0,
            Until::Answers(wanted) => self.is_reached() || self.answers + self.missing() < wanted,
        }
    }
}

impl RpcClient {
    /// Sends `request` to every server of `service` and gathers what they answer. It ends when it
    /// has what it wants or its time is over; what is there then is a value, whoever is missing.
    /// Servers whose answers are not wanted any more are told.
    ///
    /// Plain servers, which know nothing of this, do not hear of it and are missing.
    ///
    /// When the future is dropped, the servers are told.
    ///
    /// # Errors
    ///
    /// [`RpcError::Unavailable`] when the service has no server, and what a request fails with
    /// before it is sent. What a server fails with is one of [`Gathered::errors`].
    pub async fn gather<R: Request>(
        &self,
        service: &str,
        request: &R,
        gather: Gather,
    ) -> Result<Gathered<R::Reply>, RpcError> {
        let inner = &*self.inner;
        let Gather { until, expecting, options } = gather;
        let call = inner.call(service, R::METHOD, &options)?;
        let mut message = inner.request(&call, request, &options)?;
        let expected = timeout_at(call.until, inner.servers(&call, expecting)).await;
        let expected = expected.unwrap_or_else(|_late| Err(call.not_sent_within(call.timeout)))?;

        let most = expected.saturating_mul(2).clamp(16, MOST_WAITING);
        let (ticket, mut replies) = inner.pending.register_many(most)?;
        let bytes = message.body.len() as u64;
        message.correlation_id = Some(ticket.id().into());
        message.ttl = Some(whole_millis(call.until - inner.env().now()));
        let sending = async {
            let exchange = inner.outbox.exchange(service).await?;
            let exchange = exchange.ok_or_else(|| call.no_instance())?;
            let address = Address::exchange(exchange, control::KEY_ALL);
            Ok(inner.publish(&ticket, Envelope::new(address, message)).await?.await)
        };
        let mut given_up = GivenUp { inner, call: &call, ticket: &ticket, ended: false };
        let sent = timeout_at(call.until, sending).await;
        match sent.unwrap_or_else(|_late| Err(call.not_sent_within(call.timeout)))? {
            Verdict::Unroutable => {
                given_up.ended = true;
                return Err(call.no_instance());
            }
            Verdict::Accepted => {}
            verdict => {
                inner.outbox.forget(service);
                inner.verdict(&call, bytes, verdict)?;
            }
        }
        inner.sent(&ticket)?;

        let mut gathered = Gathered::new();
        let gathering = inner.take_answers(&mut gathered, &mut replies, until, expected);
        let _in_time = within_parent(&options, timeout_at(call.until, gathering)).await?;
        let tally = gathered.tally(until, expected);
        // Those whose time is over know it.
        given_up.ended = tally.missing() == 0 || inner.env().now() >= call.until;
        Ok(gathered.end(tally))
    }

    /// Calls the method of `request` at each of `services` and gathers what they answer; else as
    /// [`gather`](Self::gather). A service that did not answer in time is missing.
    ///
    /// When the future is dropped, the calls are given up.
    pub async fn gather_from<R: Request>(
        &self,
        services: &[&str],
        request: &R,
        gather: Gather,
    ) -> Gathered<R::Reply> {
        let Gather { until, expecting: _, options } = gather;
        let mut calls: FuturesUnordered<_> = services
            .iter()
            .map(|service| {
                let call = self.call_with(service, request, options.clone());
                call.map(|outcome| ((*service).to_owned(), outcome))
            })
            .collect();
        let mut gathered = Gathered::new();
        let tally = loop {
            let tally = gathered.tally(until, services.len());
            if tally.is_over() {
                break tally;
            }
            match calls.next().await {
                Some((_, Err(RpcError::TimedOut { .. }))) => {}
                Some((service, outcome)) => gathered.add(service, outcome),
                None => break tally,
            }
        };
        gathered.end(tally)
    }
}

/// Ends with the handler that it is made from.
async fn within_parent<T>(
    options: &CallOptions,
    future: impl Future<Output = T>,
) -> Result<T, RpcError> {
    let Some(parent) = &options.parent else { return Ok(future.await) };
    tokio::select! {
        biased;
        () = parent.cancellation().cancelled() => Err(RpcError::Cancelled),
        value = future => Ok(value),
    }
}

impl Inner {
    /// How many servers the service of a call has.
    async fn servers(&self, call: &Call<'_>, expecting: Option<usize>) -> Result<usize, RpcError> {
        match self.transport.queue_info(&call.queue).await? {
            None => Err(call.no_queue()),
            Some(info) if info.consumers == 0 => Err(call.no_consumer()),
            Some(info) => {
                Ok(expecting.unwrap_or(usize::try_from(info.consumers).unwrap_or(usize::MAX)))
            }
        }
    }

    /// Takes answers until they are enough, or none will come any more. Cancellation safe.
    async fn take_answers<R: serde::de::DeserializeOwned>(
        &self,
        gathered: &mut Gathered<R>,
        replies: &mut Replies,
        until: Until,
        expected: usize,
    ) {
        let mut heard: HashSet<String> = HashSet::new();
        while !gathered.tally(until, expected).is_over() {
            let reply: Arc<Envelope> = match replies.recv().await {
                Ok(reply) => reply,
                Err(cause) => {
                    tracing::debug!(%cause, "gathering ended");
                    return;
                }
            };
            let from = reply.message.headers.get(headers::INSTANCE);
            let from = from.and_then(HeaderValue::as_text).unwrap_or_default().to_owned();
            // A server that lost its connection may answer twice.
            if heard.insert(from.clone()) {
                gathered.add(from, wire::decode_reply(&reply.message, self.limits));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stands(until: Until, answers: usize, errors: usize) -> (bool, bool) {
        let tally = Tally { until, expected: 5, answers, errors };
        (tally.is_over(), tally.is_reached())
    }

    #[test]
    fn all_wait_for_everybody() {
        assert_eq!(stands(Until::All, 4, 0), (false, false));
        assert_eq!(stands(Until::All, 5, 0), (true, true));
        assert_eq!(stands(Until::All, 4, 1), (true, false));
    }

    #[test]
    fn a_quorum_ends_as_soon_as_it_is_decided() {
        let quorum = Until::Answers(3);
        assert_eq!(stands(quorum, 2, 2), (false, false));
        assert_eq!(stands(quorum, 3, 0), (true, true));
        assert_eq!(stands(quorum, 2, 3), (true, false));
        assert_eq!(stands(quorum, 0, 3), (true, false));
        assert_eq!(stands(Until::Answers(6), 0, 0), (true, false), "more than there are");
    }
}
