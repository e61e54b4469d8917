//! What a server remembers of the requests that it has handled.

use std::{
    collections::{HashMap, VecDeque},
    fmt,
    sync::{Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use futures_util::{FutureExt, future::BoxFuture};
use postrider_core::{HeaderValue, Headers};
use tokio::sync::Notify;

use crate::handler::HandlerError;

/// What makes two requests the same one.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct InboxKey {
    /// The service that was called.
    pub service: String,
    /// The method that was called.
    pub method: String,
    /// Who gave the key: a client's name; empty for a key that is a message id.
    pub caller: String,
    /// The idempotency key, else the id of the message.
    pub key: String,
}

impl InboxKey {
    /// A key from its parts.
    pub fn new(
        service: impl Into<String>,
        method: impl Into<String>,
        caller: impl Into<String>,
        key: impl Into<String>,
    ) -> Self {
        let (service, method) = (service.into(), method.into());
        Self { service, method, caller: caller.into(), key: key.into() }
    }
}

/// A reply as it was given, to be given again.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct StoredReply {
    /// The content type of the body.
    pub content_type: String,
    /// The body.
    pub body: Bytes,
    /// What an error reply says beside its body.
    pub headers: Headers,
}

impl StoredReply {
    /// A reply from its parts.
    pub fn new(content_type: impl Into<String>, body: Bytes, headers: Headers) -> Self {
        Self { content_type: content_type.into(), body, headers }
    }

    fn bytes(&self) -> usize {
        let header = |(name, value): (&str, &HeaderValue)| {
            let value = match value {
                HeaderValue::Text(text) => text.len(),
                HeaderValue::Bytes(bytes) => bytes.len(),
                _ => 8,
            };
            name.len() + value
        };
        self.body.len() + self.headers.iter().map(header).sum::<usize>()
    }
}

/// What is to be done with a request.
#[derive(Debug, Clone, PartialEq)]
pub enum Claim {
    /// Handle it. The key is taken until a reply is [stored](Inbox::store) or it is
    /// [released](Inbox::release).
    Handle,
    /// It was handled before; this was its reply.
    Replay(StoredReply),
}

/// Remembers the replies to idempotent requests, so that one that comes again is answered and not
/// handled again.
///
/// A server asks it before it runs a method that is idempotent, and tells it the reply before that
/// is published. Replies are successes and rejections; after any other failure the key is free
/// again. What outlives a crash depends on the inbox; [`InMemoryInbox`] does not.
pub trait Inbox: fmt::Debug + Send + Sync + 'static {
    /// Takes a key, or gives the reply that was stored under it. While somebody else has taken it, it
    /// waits. Cancellation safe: a key that is not given to the caller is not taken.
    ///
    /// # Errors
    ///
    /// When it cannot tell; the request is answered with that error and not handled.
    fn claim<'a>(&'a self, key: &'a InboxKey) -> BoxFuture<'a, Result<Claim, HandlerError>>;

    /// Stores the reply under a key that was taken.
    ///
    /// # Errors
    ///
    /// When it cannot; the request has been handled, and its caller gets the reply all the same.
    fn store<'a>(
        &'a self,
        key: &'a InboxKey,
        reply: StoredReply,
    ) -> BoxFuture<'a, Result<(), HandlerError>>;

    /// Gives a key back that was taken: its request was not handled, or failed.
    fn release(&self, key: &InboxKey);
}

/// An [`Inbox`] in memory, bounded by the number and the size of its replies: the oldest go first.
#[derive(Debug)]
pub struct InMemoryInbox {
    most_replies: usize,
    most_bytes: usize,
    state: Mutex<Replies>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct Replies {
    /// A key without a reply is taken.
    known: HashMap<InboxKey, Option<StoredReply>>,
    oldest_first: VecDeque<InboxKey>,
    bytes: usize,
}

impl Default for InMemoryInbox {
    /// 10,000 replies of 64 MiB together.
    fn default() -> Self {
        Self::bounded(10_000, 64 * 1024 * 1024)
    }
}

impl InMemoryInbox {
    /// One that keeps at most so many replies and so many bytes of them.
    #[must_use]
    pub fn bounded(replies: usize, bytes: usize) -> Self {
        Self {
            most_replies: replies,
            most_bytes: bytes,
            state: Mutex::default(),
            changed: Notify::new(),
        }
    }

    fn state(&self) -> MutexGuard<'_, Replies> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Nothing while somebody else has the key.
    fn try_claim(&self, key: &InboxKey) -> Option<Claim> {
        let mut state = self.state();
        match state.known.get(key) {
            Some(Some(reply)) => Some(Claim::Replay(reply.clone())),
            Some(None) => None,
            None => {
                state.known.insert(key.clone(), None);
                Some(Claim::Handle)
            }
        }
    }

    async fn wait_for(&self, key: &InboxKey) -> Claim {
        loop {
            // Before the look, so that no change after it is missed.
            let changed = self.changed.notified();
            if let Some(claim) = self.try_claim(key) {
                return claim;
            }
            changed.await;
        }
    }
}

impl Inbox for InMemoryInbox {
    fn claim<'a>(&'a self, key: &'a InboxKey) -> BoxFuture<'a, Result<Claim, HandlerError>> {
        self.wait_for(key).map(Ok).boxed()
    }

    fn store<'a>(
        &'a self,
        key: &'a InboxKey,
        reply: StoredReply,
    ) -> BoxFuture<'a, Result<(), HandlerError>> {
        let mut state = self.state();
        state.bytes += reply.bytes();
        if let Some(Some(former)) = state.known.insert(key.clone(), Some(reply)) {
            state.bytes -= former.bytes();
        } else {
            state.oldest_first.push_back(key.clone());
        }
        while state.oldest_first.len() > self.most_replies || state.bytes > self.most_bytes {
            let Some(oldest) = state.oldest_first.pop_front() else { break };
            if let Some(Some(gone)) = state.known.remove(&oldest) {
                state.bytes -= gone.bytes();
            }
        }
        drop(state);
        self.changed.notify_waiters();
        async { Ok(()) }.boxed()
    }

    fn release(&self, key: &InboxKey) {
        let mut state = self.state();
        if let Some(None) = state.known.get(key) {
            state.known.remove(key);
        }
        drop(state);
        self.changed.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    fn key(key: &str) -> InboxKey {
        InboxKey::new("math", "add", "me", key)
    }

    fn reply(body: &'static str) -> StoredReply {
        StoredReply::new("application/json", Bytes::from_static(body.as_bytes()), Headers::new())
    }

    #[tokio::test]
    async fn a_key_is_handled_once_and_then_replayed() {
        let inbox = Arc::new(InMemoryInbox::default());
        assert_eq!(inbox.claim(&key("1")).await.unwrap(), Claim::Handle);
        // Who comes meanwhile waits.
        let waiting = Arc::clone(&inbox);
        let waiting = tokio::spawn(async move { waiting.claim(&key("1")).await.unwrap() });
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        inbox.store(&key("1"), reply("3")).await.unwrap();
        assert_eq!(waiting.await.unwrap(), Claim::Replay(reply("3")));
        assert_eq!(inbox.claim(&key("1")).await.unwrap(), Claim::Replay(reply("3")));
        assert_eq!(inbox.claim(&key("2")).await.unwrap(), Claim::Handle);
    }

    #[tokio::test]
    async fn a_key_that_is_released_is_free_and_a_reply_stays() {
        let inbox = InMemoryInbox::default();
        inbox.claim(&key("1")).await.unwrap();
        inbox.release(&key("1"));
        assert_eq!(inbox.claim(&key("1")).await.unwrap(), Claim::Handle);
        inbox.store(&key("1"), reply("3")).await.unwrap();
        inbox.release(&key("1"));
        assert_eq!(inbox.claim(&key("1")).await.unwrap(), Claim::Replay(reply("3")));
    }

    #[tokio::test]
    async fn the_oldest_replies_go_when_there_are_too_many_or_they_are_too_large() {
        let inbox = InMemoryInbox::bounded(2, 10);
        for (number, body) in ["1", "2", "3", "123456789"].into_iter().enumerate() {
            let key = key(&number.to_string());
            assert_eq!(inbox.claim(&key).await.unwrap(), Claim::Handle);
            inbox.store(&key, reply(body)).await.unwrap();
        }
        assert_eq!(inbox.claim(&key("0")).await.unwrap(), Claim::Handle);
        assert_eq!(inbox.claim(&key("1")).await.unwrap(), Claim::Handle);
        assert_eq!(inbox.claim(&key("2")).await.unwrap(), Claim::Replay(reply("3")));
        assert_eq!(inbox.claim(&key("3")).await.unwrap(), Claim::Replay(reply("123456789")));
        let too_large = key("4");
        inbox.claim(&too_large).await.unwrap();
        inbox.store(&too_large, reply("12345678901")).await.unwrap();
        assert_eq!(inbox.state().bytes, 0);
    }
}
