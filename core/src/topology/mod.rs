//! The exchanges, queues and bindings that something needs, and the plan to get there.

mod binding;
mod check;
mod exchange;
mod plan;
mod queue;

pub use binding::{Binding, Target};
pub use exchange::{Exchange, ExchangeKind};
pub use plan::{Action, Difference, Entity, Plan, Step};
pub use queue::{DeadLetter, Overflow, Queue, QueueInfo, QueueKind, RetryDelay};

/// A set of exchanges, queues and bindings.
///
/// [`Transport::declare`](crate::Transport::declare) creates what is missing,
/// [`Transport::plan`](crate::Transport::plan) says what that would be, and
/// [`Transport::remove`](crate::Transport::remove) takes it away.
///
/// # Example: a queue that gets every order event
///
/// ```
/// use postrider_core::{Binding, Exchange, Queue, Topology};
///
/// let topology = Topology::new()
///     .exchange(Exchange::topic("event_bus"))
///     .queue(Queue::durable("billing"))
///     .bind(Binding::queue("event_bus", "billing", "order.*"));
/// assert_eq!(topology.queues.len(), 1);
/// ```
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Topology {
    /// The exchanges, declared first.
    pub exchanges: Vec<Exchange>,
    /// The queues, declared second.
    pub queues: Vec<Queue>,
    /// The bindings, made last.
    pub bindings: Vec<Binding>,
}

impl Topology {
    /// An empty topology.
    #[must_use]
    pub const fn new() -> Self {
        Self { exchanges: Vec::new(), queues: Vec::new(), bindings: Vec::new() }
    }

    /// Adds an exchange.
    #[must_use]
    pub fn exchange(mut self, exchange: Exchange) -> Self {
        self.exchanges.push(exchange);
        self
    }

    /// Adds a queue.
    #[must_use]
    pub fn queue(mut self, queue: Queue) -> Self {
        self.queues.push(queue);
        self
    }

    /// Adds a binding.
    #[must_use]
    pub fn bind(mut self, binding: Binding) -> Self {
        self.bindings.push(binding);
        self
    }

    /// Adds all of another topology.
    #[must_use]
    pub fn and(mut self, other: Self) -> Self {
        self.exchanges.extend(other.exchanges);
        self.queues.extend(other.queues);
        self.bindings.extend(other.bindings);
        self
    }
}
