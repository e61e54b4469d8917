//! What is done with one request.

use std::{collections::HashMap, pin::pin, sync::Arc, time::Duration};

use chrono::{DateTime, Utc};
use postrider_core::{DeliveryInfo, Envelope, HeaderValue, Message};
use tokio::{sync::watch, time::sleep};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{
    calls::{Calls, InHand},
    inbox::{Claim, Inbox, InboxKey, StoredReply},
    method::{Answer, Items, Method},
    replies::Replies,
    streaming::{Sent, Streaming},
};
use crate::{
    codec::Codec,
    consuming::{Count, Disposition, Outcome, Process, catch_panic},
    handler::{Context, ErrorClass, HandlerError, codes},
    headers,
    middleware::Layers,
    rpc::{
        control::{self, Instance},
        wire::RequestHead,
    },
};

/// Answers one request after the other.
pub(super) struct Serve {
    pub(super) service: String,
    pub(super) methods: HashMap<String, Method>,
    pub(super) replies: Replies,
    pub(super) inbox: Arc<dyn Inbox>,
    pub(super) calls: Arc<Calls>,
    pub(super) instance: Instance,
    pub(super) clock_tolerance: Duration,
    pub(super) layers: Layers,
    /// Ends the task that hears what clients say.
    pub(super) _listening: DropGuard,
}

/// A request that can be read.
struct Request<'a> {
    message: &'a Message,
    codec: Codec,
    method: &'a str,
    /// Whether it went to every server.
    to_all: bool,
}

impl Process for Serve {
    async fn process(
        &self,
        envelope: &Arc<Envelope>,
        info: &DeliveryInfo,
        cancellation: &CancellationToken,
    ) -> Disposition {
        let message = &envelope.message;
        let (codec, head) = match self.read(message) {
            Ok(read) => read,
            Err(error) => return self.undecodable(message, error).await,
        };
        let to_all = *info.queue == *self.instance.all;
        let request = Request { message, codec, method: &head.method, to_all };
        let deadline = self.deadline(message);
        if deadline.is_some_and(|deadline| deadline <= self.replies.env.timestamp()) {
            self.count(Count::Expired);
            let late = HandlerError::new(
                ErrorClass::DeadlineExceeded,
                "the request's deadline had passed before it was handled",
            );
            return self.refuse(&request, &late).await;
        }
        let Some(method) = self.methods.get(request.method) else {
            let unknown =
                HandlerError::unsupported(format!("there is no method '{}'", request.method));
            return self.refuse(&request, &unknown.with_code(codes::UNKNOWN_METHOD)).await;
        };
        let credit = control::credit_of(message).filter(|_| method.streams).map(watch::channel);
        let (credit, granted) = credit.unzip();
        if method.streams && credit.is_none() {
            let once = HandlerError::unsupported("it answers by a stream; ask for one");
            return self.refuse(&request, &once.with_code(codes::STREAM_REQUIRED)).await;
        }
        let env = self.replies.env.clone();
        let envelope = Arc::clone(envelope);
        let context = Context::until(deadline, envelope, info.clone(), env, cancellation);
        let Some(in_hand) = self.calls.begin(context.envelope(), &context, credit) else {
            self.count(Count::Cancelled);
            return Disposition::Ack;
        };
        let work = Work {
            serve: self,
            request,
            method,
            context: &context,
            in_hand: &in_hand,
            stopped: cancellation,
        };
        if let Some(key) = work.inbox_key() {
            work.once_for(&key).await
        } else if let Some(granted) = granted {
            work.stream(granted).await
        } else {
            match work.run().await {
                outcome if work.goes_back(&outcome) => Disposition::Release,
                outcome => work.answer(outcome).await,
            }
        }
    }

    fn stopping(&self) {
        self.layers.stop();
    }

    fn settled(&self, envelope: &Envelope, info: &DeliveryInfo, outcome: Outcome) {
        self.layers.settled(envelope, info, outcome);
    }
}

impl Serve {
    fn count(&self, count: Count) {
        self.replies.counters.add(count);
    }

    fn read<'a>(&self, request: &'a Message) -> Result<(Codec, RequestHead<'a>), HandlerError> {
        let codec = Codec::of(request.content_type.as_deref(), &request.body)
            .map_err(|error| HandlerError::undecodable(&error))?;
        let head = codec
            .read(&request.body, self.replies.limits)
            .map_err(|error| HandlerError::undecodable(&error))?;
        Ok((codec, head))
    }

    /// When the reply is of no use any more, by our clock: at the caller's deadline, within the
    /// tolerance for its clock, but not later than the time that it gave the request.
    fn deadline(&self, request: &Message) -> Option<DateTime<Utc>> {
        let deadline = request.deadline?.checked_add_signed(signed(self.clock_tolerance));
        let deadline = deadline.unwrap_or(DateTime::<Utc>::MAX_UTC);
        // A streamed reply may take longer than the request may wait.
        let budget = request.ttl.filter(|_| control::credit_of(request).is_none());
        let by_budget = budget
            .and_then(|budget| self.replies.env.timestamp().checked_add_signed(signed(budget)));
        Some(by_budget.map_or(deadline, |by_budget| deadline.min(by_budget)))
    }

    async fn undecodable(&self, request: &Message, error: HandlerError) -> Disposition {
        let Some(reply) = self.replies.written(Codec::Json, Err(&error)) else {
            return Disposition::DeadLetter(error);
        };
        match self.replies.publish(Codec::Json, request, reply).await.into() {
            Disposition::Ack => Disposition::DeadLetter(error),
            other => other,
        }
    }

    /// Answers a request that is not run.
    async fn refuse(&self, request: &Request<'_>, error: &HandlerError) -> Disposition {
        match self.replies.written(request.codec, Err(error)) {
            Some(reply) => self.publish(request, reply).await,
            None => Disposition::Ack,
        }
    }

    async fn publish(&self, request: &Request<'_>, mut reply: Message) -> Disposition {
        if request.to_all {
            reply.headers.set(headers::INSTANCE, self.instance.id.clone());
        }
        if request.message.reply_to.is_none() {
            if let Some(class) = reply.headers.get(headers::ERROR_CLASS) {
                tracing::warn!(
                    ?class,
                    method = request.method,
                    "a request without reply-to failed"
                );
            }
            return Disposition::Ack;
        }
        self.replies.publish(request.codec, request.message, reply).await.into()
    }
}

/// A request that is to be run.
struct Work<'a> {
    serve: &'a Serve,
    request: Request<'a>,
    method: &'a Method,
    context: &'a Context,
    in_hand: &'a InHand<'a>,
    /// Cancelled when the time is over that a stop gave to what was in hand.
    stopped: &'a CancellationToken,
}

impl Work<'_> {
    /// Whether this server gives the request up, whose caller waits for another to answer it.
    fn is_left(&self) -> bool {
        self.stopped.is_cancelled() && !self.in_hand.is_given_up()
    }

    /// Whether another server is to answer: a middleware gave the request back, or the method did not
    /// fail, but ended for the stop of this server.
    fn goes_back<T>(&self, outcome: &Result<T, HandlerError>) -> bool {
        let Err(error) = outcome else { return false };
        if self.in_hand.is_given_up() {
            return false;
        }
        error.is_given_back() || (error.class() == ErrorClass::Cancelled && self.is_left())
    }

    /// Runs the method, within the middleware. From its deadline on the handler sees that nobody
    /// waits for it.
    async fn run(&self) -> Result<Answer, HandlerError> {
        let mut answer = None;
        self.within_layers(async { self.method().await.map(|given| answer = Some(given)) }).await?;
        answer.ok_or_else(not_answered)
    }

    async fn method(&self) -> Result<Answer, HandlerError> {
        let Self { serve, request, method, context, .. } = self;
        let (codec, limits) = (request.codec, serve.replies.limits);
        // Where there is a middleware, it sees a panic as the error that it becomes.
        catch_panic(async { method.run(codec, limits, Context::clone(context)).await }).await
    }

    async fn within_layers(
        &self,
        handler: impl Future<Output = Result<(), HandlerError>> + Send,
    ) -> Result<(), HandlerError> {
        let layers = &self.serve.layers;
        if layers.is_empty() {
            return self.until_deadline(handler).await;
        }
        let layered = layers.run_request(self.context, Box::pin(handler));
        self.until_deadline(catch_panic(layered)).await
    }

    /// Goes on after the deadline, and tells the handler.
    async fn until_deadline<T>(&self, running: impl Future<Output = T>) -> T {
        let mut running = pin!(running);
        if let Some(left) = self.context.remaining() {
            tokio::select! {
                biased;
                outcome = &mut running => return outcome,
                () = sleep(left) => self.context.cancel(),
            }
        }
        running.await
    }

    async fn answer(&self, outcome: Result<Answer, HandlerError>) -> Disposition {
        match self.written(outcome) {
            Some(reply) => self.publish(reply).await,
            None => Disposition::Ack,
        }
    }

    fn written(&self, outcome: Result<Answer, HandlerError>) -> Option<Message> {
        let outcome = outcome.and_then(|answer| match answer {
            Answer::Once(body) => Ok(body),
            Answer::Stream(_) => Err(HandlerError::internal("a stream where one reply was due")),
        });
        self.serve.replies.written(self.request.codec, outcome.as_ref())
    }

    /// Publishes the reply, unless nobody waits for it.
    async fn publish(&self, reply: Message) -> Disposition {
        if self.in_hand.is_given_up() {
            self.serve.count(Count::Cancelled);
            return Disposition::Ack;
        }
        self.serve.publish(&self.request, reply).await
    }

    /// Runs the method and sends what it streams, within the middleware.
    async fn stream(&self, credit: watch::Receiver<u64>) -> Disposition {
        let mut begun = None;
        let outcome = self
            .within_layers(async {
                let items = match self.method().await? {
                    Answer::Stream(items) => items,
                    Answer::Once(_) => {
                        return Err(HandlerError::internal("one reply where a stream was due"));
                    }
                };
                if self.in_hand.is_given_up() {
                    return Err(called_off());
                }
                let sent = begun.insert(self.send(items, credit).await);
                match sent {
                    Some(Sent::Failed(error)) => Err(error.clone()),
                    Some(Sent::CalledOff) => Err(called_off()),
                    Some(Sent::Done) => Ok(()),
                    None => Err(HandlerError::new(
                        ErrorClass::DeadlineExceeded,
                        "the stream did not end before its deadline",
                    )),
                }
            })
            .await;
        if self.in_hand.is_given_up() {
            self.serve.count(Count::Cancelled);
            return Disposition::Ack;
        }
        match begun {
            // Whoever runs it next tells the caller at once that the items do not go on.
            Some(Some(Sent::CalledOff)) if self.is_left() => Disposition::Release,
            // Whatever a middleware makes of it, the caller has its end.
            Some(_) => Disposition::Ack,
            None if self.goes_back(&outcome) => Disposition::Release,
            None => self.answer(outcome.and_then(|()| Err(not_answered()))).await,
        }
    }

    /// Sends items until the request's deadline; nothing when that came first.
    async fn send(&self, items: Items, credit: watch::Receiver<u64>) -> Option<Sent> {
        let Self { serve, request, context, .. } = self;
        let streaming = Streaming {
            replies: &serve.replies,
            request: request.message,
            codec: request.codec,
            control_queue: &serve.instance.control,
            run: serve.replies.env.new_id().to_string(),
            credit,
            cancellation: context.cancellation(),
        };
        let sending = streaming.send(items);
        match context.remaining() {
            None => Some(sending.await),
            Some(left) => tokio::time::timeout(left, sending).await.ok(),
        }
    }

    /// What the request is known by, where it is one that is handled once.
    fn inbox_key(&self) -> Option<InboxKey> {
        let Self { serve, request: Request { message, method, to_all, .. }, .. } = self;
        if !self.method.idempotent || *to_all {
            return None;
        }
        let text = |name| message.headers.get(name).and_then(HeaderValue::as_text);
        let (caller, key) = match text(headers::IDEMPOTENCY_KEY) {
            Some(key) => (text(headers::CALLER).unwrap_or_default(), key),
            None => ("", message.message_id.as_deref()?),
        };
        Some(InboxKey::new(&*serve.service, *method, caller, key))
    }

    /// Runs the method unless that was done before; then the reply of that time is given again.
    async fn once_for(&self, key: &InboxKey) -> Disposition {
        let inbox = &*self.serve.inbox;
        // Another copy may be at work, for longer than this one may wait.
        let left = self.context.remaining().unwrap_or(Duration::MAX);
        let claim = tokio::select! {
            biased;
            () = self.context.cancellation().cancelled() => {
                if self.is_left() {
                    return Disposition::Release;
                }
                self.serve.count(Count::Cancelled);
                return Disposition::Ack;
            }
            claim = inbox.claim(key) => claim,
            () = sleep(left) => Err(HandlerError::new(
                ErrorClass::DeadlineExceeded,
                "another copy of the request was at work until its deadline",
            )),
        };
        match claim {
            Err(error) => return self.answer(Err(error)).await,
            Ok(Claim::Replay(reply)) => {
                self.serve.count(Count::Replayed);
                return self.publish(replayed(reply)).await;
            }
            Ok(Claim::Handle) => {}
        }
        let claimed = Claimed { inbox, key };
        let outcome = self.run().await;
        if self.goes_back(&outcome) {
            return Disposition::Release;
        }
        let lasting = match &outcome {
            Ok(_) => true,
            Err(error) => error.class() == ErrorClass::Rejected,
        };
        let Some(reply) = self.written(outcome) else { return Disposition::Ack };
        // Before the reply is published, so that a crash in between leaves it to be given again.
        if lasting && let Err(error) = inbox.store(key, stored(&reply)).await {
            tracing::error!(%error, "a reply could not be stored; its request may be run again");
        }
        drop(claimed);
        self.publish(reply).await
    }
}

/// A key that was taken; it is free again when this is dropped, unless a reply is stored under it.
struct Claimed<'a> {
    inbox: &'a dyn Inbox,
    key: &'a InboxKey,
}

impl Drop for Claimed<'_> {
    fn drop(&mut self) {
        self.inbox.release(self.key);
    }
}

fn called_off() -> HandlerError {
    HandlerError::new(ErrorClass::Cancelled, "the stream was called off")
}

fn not_answered() -> HandlerError {
    HandlerError::unsupported(
        "a middleware of the server took the request as done without an answer",
    )
    .with_code(codes::NOT_ANSWERED)
}

fn stored(reply: &Message) -> StoredReply {
    let content_type = reply.content_type.as_deref().unwrap_or_default();
    StoredReply::new(content_type, reply.body.clone(), reply.headers.clone())
}

fn replayed(stored: StoredReply) -> Message {
    let mut reply = Message::new(stored.body).with_content_type(stored.content_type);
    reply.headers = stored.headers;
    reply
}

fn signed(time: Duration) -> chrono::TimeDelta {
    chrono::TimeDelta::from_std(time).unwrap_or(chrono::TimeDelta::MAX)
}
