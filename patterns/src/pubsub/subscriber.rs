//! Handles the events of one subscription.

use std::sync::Arc;

use postrider_core::{DeliveryInfo, Env, Envelope};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{
    RawEvent,
    subscription::{Registered, UnknownEvents},
};
use crate::{
    codec::Limits,
    consuming::{Count, Counters, Disposition, Outcome, Process, catch_panic},
    handler::{Context, HandlerError, codes},
    middleware::Layers,
    resilience::Retrying,
};

pub(super) struct Subscriber {
    pub(super) handlers: Vec<Registered>,
    pub(super) unknown: UnknownEvents,
    pub(super) limits: Limits,
    pub(super) layers: Layers,
    pub(super) retrying: Retrying,
    pub(super) env: Env,
    pub(super) counters: Arc<Counters>,
    /// Ends the task that tells of gaps.
    pub(super) _gaps: Option<DropGuard>,
}

impl Process for Subscriber {
    async fn process(
        &self,
        envelope: &Arc<Envelope>,
        info: &DeliveryInfo,
        cancellation: &CancellationToken,
    ) -> Disposition {
        let event = match RawEvent::read(envelope, self.limits) {
            Ok(event) => event,
            Err(error) => return Disposition::DeadLetter(HandlerError::undecodable(&error)),
        };
        if !self.handlers.iter().any(|handler| handler.takes(event.event_type())) {
            return self.unknown(&event);
        }
        let context = |given_up: &CancellationToken| {
            Context::new(Arc::clone(envelope), info.clone(), self.env.clone(), given_up)
        };
        let attempt = |context| catch_panic(self.handle(event.clone(), context));
        self.retrying.run_handler(info, cancellation, &self.layers, context, attempt).await
    }

    fn stopping(&self) {
        self.layers.stop();
    }

    fn settled(&self, envelope: &Envelope, info: &DeliveryInfo, outcome: Outcome) {
        self.layers.settled(envelope, info, outcome);
    }
}

impl Subscriber {
    async fn handle(&self, event: RawEvent, context: Context) -> Result<(), HandlerError> {
        for registered in &self.handlers {
            if registered.takes(event.event_type()) {
                (registered.handler)(event.clone(), context.clone()).await?;
            }
        }
        Ok(())
    }

    fn unknown(&self, event: &RawEvent) -> Disposition {
        match self.unknown {
            UnknownEvents::Ignore => {
                tracing::debug!(event_type = event.event_type(), "no handler takes this event");
                self.counters.add(Count::Ignored);
                Disposition::Ack
            }
            UnknownEvents::DeadLetter => Disposition::DeadLetter(
                HandlerError::unsupported(format!(
                    "no handler takes events of type '{}'",
                    event.event_type()
                ))
                .with_code(codes::UNKNOWN_EVENT),
            ),
        }
    }
}
