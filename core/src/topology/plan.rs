use std::fmt;

use super::{Binding, Exchange, Queue};
use crate::{Error, ErrorKind};

/// What a topology needs of a broker: for each entity, whether it is there and as wanted.
///
/// Its `Display` is the plan as a person reads it, a line for each step.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Plan {
    /// The steps, in the order they would be taken.
    pub steps: Vec<Step>,
}

impl Plan {
    /// Whether applying it would change nothing that can be seen beforehand.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        self.steps.iter().all(|step| matches!(step.action, Action::Keep | Action::Ensure))
    }

    /// The differences that keep the plan from being applied.
    pub fn differences(&self) -> impl Iterator<Item = (&Entity, &Difference)> {
        self.steps.iter().filter_map(|step| match &step.action {
            Action::Conflict(difference) => Some((&step.entity, difference)),
            _ => None,
        })
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for step in &self.steps {
            writeln!(f, "{step}")?;
        }
        Ok(())
    }
}

/// One entity and what would be done about it.
#[derive(Debug, Clone, PartialEq)]
pub struct Step {
    /// What the step is about.
    pub entity: Entity,
    /// What would be done.
    pub action: Action,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.action {
            Action::Create => write!(f, "create {}", self.entity),
            Action::Keep => write!(f, "keep {}", self.entity),
            Action::Ensure => write!(f, "ensure {}", self.entity),
            Action::Conflict(difference) => write!(f, "conflict {}: {difference}", self.entity),
        }
    }
}

/// An exchange, queue or binding.
#[derive(Debug, Clone, PartialEq)]
pub enum Entity {
    /// An exchange.
    Exchange(Exchange),
    /// A queue.
    Queue(Box<Queue>),
    /// A binding.
    Binding(Binding),
}

impl fmt::Display for Entity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exchange(exchange) => write!(f, "{} exchange '{}'", exchange.kind, exchange.name),
            Self::Queue(queue) => write!(f, "{} queue '{}'", queue.kind, queue.name),
            Self::Binding(binding) => write!(f, "binding {binding}"),
        }
    }
}

/// What applying the plan would do with an entity.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// It is missing and would be created.
    Create,
    /// It is there, as wanted.
    Keep,
    /// The broker does not tell whether it is there; declaring it is harmless if it is.
    Ensure,
    /// It is there with another argument, which the broker cannot change.
    Conflict(Difference),
}

/// An argument of an existing entity that is not what is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// The argument, by its field name in [`Queue`] or [`Exchange`].
    pub argument: &'static str,
    /// What the topology asks for.
    pub wanted: String,
    /// What is there.
    pub found: String,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} is {} there, {} is wanted", self.argument, self.found, self.wanted)
    }
}

/// An argument's value as people write it: `none` and `5` for `None` and `Some(5)`.
fn in_words<T: fmt::Debug>(value: &T) -> String {
    let text = format!("{value:?}");
    match text.strip_prefix("Some(").and_then(|rest| rest.strip_suffix(')')) {
        Some(inner) => inner.to_owned(),
        None if text == "None" => "none".to_owned(),
        None => text,
    }
}

impl Difference {
    /// `Some` when the two values of an argument differ.
    pub fn between<T: PartialEq + fmt::Debug>(
        argument: &'static str,
        wanted: &T,
        found: &T,
    ) -> Option<Self> {
        (wanted != found).then(|| Self {
            argument,
            wanted: in_words(wanted),
            found: in_words(found),
        })
    }

    /// The first argument in which two queues of one name differ.
    #[must_use]
    pub fn of_queues(wanted: &Queue, found: &Queue) -> Option<Self> {
        Self::between("kind", &wanted.kind, &found.kind)
            .or_else(|| Self::between("durable", &wanted.durable, &found.durable))
            .or_else(|| Self::between("exclusive", &wanted.exclusive, &found.exclusive))
            .or_else(|| Self::between("auto_delete", &wanted.auto_delete, &found.auto_delete))
            .or_else(|| Self::between("message_ttl", &wanted.message_ttl, &found.message_ttl))
            .or_else(|| Self::between("expires", &wanted.expires, &found.expires))
            .or_else(|| Self::between("max_length", &wanted.max_length, &found.max_length))
            .or_else(|| {
                Self::between("max_length_bytes", &wanted.max_length_bytes, &found.max_length_bytes)
            })
            .or_else(|| Self::between("overflow", &wanted.overflow, &found.overflow))
            .or_else(|| Self::between("dead_letter", &wanted.dead_letter, &found.dead_letter))
            .or_else(|| {
                Self::between("delivery_limit", &wanted.delivery_limit, &found.delivery_limit)
            })
            .or_else(|| Self::between("retry_delay", &wanted.retry_delay, &found.retry_delay))
            .or_else(|| Self::between("max_priority", &wanted.max_priority, &found.max_priority))
            .or_else(|| {
                Self::between(
                    "single_active_consumer",
                    &wanted.single_active_consumer,
                    &found.single_active_consumer,
                )
            })
    }

    /// The first argument in which two exchanges of one name differ.
    #[must_use]
    pub fn of_exchanges(wanted: &Exchange, found: &Exchange) -> Option<Self> {
        Self::between("kind", &wanted.kind, &found.kind)
            .or_else(|| Self::between("durable", &wanted.durable, &found.durable))
            .or_else(|| Self::between("auto_delete", &wanted.auto_delete, &found.auto_delete))
            .or_else(|| Self::between("internal", &wanted.internal, &found.internal))
            .or_else(|| Self::between("alternate", &wanted.alternate, &found.alternate))
    }

    /// The error of a declare that meets this difference.
    #[must_use]
    pub fn into_error(self, entity: &Entity) -> Error {
        Error::new(
            ErrorKind::Mismatch,
            "declare",
            format!(
                "{entity} exists with other arguments: {self}; \
                 declare it as it is, or delete it first"
            ),
        )
        .with_context("argument", self.argument)
    }
}
