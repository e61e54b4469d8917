use std::sync::Arc;

use futures_util::{FutureExt, StreamExt, stream::BoxStream};
use postrider_core::{DeliveryInfo, Env, Envelope, HeaderValue, Message, TransportEvent};
use tokio::time::sleep_until;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{
    aggregator::{Aggregator, Completion, Group, Incomplete},
    copies::Copies,
    flow::FlowCounters,
    groups::{Ending, Groups, Outcome, Taken, Term, Waiting},
    inbound::Inbound,
};
use crate::{
    consuming::{Disposition, Process, catch_panic},
    derived::derived,
    handler::{ErrorClass, HandlerError, codes},
    headers,
    resilience::Retrying,
};

/// After a loss the parts come again, and perhaps to another process: what is held of them is void.
/// If it stayed, it would end as incomplete here though it was completed there.
pub(super) async fn listen(mut events: BoxStream<'static, TransportEvent>, groups: Arc<Groups>) {
    while let Some(event) = events.next().await {
        if matches!(
            event,
            TransportEvent::Lost { .. }
                | TransportEvent::Restored { .. }
                | TransportEvent::ConsumerCancelled { .. }
                | TransportEvent::Missed { .. }
        ) {
            groups.give_back();
        }
    }
}

/// Holds the parts of an [`Aggregator`] and makes of them what it says.
pub(super) struct Aggregating {
    pub(super) spec: Aggregator,
    pub(super) groups: Arc<Groups>,
    pub(super) retrying: Retrying,
    pub(super) copies: Copies,
    pub(super) env: Env,
    /// Ends [`listen`] with this.
    pub(super) _listening: DropGuard,
}

impl Process for Aggregating {
    /// Lasts until the group of the part has ended, so that the part is in hand as long.
    async fn process(
        &self,
        envelope: &Arc<Envelope>,
        info: &DeliveryInfo,
        cancellation: &CancellationToken,
    ) -> Disposition {
        let part = Arc::new(Inbound::new(envelope, info, self.spec.intake.limits));
        let key = match catch_panic(async { self.key(&part) }).await {
            Ok(key) => key,
            Err(error) => return Disposition::DeadLetter(error),
        };
        let identity = self.identity(&part);
        let end = self.env.deadline(self.spec.timeout);
        let taken = loop {
            // Before the look, so that no room that is given back after it is missed.
            let freed = self.groups.freed();
            match self.groups.take(&key, &part, identity.as_deref(), end) {
                Taken::NotYet => freed.await,
                taken => break taken,
            }
        };
        let doing = Doing { key: &key, info, cancellation };
        let outcome = match taken {
            Taken::First(waiting, term) => {
                self.complete(doing).await;
                self.see_to_its_end(doing, waiting, &term).await
            }
            Taken::Next(waiting) => {
                self.complete(doing).await;
                waiting.await.ok()
            }
            Taken::Again(waiting, term) => {
                self.copies.counters.duplicates.add(1);
                match term {
                    Some(term) => self.see_to_its_end(doing, waiting, &term).await,
                    None => waiting.await.ok(),
                }
            }
            Taken::Past => {
                self.copies.counters.duplicates.add(1);
                Some(Outcome::Done)
            }
            Taken::Over | Taken::NotYet => Some(Outcome::Back),
        };
        match outcome {
            Some(Outcome::Done) => Disposition::Ack,
            Some(Outcome::Dead(error)) => Disposition::DeadLetter(error),
            // Whoever would have ended the group was given up.
            Some(Outcome::Back) | None => Disposition::Release,
        }
    }

    /// Groups that lack parts wait for none of them in vain once no queue gives any.
    fn stopping(&self) {
        self.groups.close();
    }
}

/// The group that is looked at, for the sake of which part.
#[derive(Clone, Copy)]
struct Doing<'a> {
    key: &'a str,
    info: &'a DeliveryInfo,
    cancellation: &'a CancellationToken,
}

impl Aggregating {
    /// What group a part belongs to; refuses those that would spoil it.
    fn key(&self, part: &Inbound) -> Result<String, HandlerError> {
        self.copies.next_hop(part)?;
        let by = &self.spec.by;
        let key = by.key(part)?.ok_or_else(|| {
            HandlerError::invalid(format!("it has no {by} that could be the key of its group"))
                .with_code(codes::NO_KEY)
        })?;
        let mut key = key;
        if matches!(self.spec.completion, Completion::Parts) {
            let from = part.message().headers.get(headers::PART_FROM);
            if let Some(queue) = from.and_then(HeaderValue::as_text) {
                key = format!("{queue}\0{key}");
            }
            let (number, count) = (part.int(headers::PART), part.int(headers::PARTS));
            if !matches!((number, count), (Some(number), Some(count)) if (0..count).contains(&number))
            {
                let why = "it does not say which part of how many it is";
                return Err(HandlerError::invalid(why));
            }
            let (count, most) = (count.unwrap_or_default(), self.spec.bounds.parts);
            if usize::try_from(count).map_or(true, |count| count > most) {
                let why = format!("its group has {count} parts, and at most {most} are held");
                return Err(HandlerError::invalid(why).with_code(codes::TOO_MANY_PARTS));
            }
        }
        if self.spec.combine.is_none() {
            part.body()?;
        }
        Ok(key)
    }

    /// What makes two parts of a group one: the number where there are numbers, else the id. Parts
    /// that disagree on how many there are, are two: none of them is given up for the other.
    fn identity(&self, part: &Inbound) -> Option<String> {
        match self.spec.completion {
            Completion::Parts => {
                let (number, count) = (part.int(headers::PART)?, part.int(headers::PARTS)?);
                Some(format!("{number}/{count}"))
            }
            _ => part.message().message_id.as_deref().map(str::to_owned),
        }
    }

    async fn complete(&self, doing: Doing<'_>) {
        let mut panicked = None;
        let ready = |parts: &[Arc<Inbound>]| {
            let reached = catch_panic(async { Ok(self.spec.completion.is_reached(parts)) });
            match reached.now_or_never() {
                Some(Err(error)) => {
                    panicked = Some(error);
                    true
                }
                reached => matches!(reached, Some(Ok(true))),
            }
        };
        let Some(group) = self.groups.close_if(doing.key, ready) else { return };
        match panicked {
            None => self.end(group, true, doing).await,
            // It would panic again.
            Some(error) => group.end(&Outcome::Dead(error)),
        }
    }

    /// Ends the group when its time is over or others need its room, unless it ends before.
    async fn see_to_its_end(
        &self,
        doing: Doing<'_>,
        mut waiting: Waiting,
        term: &Term,
    ) -> Option<Outcome> {
        tokio::select! {
            biased;
            outcome = &mut waiting => return outcome.ok(),
            () = term.full.notified() => {}
            () = sleep_until(term.end) => {}
        }
        if let Some(group) = self.groups.close_if(doing.key, |_parts| true) {
            self.end(group, false, doing).await;
        }
        waiting.await.ok()
    }

    async fn end(&self, group: Ending, complete: bool, doing: Doing<'_>) {
        let FlowCounters { complete: completed, incomplete, .. } = &*self.copies.counters;
        if complete { completed } else { incomplete }.add(1);
        if !complete && self.spec.incomplete == Incomplete::DeadLetter {
            let parts = group.parts.len();
            let why =
                format!("its group '{}' had {parts} parts and did not become complete", doing.key);
            let error = HandlerError::new(ErrorClass::DeadlineExceeded, why);
            return group.end(&Outcome::Dead(error.with_code(codes::INCOMPLETE)));
        }
        let mut parts = group.parts.clone();
        parts.sort_by_key(|part| part.int(headers::PART).unwrap_or(i64::MAX));
        let whole = Group { key: group.key.clone(), parts, complete };
        let attempt = || catch_panic(self.publish(&whole));
        let outcome = match self.retrying.run(doing.info, doing.cancellation, attempt).await {
            Disposition::Ack => Outcome::Done,
            Disposition::DeadLetter(error) => Outcome::Dead(error),
            Disposition::Release | Disposition::Retry(_) => Outcome::Back,
        };
        group.end(&outcome);
    }

    async fn publish(&self, group: &Group) -> Result<(), HandlerError> {
        let mut message = match &self.spec.combine {
            Some(combine) => combine(group)?,
            None => self.list(group)?,
        };
        let mut hop = 0;
        for part in &group.parts {
            hop = hop.max(self.copies.next_hop(part)?);
        }
        message.message_id = Some(self.id(group).into());
        let first = group.parts.first().ok_or_else(|| HandlerError::internal("an empty group"))?;
        let conversation = first.conversation().map(|id| id.to_owned().into());
        message.correlation_id = message.correlation_id.or(conversation);
        message.headers.set(headers::HOPS, hop);
        if !group.complete {
            message.headers.set(headers::INCOMPLETE, true);
        }
        let info = DeliveryInfo::first(first.queue().into());
        let envelope = Envelope::new(first.address().clone(), message);
        let seen = Inbound::new(&Arc::new(envelope), &info, self.spec.intake.limits);
        let address = self.spec.to.address(&seen, &self.spec.intake.naming)?;
        let envelope = Envelope::new(address, seen.message().clone());
        Ok(self.copies.send(std::iter::once(envelope)).await?)
    }

    /// Follows from the parts, in whatever order they came.
    fn id(&self, group: &Group) -> String {
        let mut parts: Vec<&[u8]> = group
            .parts
            .iter()
            .map(|part| {
                let id = part.message().message_id.as_deref();
                id.map_or(&*part.message().body, str::as_bytes)
            })
            .collect();
        parts.sort_unstable();
        let queues = self.spec.intake.queues.join("\0");
        derived([queues.as_bytes(), group.key.as_bytes()].into_iter().chain(parts)).to_string()
    }

    fn list(&self, group: &Group) -> Result<Message, HandlerError> {
        let bodies: Vec<_> =
            group.parts.iter().map(|part| part.body()).collect::<Result<_, _>>()?;
        let codec = group.parts.first().map(|part| part.codec()).transpose()?.unwrap_or_default();
        let body = codec.encode_within(&bodies, self.spec.intake.limits)?;
        Ok(Message::new(body).with_content_type(codec.content_type()))
    }
}
