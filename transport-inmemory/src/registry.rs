//! The exchanges, bindings and queues of a broker, and the way of a message through them.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use postrider_core::{Address, Binding, Error, ErrorKind, Exchange, Headers, Result, Target};

use crate::{matching, queue::Queue};

#[derive(Debug)]
pub(crate) struct Registry {
    exchanges: HashMap<String, Bound>,
    queues: HashMap<String, Arc<Queue>>,
    /// How many queues there ever were.
    declared: u64,
}

/// An exchange with what leaves it.
#[derive(Debug)]
struct Bound {
    spec: Exchange,
    bindings: Vec<Binding>,
}

/// Where a message goes.
#[derive(Debug, Clone)]
pub(crate) enum Route {
    /// To these queues; to none, when it is unroutable.
    Queues(Arc<[Arc<Queue>]>),
    /// Nowhere, since the exchange does not exist.
    NoExchange,
    /// Nowhere, since the exchange takes messages from other exchanges only.
    Internal,
}

impl Registry {
    /// A broker as it begins: with the exchanges that AMQP 0.9.1 prescribes.
    pub(crate) fn new() -> Self {
        let predeclared = [
            Exchange::direct("amq.direct"),
            Exchange::fanout("amq.fanout"),
            Exchange::topic("amq.topic"),
            Exchange::headers("amq.headers"),
            Exchange::headers("amq.match"),
        ];
        let bound =
            |spec: Exchange| (spec.name.clone().into_owned(), Bound { spec, bindings: Vec::new() });
        Self {
            exchanges: predeclared.into_iter().map(bound).collect(),
            queues: HashMap::new(),
            declared: 0,
        }
    }

    // Looking

    pub(crate) fn queue(&self, name: &str) -> Option<&Arc<Queue>> {
        self.queues.get(name)
    }

    pub(crate) fn queues(&self) -> impl Iterator<Item = &Arc<Queue>> {
        self.queues.values()
    }

    pub(crate) fn exchange(&self, name: &str) -> Option<&Exchange> {
        self.exchanges.get(name).map(|bound| &bound.spec)
    }

    pub(crate) fn has_binding(&self, binding: &Binding) -> bool {
        self.exchanges.get(&*binding.exchange).is_some_and(|bound| bound.bindings.contains(binding))
    }

    /// Whether the way from this exchange depends on more than the routing key.
    pub(crate) fn routes_by_headers(&self, address: &Address) -> bool {
        matches!(address, Address::Exchange { exchange, .. } if !exchange.is_empty())
            && self.exchanges.values().any(|bound| {
                bound.spec.kind == postrider_core::ExchangeKind::Headers
                    && !bound.bindings.is_empty()
            })
    }

    // Changing

    pub(crate) fn add_exchange(&mut self, spec: Exchange) {
        let bound = Bound { spec, bindings: Vec::new() };
        self.exchanges.insert(bound.spec.name.clone().into_owned(), bound);
    }

    /// The number of the next queue.
    pub(crate) const fn next_number(&self) -> u64 {
        self.declared
    }

    pub(crate) fn add_queue(&mut self, queue: Arc<Queue>) {
        self.declared += 1;
        self.queues.insert(queue.name.to_string(), queue);
    }

    /// Adds a binding whose ends exist; adding it again changes nothing.
    pub(crate) fn bind(&mut self, binding: Binding) -> Result<()> {
        let missing = |what: &'static str, name: &str| {
            Error::new(ErrorKind::NotFound, "declare", "an end of the binding does not exist")
                .with_context(what, name)
                .with_context("binding", binding.to_string())
        };
        match &binding.target {
            Target::Queue(name) if !self.queues.contains_key(&**name) => {
                return Err(missing("queue", name));
            }
            Target::Exchange(name) if !self.exchanges.contains_key(&**name) => {
                return Err(missing("exchange", name));
            }
            _ => {}
        }
        let Some(bound) = self.exchanges.get_mut(&*binding.exchange) else {
            return Err(missing("exchange", &binding.exchange));
        };
        if !bound.bindings.contains(&binding) {
            bound.bindings.push(binding);
        }
        Ok(())
    }

    pub(crate) fn unbind(&mut self, binding: &Binding) {
        self.retain_bindings(|known| known != binding);
    }

    pub(crate) fn remove_queue(&mut self, name: &str) -> Option<Arc<Queue>> {
        let queue = self.queues.remove(name)?;
        self.retain_bindings(
            |binding| !matches!(&binding.target, Target::Queue(target) if target == name),
        );
        Some(queue)
    }

    pub(crate) fn remove_exchange(&mut self, name: &str) {
        if self.exchanges.remove(name).is_some() {
            self.retain_bindings(
                |binding| !matches!(&binding.target, Target::Exchange(target) if target == name),
            );
        }
    }

    /// Drops the other bindings, and the auto-delete exchanges that lose their last one by it.
    fn retain_bindings(&mut self, keep: impl Fn(&Binding) -> bool) {
        let mut emptied = Vec::new();
        for (name, bound) in &mut self.exchanges {
            let before = bound.bindings.len();
            bound.bindings.retain(&keep);
            if bound.spec.auto_delete && before > 0 && bound.bindings.is_empty() {
                emptied.push(name.clone());
            }
        }
        for name in emptied {
            self.remove_exchange(&name);
        }
    }

    /// Removes what a restart of the broker does not leave, and gives the queues among it.
    pub(crate) fn restart(&mut self) -> Vec<Arc<Queue>> {
        let transient: Vec<_> =
            self.queues.values().filter(|queue| !queue.spec.durable).cloned().collect();
        for queue in &transient {
            self.remove_queue(&queue.name);
        }
        let exchanges: Vec<_> =
            self.exchanges.values().map(|bound| &bound.spec).filter(|spec| !spec.durable).collect();
        let names: Vec<_> = exchanges.into_iter().map(|spec| spec.name.clone()).collect();
        for name in names {
            self.remove_exchange(&name);
        }
        transient
    }

    // Routing

    /// The queues of a message, each once.
    pub(crate) fn route(&self, address: &Address, headers: &Headers) -> Route {
        let (exchange, routing_key) = (address.exchange_name(), address.routing_key());
        if exchange.is_empty() {
            return Route::Queues(self.queues.get(routing_key).cloned().into_iter().collect());
        }
        match self.exchanges.get(exchange) {
            None => Route::NoExchange,
            Some(bound) if bound.spec.internal => Route::Internal,
            Some(_) => Route::Queues(self.queues_from(exchange, routing_key, headers).into()),
        }
    }

    /// As [`route`](Self::route), for what the broker itself publishes.
    pub(crate) fn route_within(&self, address: &Address, headers: &Headers) -> Vec<Arc<Queue>> {
        let (exchange, routing_key) = (address.exchange_name(), address.routing_key());
        if exchange.is_empty() {
            return self.queues.get(routing_key).cloned().into_iter().collect();
        }
        self.queues_from(exchange, routing_key, headers)
    }

    fn queues_from(&self, exchange: &str, key: &str, headers: &Headers) -> Vec<Arc<Queue>> {
        let mut queues: Vec<Arc<Queue>> = Vec::new();
        let mut seen = HashSet::from([exchange]);
        let mut open = vec![exchange];
        while let Some(name) = open.pop() {
            let Some((name, bound)) = self.exchanges.get_key_value(name) else {
                continue;
            };
            debug_assert!(seen.contains(name.as_str()));
            let mut matched = false;
            for binding in &bound.bindings {
                if !matching::matches(bound.spec.kind, binding, key, headers) {
                    continue;
                }
                matched = true;
                match &binding.target {
                    Target::Queue(name) => {
                        if let Some(queue) = self.queues.get(&**name)
                            && !queues.iter().any(|known| Arc::ptr_eq(known, queue))
                        {
                            queues.push(queue.clone());
                        }
                    }
                    Target::Exchange(name) => {
                        if seen.insert(name) {
                            open.push(name);
                        }
                    }
                }
            }
            // The alternate exchange gets what matches no binding of this one.
            if !matched
                && let Some(alternate) = &bound.spec.alternate
                && seen.insert(alternate)
            {
                open.push(alternate);
            }
        }
        queues
    }
}
