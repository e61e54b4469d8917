//! RabbitMQ's management over AMQP 1.0: requests and responses in the manner of HTTP, over two links
//! of one name. See "Managing RabbitMQ over AMQP 1.0" of RabbitMQ's documentation.
//!
//! The broker ends the session of a request that it cannot make sense of, or that is not allowed,
//! without an answer; so it has one of its own, which is begun again when it is needed.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Weak},
    time::Duration,
};

use fe2o3_amqp::{
    Receiver, Sender,
    link::{CreditMode, RecvError},
    session::SessionHandle,
};
use fe2o3_amqp_types::{
    definitions::{Fields, ReceiverSettleMode, SenderSettleMode},
    messaging::{AmqpValue, Body, Message, MessageId, Properties, Source, Target},
    primitives::{Symbol, Value},
};
use postrider_core::{Env, Error, ErrorKind, Result};
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::{Instant, timeout, timeout_at},
};

use crate::{
    clock::until,
    connection::Connection,
    error::{late, lost, of_receive, of_receiver, of_send, of_sender},
    frames::{PAIR, PAIR_RECEIVER},
};

/// The node that answers.
const NODE: &str = "/management";

/// How many requests may be under way: the broker's credit.
const UNDER_WAY: usize = 8;

/// How many may wait.
const WAITING: usize = 64;

/// How long an alarm is waited out.
const ALARM: Duration = Duration::from_secs(1);

/// How many responses the broker may send before it is given more credit.
const CREDIT: u32 = 100;

/// What the broker answered.
#[derive(Debug)]
pub(crate) struct Response {
    pub(crate) status: u16,
    pub(crate) body: Value,
}

#[derive(Debug)]
struct Request {
    method: &'static str,
    path: String,
    body: Value,
    operation: &'static str,
    deadline: Instant,
    answer: oneshot::Sender<Result<Response>>,
    /// Whether it was under way before, when its links ended.
    is_again: bool,
}

/// The way to the task that makes requests.
#[derive(Debug)]
pub(crate) struct Management {
    requests: mpsc::Sender<Request>,
    blocked: watch::Receiver<bool>,
}

impl Management {
    /// Starts the task for a connection, which ends with it.
    pub(crate) fn start(connection: &Arc<Connection>) -> Self {
        let (sender, requests) = mpsc::channel(WAITING);
        tokio::spawn(run(Arc::downgrade(connection), requests));
        Self { requests: sender, blocked: connection.blocked() }
    }

    /// Makes a request.
    ///
    /// # Errors
    ///
    /// When it has no answer; what the broker refuses is an answer.
    pub(crate) async fn call(
        &self,
        operation: &'static str,
        deadline: Instant,
        method: &'static str,
        path: String,
        body: Value,
    ) -> Result<Response> {
        let (answer, answered) = oneshot::channel();
        let request = Request { method, path, body, operation, deadline, answer, is_again: false };
        let answered = async {
            self.requests.send(request).await.map_err(|_| lost(operation))?;
            answered.await.unwrap_or_else(|_| Err(lost(operation)))
        };
        tokio::select! {
            biased;
            answered = answered => answered,
            () = stays_blocked(self.blocked.clone()) => {
                let why = "the broker answers nothing about its queues: an alarm";
                Err(Error::new(ErrorKind::Unavailable, operation, why))
            }
        }
    }
}

/// Waits until the broker has taken no messages, requests among them, for a while.
async fn stays_blocked(mut blocked: watch::Receiver<bool>) {
    loop {
        if blocked.wait_for(|blocked| *blocked).await.is_err() {
            // The connection is gone, and the request is told so.
            std::future::pending::<()>().await;
        }
        if timeout(ALARM, blocked.wait_for(|blocked| !*blocked)).await.is_err() {
            return;
        }
    }
}

async fn run(connection: Weak<Connection>, mut requests: mpsc::Receiver<Request>) {
    let mut again = VecDeque::new();
    loop {
        let next = match again.pop_front() {
            Some(request) => Some(request),
            None => requests.recv().await,
        };
        let Some((request, connection)) = next.zip(connection.upgrade()) else { return };
        let (operation, deadline) = (request.operation, request.deadline);
        match Pair::open(&connection, operation, deadline).await {
            Ok(mut pair) => {
                let mut begun = pair.send(request).await;
                while begun.is_ok()
                    && let Some(request) = again.pop_front()
                {
                    begun = pair.send(request).await;
                }
                let ended = match begun {
                    Ok(()) => pair.serve(&connection, &mut requests).await,
                    Err(error) => error,
                };
                let mut first = VecDeque::from(pair.fail(&ended, connection.is_over()));
                first.append(&mut again);
                again = first;
            }
            Err(error) => drop(request.answer.send(Err(error))),
        }
        if connection.is_over() {
            return;
        }
    }
}

/// The two links, and what waits for its response.
struct Pair {
    sender: Sender,
    receiver: Receiver,
    /// Ends the session when it is dropped.
    _session: SessionHandle<()>,
    env: Env,
    next: u64,
    pending: HashMap<u64, Request>,
    /// Responses before more credit is due.
    left: u32,
}

impl Pair {
    async fn open(
        connection: &Connection,
        operation: &'static str,
        deadline: Instant,
    ) -> Result<Self> {
        let mut session = connection.begin(operation, deadline).await?;
        let properties: Fields =
            [(Symbol::from("paired"), Value::Bool(true))].into_iter().collect();
        let source = || Source::builder().address(NODE).build();
        let target = || Target::builder().address(NODE).build();
        let attached = async {
            let sender = Sender::builder()
                .name(PAIR)
                .source(source())
                .target(target())
                .sender_settle_mode(SenderSettleMode::Settled)
                .receiver_settle_mode(ReceiverSettleMode::First)
                .properties(properties.clone())
                .attach(&mut session)
                .await
                .map_err(|error| of_sender(operation, &error))?;
            let mut receiver = Receiver::builder()
                .name(PAIR_RECEIVER)
                .source(source())
                .target(target())
                .sender_settle_mode(SenderSettleMode::Settled)
                .receiver_settle_mode(ReceiverSettleMode::First)
                .credit_mode(CreditMode::Manual)
                .properties(properties.clone())
                .attach(&mut session)
                .await
                .map_err(|error| of_receiver(operation, &error))?;
            // Without credit the broker ends the session of a request.
            receiver.set_credit(CREDIT).await.map_err(|_| lost(operation))?;
            Ok((sender, receiver))
        };
        let (sender, receiver) = connection.by(deadline, operation, attached).await??;
        let pending = HashMap::new();
        let env = connection.env().clone();
        Ok(Self { sender, receiver, _session: session, env, next: 0, pending, left: CREDIT / 2 })
    }

    /// Makes requests and hands out responses until the session ends; says why it did.
    async fn serve(
        &mut self,
        connection: &Connection,
        requests: &mut mpsc::Receiver<Request>,
    ) -> Error {
        loop {
            let next = self.pending.values().map(|request| request.deadline).min();
            tokio::select! {
                biased;
                () = connection.over() => return lost("manage"),
                received = self.receiver.recv::<Body<Value>>() => match received {
                    Ok(delivery) => {
                        self.answer(delivery.into_message());
                        self.left -= 1;
                        if self.left == 0 {
                            self.left = CREDIT / 2;
                            if self.receiver.set_credit(CREDIT).await.is_err() {
                                return lost("manage");
                            }
                        }
                    }
                    Err(RecvError::MessageDecode(error)) => {
                        tracing::warn!(?error, "a response of the management cannot be read");
                        return lost("manage");
                    }
                    Err(error) => return of_receive("manage", &error),
                },
                request = requests.recv(), if self.pending.len() < UNDER_WAY => match request {
                    Some(request) => {
                        if let Err(error) = self.send(request).await {
                            return error;
                        }
                    }
                    None => return lost("manage"),
                },
                () = until(next) => self.expire(),
            }
        }
    }

    /// Sends a request; the error is that of all that are under way.
    async fn send(&mut self, request: Request) -> Result<()> {
        if request.answer.is_closed() {
            return Ok(());
        }
        let id = self.next;
        self.next += 1;
        let properties = Properties::builder()
            .message_id(MessageId::Ulong(id))
            .to(request.path.as_str())
            .subject(request.method)
            .reply_to("$me")
            .build();
        let message =
            Message::builder().properties(properties).body(AmqpValue(request.body.clone())).build();
        let deadline = request.deadline;
        self.pending.insert(id, request);
        match timeout_at(deadline, self.sender.send(message)).await {
            Ok(sent) => sent.map(drop).map_err(|error| of_send("manage", &error)),
            // Under an alarm the broker takes nothing.
            Err(_) => {
                self.expire();
                Ok(())
            }
        }
    }

    fn answer(&mut self, message: Message<Body<Value>>) {
        let properties = message.properties.unwrap_or_default();
        let Some(MessageId::Ulong(id)) = properties.correlation_id else { return };
        let Some(request) = self.pending.remove(&id) else { return };
        let status = properties.subject.and_then(|status| status.parse().ok()).unwrap_or(0);
        let body = match message.body {
            Body::Value(AmqpValue(value)) => value,
            _ => Value::Null,
        };
        let _gone = request.answer.send(Ok(Response { status, body }));
    }

    fn expire(&mut self) {
        let now = self.env.now();
        let expired: Vec<_> = self
            .pending
            .iter()
            .filter(|(_, request)| request.deadline <= now)
            .map(|(id, _)| *id)
            .collect();
        for id in expired {
            if let Some(request) = self.pending.remove(&id) {
                let _gone = request.answer.send(Err(late(request.operation)));
            }
        }
    }

    /// The session ended. Gives what may be asked once more, in its order, because the connection is
    /// there: all requests but a purge are the same when they are made twice. The rest is told.
    fn fail(&mut self, ended: &Error, is_lost: bool) -> Vec<Request> {
        let mut pending: Vec<_> = self.pending.drain().collect();
        pending.sort_unstable_by_key(|(number, _)| *number);
        let mut again = Vec::new();
        for (_, mut request) in pending {
            let kind = match ended.kind() {
                ErrorKind::Unauthorized => ErrorKind::Unauthorized,
                _ => ErrorKind::Unavailable,
            };
            let is_purge = request.method == "DELETE" && request.path.ends_with("/messages");
            if is_lost || is_purge || request.is_again || kind == ErrorKind::Unauthorized {
                let error = Error::new(kind, request.operation, ended.message().to_owned());
                let error = ended
                    .context()
                    .fold(error, |error, (name, value)| error.with_context(name, value.to_owned()));
                let _gone = request.answer.send(Err(error));
            } else {
                tracing::warn!(%ended, path = request.path, "the management ended; it is asked again");
                request.is_again = true;
                again.push(request);
            }
        }
        again
    }
}
