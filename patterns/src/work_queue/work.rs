//! What a worker does with one task.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use postrider_core::{DeliveryInfo, Env, Envelope, HeaderValue, Message};
use serde::{Serialize, de::DeserializeOwned};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{
    control::CalledOff,
    report::{self, Said},
    reporting::{Reporter, Reports, Told},
    unique::{Claimed, UniqueKeys},
    wire::{self, Head},
};
use crate::{
    codec::{Codec, CodecError, Limits},
    consuming::{Count, Counters, Disposition, Outcome, Process, catch_panic},
    handler::{Context, HandlerError, codes},
    headers,
    middleware::Layers,
    resilience::Retrying,
};

/// How a task is read, and how it is written that it is done.
#[derive(Debug, Clone, Copy)]
pub(super) struct Writing {
    codec: Codec,
    limits: Limits,
    is_tracked: bool,
}

/// The report that a task is done; nothing where nobody hears it.
type Written = Option<Result<Bytes, CodecError>>;

pub(super) type Handler = Arc<
    dyn Fn(Writing, Context) -> BoxFuture<'static, Result<Written, HandlerError>> + Send + Sync,
>;

/// A handler of one type of tasks as one of any.
pub(super) fn handler<T, R, F, Fut>(handler: F) -> Handler
where
    T: DeserializeOwned + Send + 'static,
    R: Serialize + Send + Sync + 'static,
    F: Fn(T, Context) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<R, HandlerError>> + Send + 'static,
{
    let handler = Arc::new(handler);
    Arc::new(move |Writing { codec, limits, is_tracked }, context: Context| {
        let handler = Arc::clone(&handler);
        Box::pin(async move {
            let task = wire::decode_params(codec, limits, &context.message().body)
                .map_err(|error| HandlerError::undecodable(&error))?;
            let attempt = context.attempt();
            let result = handler(task, context).await?;
            Ok(is_tracked.then(|| report::encode_done(codec, limits, attempt, Some(&result))))
        })
    })
}

/// Does tasks.
pub(super) struct Work {
    pub(super) handlers: HashMap<&'static str, Handler>,
    pub(super) limits: Limits,
    pub(super) layers: Layers,
    pub(super) retrying: Retrying,
    pub(super) env: Env,
    pub(super) counters: Arc<Counters>,
    pub(super) reports: Arc<Reports>,
    pub(super) called_off: Arc<CalledOff>,
    pub(super) unique: UniqueKeys,
    pub(super) _listening: DropGuard,
}

impl Work {
    /// Says that a task came to an end without being done, and counts it.
    async fn pass_over(
        &self,
        reporter: Option<&Reporter>,
        said: Said<'_>,
        count: Count,
    ) -> Disposition {
        if let Some(reporter) = reporter
            && reporter.end(said).await == Told::Not
        {
            return Disposition::Release;
        }
        self.counters.add(count);
        Disposition::Ack
    }
}

impl Process for Work {
    async fn process(
        &self,
        envelope: &Arc<Envelope>,
        info: &DeliveryInfo,
        cancellation: &CancellationToken,
    ) -> Disposition {
        let message = &envelope.message;
        let Head { codec, task_type, submitted } = match wire::decode_head(message, self.limits) {
            Ok(head) => head,
            Err(error) => return Disposition::DeadLetter(HandlerError::undecodable(&error)),
        };
        let task_type = task_type.unwrap_or_default();
        let Some(handler) = self.handlers.get(&*task_type) else {
            return Disposition::DeadLetter(
                HandlerError::unsupported(format!("no handler does tasks of type '{task_type}'"))
                    .with_code(codes::UNKNOWN_TASK),
            );
        };
        let reporter = self.reports.of(message, info, codec);
        let id = message.message_id.as_deref();
        if id.is_some_and(|id| self.called_off.contains(id)) {
            return self.pass_over(reporter.as_ref(), Said::Cancelled, Count::Cancelled).await;
        }
        let claimed = match (unique_key(message), id) {
            (Some(key), Some(id)) => {
                let submitted = submitted.unwrap_or_else(|| self.env.timestamp());
                let Some(claimed) = self.unique.claim(key, id, submitted) else {
                    let said = Said::Duplicate;
                    return self.pass_over(reporter.as_ref(), said, Count::Duplicates).await;
                };
                Some(claimed)
            }
            _ => None,
        };
        if let Some(reporter) = &reporter {
            reporter.say(Said::Running);
        }
        let at_work = self.called_off.enter();
        let context = |given_up: &CancellationToken| {
            let (envelope, info) = (Arc::clone(envelope), info.clone());
            let context = Context::new(envelope, info, self.env.clone(), given_up)
                .reporting(reporter.as_ref().map(Reporter::progress));
            at_work.begin(&context);
            context
        };
        let writing = Writing { codec, limits: self.limits, is_tracked: reporter.is_some() };
        let result = Mutex::new(None);
        let attempt = |context| {
            let (handler, result) = (Arc::clone(handler), &result);
            let handling = catch_panic(async move { handler(writing, context).await });
            async move {
                *result.lock().unwrap_or_else(PoisonError::into_inner) = handling.await?;
                Ok(())
            }
        };
        let running = self.retrying.run_handler(info, cancellation, &self.layers, context, attempt);
        match running.await {
            Disposition::Ack => {
                if let Some(claimed) = &claimed {
                    claimed.complete(self.env.timestamp());
                }
                if let Some(reporter) = &reporter {
                    // A middleware may have done with it what there was to do.
                    let result = result.into_inner().unwrap_or_else(PoisonError::into_inner);
                    let report = result.unwrap_or_else(|| reporter.done_without_result());
                    if reporter.done(report).await == Told::Not {
                        claimed.iter().for_each(Claimed::undo);
                        return Disposition::Release;
                    }
                }
                Disposition::Ack
            }
            Disposition::Retry(_) | Disposition::DeadLetter(_) if at_work.is_called_off() => {
                self.pass_over(reporter.as_ref(), Said::Cancelled, Count::Cancelled).await
            }
            Disposition::Retry(after) => {
                if let Some(reporter) = &reporter {
                    reporter.say(Said::Retrying);
                }
                Disposition::Retry(after)
            }
            other => other,
        }
    }

    fn stopping(&self) {
        self.layers.stop();
    }

    fn settled(&self, envelope: &Envelope, info: &DeliveryInfo, outcome: Outcome) {
        self.layers.settled(envelope, info, outcome);
    }

    async fn dead_lettered(
        &self,
        envelope: &Arc<Envelope>,
        info: &DeliveryInfo,
        error: &HandlerError,
    ) {
        let message = &envelope.message;
        let codec = Codec::of(message.content_type.as_deref(), &message.body);
        if let Some(reporter) = self.reports.of(message, info, codec.unwrap_or_default()) {
            // It is kept, and nothing is gained by another try.
            let _told = reporter.end(Said::Failed(error)).await;
        }
    }
}

fn unique_key(message: &Message) -> Option<&str> {
    message.headers.get(headers::UNIQUE_KEY).and_then(HeaderValue::as_text)
}
