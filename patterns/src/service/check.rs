//! What a service refuses before anything is declared.

use std::{collections::HashMap, time::Duration};

use postrider_core::Difference;

use crate::consuming::Outline;

/// A part by its name, and what it would be.
pub(super) type Named = (String, Outline);

/// Why the parts cannot run together, for people.
pub(super) fn objection(parts: &[Named], consumer_timeout: Duration) -> Option<String> {
    two_of_one(parts)
        .or_else(|| two_forms(parts))
        .or_else(|| parts.iter().find_map(|part| too_slow(part, consumer_timeout)))
}

fn two_of_one(parts: &[Named]) -> Option<String> {
    let (mut names, mut owners) = (HashMap::new(), HashMap::new());
    for (name, outline) in parts {
        if names.insert(name, ()).is_some() {
            return Some(format!("two parts are '{name}'"));
        }
        for queue in &outline.queues {
            if let Some(other) = owners.insert(queue, name) {
                return Some(format!(
                    "'{other}' and '{name}' would take each other's messages from '{queue}'"
                ));
            }
        }
    }
    None
}

/// The broker has a queue or exchange in one form only: the second part would not start.
fn two_forms(parts: &[Named]) -> Option<String> {
    let (mut queues, mut exchanges) = (HashMap::new(), HashMap::new());
    for (name, Outline { topology, .. }) in parts {
        for queue in &topology.queues {
            if let Some((first, known)) = queues.insert(&queue.name, (name, queue))
                && let Some(difference) = Difference::of_queues(queue, known)
            {
                return Some(differ("queue", &queue.name, [first, name], &difference));
            }
        }
        for exchange in &topology.exchanges {
            if let Some((first, known)) = exchanges.insert(&exchange.name, (name, exchange))
                && let Some(difference) = Difference::of_exchanges(exchange, known)
            {
                return Some(differ("exchange", &exchange.name, [first, name], &difference));
            }
        }
    }
    None
}

fn differ(what: &str, name: &str, parts: [&str; 2], difference: &Difference) -> String {
    let [first, second] = parts;
    let Difference { argument, wanted, found } = difference;
    let who = if first == second {
        format!("'{first}' needs {what} '{name}' twice")
    } else {
        format!("'{first}' and '{second}' both need {what} '{name}'")
    };
    format!(
        "{who}, with {argument} {found} and {wanted}; the broker has it in one form only, give \
         them names of their own"
    )
}

/// What would waste places, or run twice.
fn too_slow((name, outline): &Named, limit: Duration) -> Option<String> {
    let Outline { settings, prefetch, held, .. } = outline;
    if settings.prefetch.is_some() && usize::from(*prefetch) < settings.concurrency {
        let concurrency = settings.concurrency;
        return Some(format!(
            "'{name}': with a prefetch of {prefetch} only as many of its {concurrency} places are \
             used"
        ));
    }
    let taken_back = format!(
        "is above the {limit:?} after which the broker takes a message back, so that it would run \
         twice"
    );
    if let Some(timeout) = settings.handler_timeout.filter(|timeout| *timeout > limit) {
        return Some(format!("'{name}': its handler timeout of {timeout:?} {taken_back}"));
    }
    let tries = outline.retry.as_ref().map_or(1, |policy| policy.max_retries().saturating_add(1));
    let working = settings.handler_timeout.unwrap_or_default().saturating_mul(tries);
    let all = held.saturating_add(working);
    (!held.is_zero() && all > limit).then(|| {
        format!("'{name}': the {all:?} for which it may keep a message in hand {taken_back}")
    })
}

#[cfg(test)]
mod tests {
    use postrider_core::{Exchange, Queue, Topology};

    use super::*;
    use crate::{consuming::Settings, resilience::RetryPolicy};

    const LIMIT: Duration = Duration::from_secs(60);

    fn part(name: &str, topology: Topology) -> Named {
        (name.to_owned(), Outline::new(topology, vec![name.to_owned()], Settings::default()))
    }

    fn why(parts: &[Named]) -> String {
        objection(parts, LIMIT).unwrap_or_default()
    }

    #[test]
    fn what_two_parts_share_has_one_form() {
        let dead = || Topology::new().queue(Queue::durable("dead").without_delivery_limit());
        assert_eq!(why(&[part("a", dead()), part("b", dead())]), "");
        let other = Topology::new().queue(Queue::durable("dead"));
        let said = why(&[part("a", dead()), part("b", other)]);
        assert!(said.contains("'a' and 'b'") && said.contains("delivery_limit none"), "{said}");
        let [topic, direct] = [Exchange::topic("x"), Exchange::direct("x")]
            .map(|exchange| Topology::new().exchange(exchange));
        assert!(why(&[part("a", topic.clone()), part("b", direct.clone())]).contains("kind"));
        assert!(why(&[part("a", topic.and(direct))]).contains("twice"));
    }

    #[test]
    fn what_is_held_counts_with_all_of_its_tries() {
        let holding = |held| {
            let settings =
                Settings { handler_timeout: Some(Duration::from_secs(5)), ..Settings::default() };
            let outline = Outline::new(Topology::new(), Vec::new(), settings);
            let policy = RetryPolicy::never().with_immediate(3);
            [("a".to_owned(), outline.with_retry(&policy).held(held))]
        };
        assert_eq!(why(&holding(Duration::from_secs(40))), "");
        assert!(why(&holding(Duration::from_secs(41))).contains("run twice"));
        // Between tries the broker has it.
        assert_eq!(why(&holding(Duration::ZERO)), "");
    }
}
