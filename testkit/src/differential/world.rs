//! The two sides under one program: takes its steps on both and compares what is seen.

mod caution;
mod ending;

use std::{
    collections::{BTreeSet, HashMap},
    time::Duration,
};

use postrider_core::{Consumer, Delivery, ErrorKind, Queue, QueueKind, Topology};
use tokio::time::sleep;

use super::{
    compare::Eyes,
    differences::{CONSUMER_COUNTS, DELETED_WITH_UNREAD},
    observe::{Counts, Seen, SeenDelivery, SeenMessage},
    program::{How, Program, SHORT, Step, WAIT},
    run::Protocol,
    side::{Side, named, named_envelope, named_topology, receive},
};

/// How long the subject may take to show what the reference shows.
const PATIENCE: Duration = Duration::from_secs(6);

/// How long the reference, which is in the process, may take to hand over what it has.
const AT_ONCE: Duration = Duration::from_millis(5);

/// How often counts that differ are asked for.
const POLL: Duration = Duration::from_millis(5);

/// A consumer on both sides.
struct Reader {
    id: usize,
    connection: usize,
    queue: String,
    reference: Consumer,
    subject: Consumer,
    ended: bool,
}

/// A delivery that is held on both sides.
struct Held {
    reader: usize,
    connection: usize,
    queue: String,
    seen: SeenMessage,
    reference: Delivery,
    subject: Delivery,
}

/// What a program came to.
#[derive(Debug, Default)]
pub(super) struct Course {
    pub(super) deliveries: usize,
    /// The names of the differences that were forgiven.
    pub(super) forgiven: Vec<&'static str>,
}

/// Both sides with what a program has on them.
pub(super) struct World<'a> {
    reference: &'a Side,
    subject: &'a Side,
    protocol: Protocol,
    prefix: String,
    /// How long the subject has to work off what it is not asked to confirm.
    pace: Duration,
    /// As they were declared last.
    queues: HashMap<String, Queue>,
    exchanges: BTreeSet<String>,
    /// Whether one was declared that goes by itself, or removed by another connection, which nothing
    /// here would notice.
    mortal_exchanges: bool,
    /// The queues that were there after the last step.
    there: BTreeSet<String>,
    readers: Vec<Reader>,
    /// Readers that were dropped with deliveries held, and their queues.
    leaving: Vec<(usize, String)>,
    held: Vec<Held>,
    next_reader: usize,
    course: Course,
}

impl<'a> World<'a> {
    pub(super) fn new(
        reference: &'a Side,
        subject: &'a Side,
        protocol: Protocol,
        pace: Duration,
    ) -> Self {
        let id = reference.env().new_id().simple().to_string();
        Self {
            reference,
            subject,
            protocol,
            // The tail of a UUIDv7 is its random part.
            prefix: format!("diff-{}.", &id[20..]),
            pace,
            queues: HashMap::new(),
            exchanges: BTreeSet::new(),
            mortal_exchanges: false,
            there: BTreeSet::new(),
            readers: Vec::new(),
            leaving: Vec::new(),
            held: Vec::new(),
            next_reader: 0,
            course: Course::default(),
        }
    }

    /// Runs a program; says at which step and how the two sides differ.
    pub(super) async fn run(mut self, program: &Program) -> Result<Course, String> {
        let outcome = self.take_steps(program).await;
        self.clean_up().await;
        outcome.map(|()| self.course)
    }

    async fn take_steps(&mut self, program: &Program) -> Result<(), String> {
        for (number, step) in program.steps.iter().enumerate() {
            let at = |difference: String| format!("at step {number}, {step}:\n{difference}");
            let Some((reference, subject)) = self.take(step).await.map_err(at)? else { continue };
            self.compare(&reference, &subject).map_err(at)?;
            if program.timed {
                sleep(WAIT).await;
            }
            self.agree().await.map_err(at)?;
        }
        self.drain().await.map_err(|difference| format!("when all is drained:\n{difference}"))
    }

    fn eyes(&self) -> Eyes<'a> {
        Eyes {
            reference: self.reference.capabilities(),
            subject: self.subject.capabilities(),
            protocol: self.protocol,
        }
    }

    fn compare(&mut self, reference: &Seen, subject: &Seen) -> Result<(), String> {
        let kind_of =
            |queue: &str| self.queues.get(queue).map_or(QueueKind::Classic, |queue| queue.kind);
        let forgiven = self.eyes().compare(reference, subject, kind_of)?;
        self.course.forgiven.extend(forgiven);
        Ok(())
    }

    /// Takes a step on both sides; `None` when there is nothing to take it on, or when it would
    /// meet a known difference.
    async fn take(&mut self, step: &Step) -> Result<Option<(Seen, Seen)>, String> {
        let prefix = self.prefix.clone();
        Ok(Some(match step {
            Step::Declare { connection, topology } => {
                if self.replaces_what_is_read(topology) {
                    return Ok(None);
                }
                self.declare(*connection, topology).await
            }
            Step::Remove { connection, topology } => {
                self.mortal_exchanges |= *connection != 0 && !topology.exchanges.is_empty();
                let topology = named_topology(&prefix, topology);
                tokio::join!(
                    self.reference.remove(*connection, &topology),
                    self.subject.remove(*connection, &topology)
                )
            }
            Step::Publish { address, message, delay } => {
                if !delay.is_zero() && !self.may_delay(address)
                    || self.overtakes(address, message).await
                {
                    return Ok(None);
                }
                let envelope = || named_envelope(&prefix, address, message, *delay);
                tokio::join!(self.reference.publish(envelope()), self.subject.publish(envelope()))
            }
            Step::Consume { connection, queue, prefetch, exclusive } => {
                return Ok(self.consume(*connection, queue, *prefetch, *exclusive).await);
            }
            Step::Receive { consumer, most } => {
                if self.readers.is_empty() {
                    return Ok(None);
                }
                let reader = consumer % self.readers.len();
                self.receive(reader, *most).await
            }
            Step::Settle { held, how } => return Ok(self.settle(*held, *how).await),
            Step::DropConsumer { consumer } => {
                if self.readers.is_empty() {
                    return Ok(None);
                }
                let index = consumer % self.readers.len();
                if !self.may_drop(&self.readers[index]) {
                    return Ok(None);
                }
                let reader = self.readers.remove(index);
                self.drop_reader(reader).await;
                (Seen::Done, Seen::Done)
            }
            Step::Purge { connection, queue } => {
                let queue = named(&prefix, queue);
                tokio::join!(
                    self.reference.purge(*connection, &queue),
                    self.subject.purge(*connection, &queue)
                )
            }
            Step::Ask { connection, queue } => {
                let (reference, subject) = self.counts(*connection, queue).await;
                (Seen::Info(self.as_told(queue, reference)), Seen::Info(subject))
            }
            Step::Lose { connection } => return Ok(self.lose(*connection).await),
        }))
    }

    async fn declare(&mut self, connection: usize, topology: &Topology) -> (Seen, Seen) {
        let named = named_topology(&self.prefix, topology);
        let seen = tokio::join!(
            self.reference.declare(connection, &named),
            self.subject.declare(connection, &named)
        );
        if seen == (Seen::Done, Seen::Done) {
            for queue in &topology.queues {
                self.queues.insert(queue.name.to_string(), queue.clone());
            }
            self.mortal_exchanges |= topology.exchanges.iter().any(|known| known.auto_delete);
            self.exchanges.extend(topology.exchanges.iter().map(|known| known.name.to_string()));
        }
        seen
    }

    async fn consume(
        &mut self,
        connection: usize,
        queue: &str,
        prefetch: u16,
        exclusive: bool,
    ) -> Option<(Seen, Seen)> {
        let kind = self.queues.get(queue).map(|queue| queue.kind);
        let exclusive = exclusive && kind != Some(QueueKind::Quorum);
        let single_active = self.is_single_active(queue);
        // The one that declares a single active consumer queue keeps its order.
        let connection = if single_active { 0 } else { connection };
        let is_read = self.readers.iter().any(|reader| reader.queue == queue);
        if is_read && !single_active && !exclusive {
            return None;
        }
        let name = named(&self.prefix, queue);
        let opened = tokio::join!(
            self.reference.consume(connection, &name, prefetch, exclusive),
            self.subject.consume(connection, &name, prefetch, exclusive)
        );
        Some(match opened {
            (Ok(reference), Ok(subject)) => {
                let id = self.next_reader;
                self.next_reader += 1;
                let queue = queue.to_owned();
                let ended = false;
                self.readers.push(Reader { id, connection, queue, reference, subject, ended });
                (Seen::Done, Seen::Done)
            }
            (reference, subject) => {
                (Seen::of_call(reference.map(drop)), Seen::of_call(subject.map(drop)))
            }
        })
    }

    /// Receives what the reference has, up to `most`, and waits for as much from the subject.
    async fn receive(&mut self, reader: usize, most: usize) -> (Seen, Seen) {
        let (mut all_reference, mut all_subject) = (Vec::new(), Vec::new());
        let reader = &mut self.readers[reader];
        while !reader.ended && all_reference.len() < most {
            let (seen, reference) = receive(&mut reader.reference, AT_ONCE, &self.prefix).await;
            if seen == SeenDelivery::Nothing {
                break;
            }
            let (mut shown, subject) = receive(&mut reader.subject, PATIENCE, &self.prefix).await;
            let mut seen = seen;
            // What one side had handed to the stream when the queue was deleted.
            let gone = SeenDelivery::End(Some(ErrorKind::NotFound));
            while shown == gone && matches!(seen, SeenDelivery::Message(_)) {
                self.course.forgiven.push(DELETED_WITH_UNREAD.name);
                seen = receive(&mut reader.reference, AT_ONCE, &self.prefix).await.0;
            }
            while seen == gone && matches!(shown, SeenDelivery::Message(_)) {
                self.course.forgiven.push(DELETED_WITH_UNREAD.name);
                shown = receive(&mut reader.subject, PATIENCE, &self.prefix).await.0;
            }
            reader.ended = matches!(seen, SeenDelivery::End(_));
            if let (SeenDelivery::Message(seen), Some(reference), Some(subject)) =
                (&seen, reference, subject)
            {
                self.course.deliveries += 1;
                self.held.push(Held {
                    reader: reader.id,
                    connection: reader.connection,
                    queue: reader.queue.clone(),
                    seen: (**seen).clone(),
                    reference,
                    subject,
                });
            }
            let differs = matches!(
                (&seen, &shown),
                (SeenDelivery::Message(one), SeenDelivery::Message(other)) if one.body != other.body
            ) || shown == SeenDelivery::Nothing;
            all_reference.push(seen);
            all_subject.push(shown);
            if differs {
                break;
            }
        }
        (Seen::Deliveries(all_reference), Seen::Deliveries(all_subject))
    }

    async fn settle(&mut self, held: usize, how: How) -> Option<(Seen, Seen)> {
        if self.held.is_empty() {
            return None;
        }
        let held = held % self.held.len();
        if how == How::RetryLater && !self.may_retry_later(held).await
            || how.gives_back() && self.pushes_out(held).await
        {
            return None;
        }
        let Held { reader, reference, subject, .. } = self.held.remove(held);
        settle(reference, how);
        settle(subject, how);
        self.forget_leaving(reader);
        sleep(self.pace).await;
        Some((Seen::Done, Seen::Done))
    }

    async fn drop_reader(&mut self, reader: Reader) {
        let holds = self.held.iter().any(|held| held.reader == reader.id);
        if holds && !reader.ended {
            self.leaving.push((reader.id, reader.queue.clone()));
        }
        drop(reader);
        sleep(self.pace).await;
    }

    fn forget_leaving(&mut self, reader: usize) {
        if !self.held.iter().any(|held| held.reader == reader) {
            self.leaving.retain(|(leaving, _)| *leaving != reader);
        }
    }

    /// Loses a connection, where what comes again comes in one order.
    async fn lose(&mut self, connection: usize) -> Option<(Seen, Seen)> {
        if !self.may_lose(connection).await {
            return None;
        }
        let (kept, lost): (Vec<_>, Vec<_>) = std::mem::take(&mut self.held)
            .into_iter()
            .partition(|held| held.connection != connection);
        self.held = kept;
        self.leaving.retain(|(reader, _)| self.held.iter().any(|held| held.reader == *reader));
        let seen = tokio::join!(self.reference.lose(connection), self.subject.lose(connection));
        // What is settled now is stale, on both sides.
        drop(lost);
        sleep(self.pace).await;
        Some(seen)
    }

    // Counts

    async fn counts(&self, connection: usize, queue: &str) -> (Counts, Counts) {
        let name = named(&self.prefix, queue);
        tokio::join!(
            self.reference.counts(connection, &name),
            self.subject.counts(connection, &name)
        )
    }

    /// Waits until both sides have the same counts.
    async fn agree(&mut self) -> Result<(), String> {
        self.there.clear();
        let names: BTreeSet<_> = self.queues.keys().cloned().collect();
        for queue in &names {
            let deadline = self.subject.env().now() + PATIENCE;
            loop {
                let (reference, subject) = self.counts(0, queue).await;
                let expected = self.as_told(queue, reference);
                if subject == expected {
                    if reference == Counts::Missing {
                        self.leaving.retain(|(_, known)| known != queue);
                    } else {
                        self.there.insert(queue.clone());
                    }
                    if subject != reference {
                        self.course.forgiven.push(CONSUMER_COUNTS.name);
                    }
                    break;
                }
                if self.subject.env().now() > deadline {
                    return Err(format!(
                        "the counts of '{queue}':\nreference: {reference:?}\nsubject: {subject:?}"
                    ));
                }
                sleep(POLL).await;
            }
        }
        Ok(())
    }
}

fn settle(delivery: Delivery, how: How) {
    match how {
        How::Ack => delivery.ack(),
        How::Release => delivery.release(),
        How::Retry => delivery.retry(Duration::ZERO),
        How::RetryLater => delivery.retry(SHORT),
        How::Reject => delivery.reject("the program says so"),
        How::Abandon => drop(delivery),
    }
}
