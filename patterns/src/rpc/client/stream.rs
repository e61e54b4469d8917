//! A reply of many items, which come as fast as they are taken.

use std::{
    fmt,
    marker::PhantomData,
    pin::Pin,
    sync::Arc,
    task::{Context as TaskContext, Poll},
    time::Duration,
};

use futures_util::Stream;
use postrider_core::{Address, Envelope, Error, ErrorKind, HeaderValue, Message};
use serde::{Serialize, de::DeserializeOwned};
use tokio::time::{Instant, Sleep, sleep, timeout_at};

use super::{
    CallOptions, RpcClient,
    call::Call,
    exchange::{GivenUp, Inner, whole_millis},
    pending::{Replies, Ticket},
};
use crate::{
    handler::Context,
    headers,
    rpc::{Request, RpcError, control, wire},
};

/// How often a credit is told again to a server that says nothing, before it is given up.
const TELL_AGAIN: u32 = 4;

/// How a streamed reply is taken.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct StreamOptions {
    /// How many items may be under way, from 1 to 10,000. Default: 32.
    pub window: u16,
    /// How long the server may be silent, longer than 0 and at most a day. One that has nothing to
    /// send says so every 5 seconds. Default: the client's timeout.
    pub idle: Option<Duration>,
    /// How long the whole stream may take, at most a day. Default: as long as it takes.
    pub timeout: Option<Duration>,
    /// The handler that the call is made from. Default: none.
    pub parent: Option<Context>,
}

impl Default for StreamOptions {
    fn default() -> Self {
        Self { window: 32, idle: None, timeout: None, parent: None }
    }
}

impl StreamOptions {
    /// Sets [`window`](Self::window).
    #[must_use]
    pub const fn with_window(mut self, items: u16) -> Self {
        self.window = items;
        self
    }

    /// Sets [`idle`](Self::idle).
    #[must_use]
    pub const fn with_idle(mut self, silence: Duration) -> Self {
        self.idle = Some(silence);
        self
    }

    /// Sets [`timeout`](Self::timeout).
    #[must_use]
    pub const fn with_timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    /// Sets [`parent`](Self::parent): the stream belongs to the conversation of that handler's
    /// message, and ends before its deadline.
    #[must_use]
    pub fn within(mut self, context: &Context) -> Self {
        self.parent = Some(context.clone());
        self
    }
}

/// The items of a streamed reply, in order and without a gap.
///
/// It ends after the last item, or after an error: the service's own, or
/// [`RpcError::StreamBroken`] when the connection or the server is lost. Such a stream is not taken
/// up again by itself, because only the service knows how; the error says how many items came.
///
/// Dropping it before its end tells the server, which then drops what it streams from.
pub struct ReplyStream<T> {
    inner: Arc<Inner>,
    service: String,
    method: String,
    ticket: Ticket,
    replies: Replies,
    window: u64,
    /// The number of the item that comes next.
    next: u64,
    /// How many items the server may have sent.
    granted: u64,
    source: Option<Source>,
    idle: Duration,
    /// When silence is noticed; every quarter of [`idle`](Self::idle).
    silence: Pin<Box<Sleep>>,
    silent: u32,
    until: Option<Instant>,
    timeout: Duration,
    ended: bool,
    // It gives values and holds none.
    items: PhantomData<fn() -> T>,
}

/// Where the items come from: one run of the request, by one server.
#[derive(Debug, PartialEq, Eq)]
struct Source {
    run: String,
    control_queue: String,
}

impl Source {
    fn of(frame: &Message) -> Option<Self> {
        let run = frame.headers.get(headers::STREAM_RUN).and_then(HeaderValue::as_text)?;
        let control_queue = frame.reply_to.as_deref()?;
        Some(Self { run: run.to_owned(), control_queue: control_queue.to_owned() })
    }

    fn sent(&self, frame: &Message) -> bool {
        frame.headers.get(headers::STREAM_RUN).and_then(HeaderValue::as_text) == Some(&*self.run)
    }
}

impl RpcClient {
    /// Calls the method of `request` at `service`, which answers by a stream of items. A method that
    /// answers once gives a stream of one.
    ///
    /// When the future is dropped, the request may have been sent; its server is told.
    ///
    /// # Errors
    ///
    /// As [`call`](Self::call), as far as the broker's taking of the request; the rest is told by the
    /// stream. [`ErrorKind::Invalid`] for an idle time of 0.
    pub async fn call_stream<R: Request>(
        &self,
        service: &str,
        request: &R,
        options: StreamOptions,
    ) -> Result<ReplyStream<R::Reply>, RpcError> {
        self.call_stream_named(service, R::METHOD, request, options).await
    }

    /// Calls a method by its name; else as [`call_stream`](Self::call_stream).
    ///
    /// # Errors
    ///
    /// As [`call_stream`](Self::call_stream).
    pub async fn call_stream_named<P, T>(
        &self,
        service: &str,
        method: &str,
        params: &P,
        options: StreamOptions,
    ) -> Result<ReplyStream<T>, RpcError>
    where
        P: Serialize + Sync + ?Sized,
        T: DeserializeOwned,
    {
        let inner = &*self.inner;
        let StreamOptions { window, idle, timeout, parent } = options;
        let window = u64::from(window.clamp(1, 10_000));
        if idle.is_some_and(|idle| idle.is_zero()) {
            let why = "an idle time of 0 would break off every stream; it is longer than 0, and than \
                       5 seconds where the server may have nothing to send";
            return Err(Error::new(ErrorKind::Invalid, "call", why).into());
        }
        let idle = idle.unwrap_or(inner.timeout).min(super::LONGEST);
        let idle = idle.max(Duration::from_millis(TELL_AGAIN.into()));
        let bounded = timeout.is_some() || parent.as_ref().is_some_and(|c| c.deadline().is_some());
        let whole =
            CallOptions { timeout: timeout.or(Some(super::LONGEST)), parent, ..Default::default() };
        let call = inner.call(service, method, &whole)?;
        let mut request = inner.request(&call, params, &whole)?;
        request.headers.set(headers::STREAM_CREDIT, control::count_header(window));
        if !bounded {
            request.deadline = None;
        }
        let begin = idle.min(call.timeout);
        request.ttl = Some(whole_millis(begin));
        // The last frame needs no credit, and neither do signs of life.
        let room = usize::try_from(window).unwrap_or(usize::MAX) + 4;
        let (ticket, replies) = inner.pending.register_many(room)?;
        request.correlation_id = Some(ticket.id().into());
        let envelope = Envelope::new(Address::queue(call.queue.clone()), request);
        inner.begin(&call, &ticket, envelope, begin).await?;
        let (until, timeout) = (bounded.then_some(call.until), call.timeout);
        Ok(ReplyStream {
            inner: Arc::clone(&self.inner),
            service: service.to_owned(),
            method: method.to_owned(),
            ticket,
            replies,
            window,
            next: 0,
            granted: window,
            source: None,
            idle,
            silence: Box::pin(sleep(idle / TELL_AGAIN)),
            silent: 0,
            until,
            timeout,
            ended: false,
            items: PhantomData,
        })
    }
}

impl Inner {
    /// Sends a request for a stream and waits until the broker has it. Its server is told when the
    /// future is dropped, or when it is late and may be on its way.
    async fn begin(
        &self,
        call: &Call<'_>,
        ticket: &Ticket,
        envelope: Envelope,
        time: Duration,
    ) -> Result<(), RpcError> {
        let mut given_up = GivenUp { inner: self, call, ticket, ended: false };
        let sending = async {
            let bytes = envelope.message.body.len() as u64;
            let verdict = self.send(call, ticket, envelope).await?.await;
            self.verdict(call, bytes, verdict)?;
            self.sent(ticket)
        };
        let Ok(sent) = timeout_at(self.env().now() + time, sending).await else {
            return Err(call.not_sent_within(time));
        };
        given_up.ended = true;
        sent
    }
}

/// What a frame is.
enum Frame<T> {
    Item(T),
    /// The last one.
    End,
    /// Nothing to give: a sign of life, or what came before.
    Nothing,
}

impl<T: DeserializeOwned> ReplyStream<T> {
    fn broken(&self, reason: impl Into<String>) -> RpcError {
        RpcError::StreamBroken { resume_from: self.next, reason: reason.into() }
    }

    fn take(&mut self, frame: &Message) -> Result<Frame<T>, RpcError> {
        let limits = self.inner.limits;
        match &self.source {
            None => self.source = Source::of(frame),
            Some(source) if source.sent(frame) => {}
            Some(_) => return Err(self.broken("its server was lost; another one began anew")),
        }
        if self.source.is_none() {
            // It answers once, or says why it does not.
            let item = wire::decode_reply(frame, limits)?;
            if self.next > 0 {
                return Ok(Frame::End);
            }
            self.ended = true;
            return Ok(Frame::Item(item));
        }
        let seq = frame.headers.get(headers::STREAM_SEQ).and_then(HeaderValue::as_int);
        let Some(seq) = seq.and_then(|seq| u64::try_from(seq).ok()) else {
            return Ok(Frame::Nothing);
        };
        if seq < self.next {
            return Ok(Frame::Nothing);
        }
        if seq > self.next {
            return Err(self.broken(format!("item {seq} came in its place")));
        }
        let is_end = frame.headers.get(headers::STREAM_END).and_then(HeaderValue::as_bool);
        if is_end == Some(true) {
            return Ok(Frame::End);
        }
        let item = wire::decode_reply(frame, limits)?;
        self.next += 1;
        if self.granted - self.next <= self.window / 2 {
            self.granted = self.next + self.window;
            self.grant();
        }
        Ok(Frame::Item(item))
    }

    fn end_with(&mut self, error: RpcError) -> Poll<Option<Result<T, RpcError>>> {
        self.give_up();
        Poll::Ready(Some(Err(error)))
    }
}

impl<T> ReplyStream<T> {
    fn grant(&self) {
        if let Some(source) = &self.source {
            self.inner.outbox.credit(&source.control_queue, &self.ticket, self.granted);
        }
    }

    fn listen(&mut self) {
        let now = self.inner.env().now();
        let mut wake = now + self.idle / TELL_AGAIN;
        if let Some(until) = self.until {
            wake = wake.min(until);
        }
        self.silence.as_mut().reset(wake);
    }

    /// Tells the server that nobody reads on.
    fn give_up(&mut self) {
        if !self.ended {
            self.ended = true;
            self.inner.outbox.given_up(&self.service, &self.ticket);
        }
    }
}

impl<T: DeserializeOwned> Stream for ReplyStream<T> {
    type Item = Result<T, RpcError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut TaskContext<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        loop {
            if this.ended {
                return Poll::Ready(None);
            }
            // A slow reader has items left when its time is over.
            if this.until.is_some_and(|until| this.inner.env().now() >= until) {
                let (service, method) = (this.service.clone(), this.method.clone());
                let after = this.timeout;
                return this.end_with(RpcError::TimedOut { service, method, after });
            }
            match this.replies.poll_recv(cx) {
                Poll::Ready(Ok(envelope)) => {
                    this.silent = 0;
                    this.listen();
                    match this.take(&envelope.message) {
                        Ok(Frame::Item(item)) => return Poll::Ready(Some(Ok(item))),
                        Ok(Frame::End) => {
                            this.ended = true;
                            return Poll::Ready(None);
                        }
                        Ok(Frame::Nothing) => {}
                        Err(error) => return this.end_with(error),
                    }
                }
                Poll::Ready(Err(cause)) => {
                    let error = this.broken(&*cause);
                    return this.end_with(error);
                }
                Poll::Pending => {
                    if this.silence.as_mut().poll(cx).is_pending() {
                        return Poll::Pending;
                    }
                    if this.until.is_some_and(|until| this.inner.env().now() >= until) {
                        continue;
                    }
                    this.silent += 1;
                    if this.silent >= TELL_AGAIN {
                        let error = this.broken(format!("nothing came for {:?}", this.idle));
                        return this.end_with(error);
                    }
                    // The last credit may have been lost.
                    this.grant();
                    this.listen();
                }
            }
        }
    }
}

impl<T> Drop for ReplyStream<T> {
    fn drop(&mut self) {
        self.give_up();
    }
}

impl<T> fmt::Debug for ReplyStream<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReplyStream")
            .field("service", &self.service)
            .field("method", &self.method)
            .field("next", &self.next)
            .finish_non_exhaustive()
    }
}
