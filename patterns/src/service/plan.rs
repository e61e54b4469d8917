use std::{collections::BTreeMap, fmt, time::Duration};

use postrider_core::{Binding, Exchange, Queue, QueueKind, Target, Topology};

use crate::{
    consuming::Outline,
    resilience::{Jitter, RetryPolicy},
};

/// What a service will declare and how it will consume.
///
/// It is made by the functions that the start declares by. `{id}` in a name stands for the id that
/// each instance puts there: such a queue belongs to one connection and goes with it. What is
/// declared while the service runs is not in it: the queues of single streams, and the ladder of
/// delay queues where the broker has no delays of its own.
///
/// Its `Display` is a table for people; two of them can be compared line by line.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct ServicePlan {
    /// The name of the service.
    pub service: String,
    /// How long all parts together may take to drain.
    pub stop_deadline: Duration,
    /// The parts, in the order in which they start; announcements come last.
    pub parts: Vec<PartPlan>,
}

/// What one part of a service will declare and how it will consume.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct PartPlan {
    /// The name of the part.
    pub part: String,
    /// The queues that its messages come from. An announcement handles none; what it hears are
    /// questions of registries.
    pub queues: Vec<String>,
    /// How many messages of each queue it handles at once.
    pub concurrency: usize,
    /// How many messages of each queue it takes in advance, those at work included.
    pub prefetch: u16,
    /// How long a handler may take; `None` is as long as it takes.
    pub handler_timeout: Option<Duration>,
    /// When what failed is tried again; `None` where a failure is an answer.
    pub retry: Option<RetryPolicy>,
    /// How long it may keep a message in hand beside the time that handlers take: between tries
    /// inside the process, or until its group is whole.
    pub held: Duration,
    /// What it declares: its queues with their kinds, limits and dead-letter places, exchanges and
    /// bindings.
    pub topology: Topology,
}

impl ServicePlan {
    /// What all parts declare together. What several of them declare is there several times, which
    /// [`Transport::plan`](postrider_core::Transport::plan) and
    /// [`Transport::declare`](postrider_core::Transport::declare) take.
    #[must_use]
    pub fn topology(&self) -> Topology {
        let all = self.parts.iter().map(|part| part.topology.clone());
        all.fold(Topology::new(), Topology::and)
    }
}

impl PartPlan {
    pub(super) fn new(part: String, outline: Outline) -> Self {
        let Outline { topology, queues, settings, prefetch, retry, held } = outline;
        Self {
            part,
            queues,
            concurrency: settings.concurrency,
            prefetch,
            handler_timeout: settings.handler_timeout,
            retry,
            held,
            topology,
        }
    }

    /// Whether one of several instances takes from this queue while the others stand by.
    pub(super) fn stands_by(&self, queue: &str) -> bool {
        let is_single =
            |declared: &Queue| declared.name == queue && declared.single_active_consumer;
        self.topology.queues.iter().any(is_single)
    }
}

impl fmt::Display for ServicePlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { service, stop_deadline, parts } = self;
        let parts_word = if parts.len() == 1 { "part" } else { "parts" };
        writeln!(
            f,
            "service {service}: {} {parts_word}, drained within {stop_deadline:?}",
            parts.len()
        )?;
        for part in parts {
            write!(f, "\n{part}")?;
        }
        Ok(())
    }
}

impl fmt::Display for PartPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.part)?;
        let mut row = |label: &str, text: String| writeln!(f, "  {label:<12} {text}");
        if !self.queues.is_empty() {
            row("takes from", self.queues.join(", "))?;
            row("concurrency", format!("{}, prefetch {}", self.concurrency, self.prefetch))?;
            let limit = self.handler_timeout.map_or("none".to_owned(), |it| format!("{it:?}"));
            row("time limit", limit)?;
            row("retries", self.retry.as_ref().map_or("none".to_owned(), retries))?;
        }
        if !self.held.is_zero() {
            row("holds", format!("a message up to {:?} beside its handler", self.held))?;
        }
        for declared in &self.topology.queues {
            row("queue", queue(declared))?;
        }
        for declared in &self.topology.exchanges {
            row("exchange", exchange(declared))?;
        }
        for binding in bindings(&self.topology.bindings) {
            row("binding", binding)?;
        }
        Ok(())
    }
}

fn retries(policy: &RetryPolicy) -> String {
    let mut text = format!("{} at once", policy.immediate);
    let delays = policy.delayed > 0 || policy.classes.values().any(|tries| tries.delayed > 0);
    if delays {
        let RetryPolicy { delayed, first_delay, factor, max_delay, .. } = policy;
        let jitter = if policy.jitter == Jitter::None { "" } else { ", spread" };
        text +=
            &format!(", {delayed} after {first_delay:?} × {factor} up to {max_delay:?}{jitter}");
    }
    for (class, tries) in &policy.classes {
        text += &format!(
            "; {}: {} at once, {} delayed",
            class.as_str(),
            tries.immediate,
            tries.delayed
        );
    }
    text + "; then dead-lettered"
}

fn queue(queue: &Queue) -> String {
    let mut facts = vec![queue.kind.to_string()];
    let mut fact = |holds: bool, text: String| {
        if holds {
            facts.push(text);
        }
    };
    fact(!queue.durable, "transient".to_owned());
    fact(queue.exclusive, "exclusive".to_owned());
    fact(queue.auto_delete, "goes with its consumer".to_owned());
    fact(queue.single_active_consumer, "one active consumer".to_owned());
    let is_unlimited = queue.kind == QueueKind::Quorum && queue.delivery_limit.is_none();
    fact(is_unlimited, "no delivery limit".to_owned());
    let limit =
        |number: Option<String>, what: &str| number.map(|number| format!("{what} {number}"));
    let time = |time: Option<Duration>| time.map(|time| format!("{time:?}"));
    let number = |number: Option<u64>| number.map(|number| number.to_string());
    let limits = [
        limit(number(queue.delivery_limit.map(u64::from)), "delivery limit"),
        limit(time(queue.message_ttl), "messages expire after"),
        limit(time(queue.expires), "goes when unused for"),
        limit(number(queue.max_length), "messages at most"),
        limit(number(queue.max_length_bytes), "bytes at most"),
        limit(queue.retry_delay.map(|delay| delay.to_string()), "retry delay"),
        limit(number(queue.max_priority.map(u64::from)), "highest priority"),
    ];
    facts.extend(limits.into_iter().flatten());
    if queue.max_length.is_some() || queue.max_length_bytes.is_some() {
        facts.push(queue.overflow.to_string());
    }
    if let Some(dead_letter) = &queue.dead_letter {
        facts.push(format!("dead letters to {dead_letter}"));
    }
    format!("{}: {}", queue.name, facts.join(", "))
}

fn exchange(exchange: &Exchange) -> String {
    let mut text = format!("{}: {}", exchange.name, exchange.kind);
    let mut fact = |holds: bool, fact: &str| {
        if holds {
            text += ", ";
            text += fact;
        }
    };
    fact(!exchange.durable, "transient");
    fact(exchange.auto_delete, "goes with its last binding");
    fact(exchange.internal, "internal");
    if let Some(alternate) = &exchange.alternate {
        fact(true, &format!("the rest to exchange '{alternate}'"));
    }
    text
}

/// A line for all keys from one exchange to one place.
fn bindings(bindings: &[Binding]) -> Vec<String> {
    let mut keys: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    for binding in bindings {
        let target = match &binding.target {
            Target::Queue(name) => format!("queue {name}"),
            Target::Exchange(name) => format!("exchange {name}"),
        };
        keys.entry(format!("{} -> {target}", binding.exchange)).or_default().push(&binding.key);
    }
    let line = |(way, keys): (String, Vec<&str>)| match keys.join(", ") {
        keys if keys.is_empty() => way,
        keys => format!("{way} by {keys}"),
    };
    keys.into_iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ErrorClass, Tries, dead_letter_route, naming::Naming};

    #[test]
    fn whatever_is_set_is_said() {
        let minute = Duration::from_secs(60);
        let mut requests = Queue::classic("q").with_expires(minute).with_message_ttl(minute);
        requests = requests.with_max_length(9).with_max_length_bytes(8).with_max_priority(7);
        let text = queue(&requests.with_dead_letter(dead_letter_route(&Naming::default(), "q")));
        for fact in [
            "q: classic, messages expire after 60s, goes when unused for 60s, messages at most 9",
            "bytes at most 8, highest priority 7, drop-head",
            "dead letters to exchange 'dead_letter_exchange' with key 'dead_letter_q'",
        ] {
            assert!(text.contains(fact), "{text}");
        }
        let delayed = Queue::durable("q").with_retry_delay(minute, minute).single_active_consumer();
        let wanted = "q: quorum, one active consumer, delivery limit 20, \
                      retry delay 60s for each failure, up to 60s";
        assert_eq!(queue(&delayed), wanted);
        let spread = Exchange::headers("x").transient().auto_delete().internal();
        let wanted = "x: headers, transient, goes with its last binding, internal, \
                      the rest to exchange 'y'";
        assert_eq!(exchange(&spread.with_alternate("y")), wanted);
    }

    #[test]
    fn a_policy_is_told_with_its_classes() {
        let policy = RetryPolicy::never().with_immediate(2);
        assert_eq!(retries(&policy), "2 at once; then dead-lettered");
        let wanted = "2 at once, 0 after 1s × 2 up to 300s, spread; \
                      UNAVAILABLE: 0 at once, 9 delayed; then dead-lettered";
        let policy = policy.with_class(ErrorClass::Unavailable, Tries::new(0, 9));
        assert_eq!(retries(&policy), wanted);
    }

    #[test]
    fn keys_that_lead_to_one_place_share_a_line() {
        let keys = ["a", "b"].map(|key| Binding::queue("x", "q", key));
        let all = Binding::exchange("x", "y", "");
        assert_eq!(
            bindings(&[&keys[..], &[all]].concat()),
            ["x -> exchange y", "x -> queue q by a, b"]
        );
    }
}
