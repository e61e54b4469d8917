//! Topology and questions about it, by the management.

use fe2o3_amqp_types::primitives::Value;
use postrider_core::{
    Action, Binding, Difference, Entity, Error, ErrorKind, Exchange, Plan, Queue, QueueInfo,
    QueueKind, Result, Step, Target, Topology, check_name,
};
use postrider_rabbitmq::{Argument, delay, difference, exchange_arguments, queue_arguments};
use tokio::time::Instant;

use crate::{address::encoded, connection::Connection, management::Response, message::any_value};

/// A queue that is nowhere, for the question whether an exchange is somewhere.
const NOWHERE: &str = "postrider.nowhere";

/// What the management knows of a queue.
#[derive(Debug)]
pub(crate) struct Known {
    pub(crate) info: QueueInfo,
    pub(crate) kind: Option<QueueKind>,
}

/// Administration on one connection, until a deadline.
pub(crate) struct Admin<'a> {
    connection: &'a Connection,
    operation: &'static str,
    deadline: Instant,
}

fn map(pairs: Vec<(&str, Value)>) -> Value {
    Value::Map(
        pairs.into_iter().map(|(name, value)| (Value::from(name.to_owned()), value)).collect(),
    )
}

fn arguments(arguments: Vec<(&'static str, Argument)>) -> Value {
    let pairs = arguments.into_iter().map(|(name, value)| {
        let value = match value {
            Argument::Text(text) => Value::String(text.into_owned()),
            Argument::Number(number) => Value::Long(number),
            Argument::Bool(value) => Value::Bool(value),
        };
        (name, value)
    });
    map(pairs.collect())
}

/// A field of a map.
fn field<'a>(body: &'a Value, name: &str) -> Option<&'a Value> {
    let Value::Map(map) = body else { return None };
    map.iter().find_map(|(key, value)| match key {
        Value::String(key) if key == name => Some(value),
        Value::Symbol(key) if key.0 == name => Some(value),
        _ => None,
    })
}

fn number(value: Option<&Value>) -> u64 {
    match value {
        Some(Value::Ulong(number)) => *number,
        Some(Value::Uint(number)) => (*number).into(),
        Some(Value::Long(number)) => u64::try_from(*number).unwrap_or(0),
        Some(Value::Int(number)) => u64::try_from(*number).unwrap_or(0),
        _ => 0,
    }
}

fn text(value: &Value) -> Option<&str> {
    match value {
        Value::String(text) => Some(text),
        Value::Symbol(symbol) => Some(&symbol.0),
        _ => None,
    }
}

impl<'a> Admin<'a> {
    pub(crate) const fn new(
        connection: &'a Connection,
        operation: &'static str,
        deadline: Instant,
    ) -> Self {
        Self { connection, operation, deadline }
    }

    async fn call(&self, method: &'static str, path: String, body: Value) -> Result<Response> {
        let management = self.connection.management()?;
        let response = management.call(self.operation, self.deadline, method, path, body).await?;
        let status = response.status;
        if (200..300).contains(&status) {
            return Ok(response);
        }
        let why = text(&response.body).unwrap_or("the broker refuses it").to_owned();
        let kind = match status {
            404 => ErrorKind::NotFound,
            403 => ErrorKind::Unauthorized,
            _ if why.contains("locked queue") || why.contains("exclusive access") => {
                ErrorKind::Locked
            }
            409 if why.contains("inequivalent arg") => ErrorKind::Mismatch,
            400 if why.contains("no queue ") || why.contains("no exchange ") => ErrorKind::NotFound,
            400 | 409 => ErrorKind::Invalid,
            _ => ErrorKind::Unavailable,
        };
        Err(Error::new(kind, self.operation, why))
    }

    /// Where the management has a queue or an exchange.
    fn path(&self, kind: &'static str, name: &str) -> Result<String> {
        // The broker takes them for steps in the path, however they are encoded: what is said of the
        // queue '..' would be said of all of the broker.
        if matches!(name, "." | "..") {
            let why = "over AMQP 1.0 RabbitMQ cannot be told of what is called '.' or '..'";
            let error = Error::new(ErrorKind::Unsupported, self.operation, why);
            return Err(error.with_context("name", name.to_owned()));
        }
        Ok(format!("/{kind}/{}", encoded(name)))
    }

    // Questions

    /// What is known of a queue; `None` when it is not there.
    pub(crate) async fn queue(&self, name: &str) -> Result<Option<Known>> {
        check_name(self.operation, name)?;
        if name.is_empty() {
            return Ok(None);
        }
        let own = self.connection.own_queues();
        let before = own.now();
        let path = self.path("queues", name)?;
        let asked = self.call("GET", path, Value::Null).await;
        let body = match asked {
            Ok(response) => response.body,
            Err(error) if error.kind() == ErrorKind::NotFound => {
                own.forget(name, before);
                return Ok(None);
            }
            Err(error) => return Err(error.with_context("queue", name.to_owned())),
        };
        // The management tells everybody of it, who may do nothing with it.
        let is_exclusive = field(&body, "exclusive") == Some(&Value::Bool(true));
        if is_exclusive && !own.contains(name) {
            let why = "the queue is exclusive to another connection";
            let error = Error::new(ErrorKind::Locked, self.operation, why);
            return Err(error.with_context("queue", name.to_owned()));
        }
        let ready = number(field(&body, "message_count"));
        let consumers = u32::try_from(number(field(&body, "consumer_count"))).unwrap_or(u32::MAX);
        let kind = match field(&body, "type").and_then(text) {
            Some("quorum") => Some(QueueKind::Quorum),
            Some("classic") => Some(QueueKind::Classic),
            Some("stream") => Some(QueueKind::Stream),
            _ => None,
        };
        Ok(Some(Known { info: QueueInfo::new(ready, consumers), kind }))
    }

    /// What a queue holds; `None` when it is not there.
    pub(crate) async fn queue_info(&self, name: &str) -> Result<Option<QueueInfo>> {
        Ok(self.queue(name).await?.map(|known| known.info))
    }

    /// Whether an exchange is there. The management cannot be asked that; but it says what is
    /// missing for a binding, the exchange first.
    pub(crate) async fn has_exchange(&self, name: &str) -> Result<bool> {
        check_name(self.operation, name)?;
        let body = map(vec![
            ("source", Value::from(name.to_owned())),
            ("destination_queue", Value::from(NOWHERE.to_owned())),
            ("binding_key", Value::from(String::new())),
            ("arguments", map(Vec::new())),
        ]);
        match self.call("POST", "/bindings".to_owned(), body).await {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                Ok(!error.message().contains("no exchange"))
            }
            Err(error) => Err(error.with_context("exchange", name.to_owned())),
            Ok(_) => Ok(true),
        }
    }

    pub(crate) async fn purge(&self, name: &str) -> Result<u64> {
        // Not every version says that a queue is missing in the same way.
        if self.queue(name).await?.is_none() {
            let error = Error::new(ErrorKind::NotFound, self.operation, "the queue does not exist");
            return Err(error.with_context("queue", name.to_owned()));
        }
        let path = self.path("queues", name)?;
        let purged = self.call("DELETE", format!("{path}/messages"), Value::Null).await;
        let purged = purged.map_err(|error| error.with_context("queue", name.to_owned()))?;
        Ok(number(field(&purged.body, "message_count")))
    }

    // Declaring

    pub(crate) async fn declare_exchange(&self, exchange: &Exchange) -> Result<()> {
        let body = map(vec![
            ("type", Value::from(exchange.kind.to_string())),
            ("durable", Value::Bool(exchange.durable)),
            ("auto_delete", Value::Bool(exchange.auto_delete)),
            ("internal", Value::Bool(exchange.internal)),
            ("arguments", arguments(exchange_arguments(exchange))),
        ]);
        let path = self.path("exchanges", &exchange.name)?;
        self.call("PUT", path, body)
            .await
            .map(drop)
            .map_err(|error| error.with_context("exchange", exchange.name.clone()))
    }

    pub(crate) async fn declare_queue(&self, queue: &Queue) -> Result<()> {
        self.declare_queue_with(queue, queue_arguments(queue, self.connection.version())).await
    }

    /// Declares a rung of the ladder of delays.
    pub(crate) async fn declare_rung(&self, rung: &Queue) -> Result<()> {
        let mut arguments = queue_arguments(rung, self.connection.version());
        arguments.push(delay::STRATEGY);
        self.declare_queue_with(rung, arguments).await
    }

    async fn declare_queue_with(
        &self,
        queue: &Queue,
        more: Vec<(&'static str, Argument)>,
    ) -> Result<()> {
        let body = map(vec![
            ("durable", Value::Bool(queue.durable)),
            ("exclusive", Value::Bool(queue.exclusive)),
            ("auto_delete", Value::Bool(queue.auto_delete)),
            ("arguments", arguments(more)),
        ]);
        let path = self.path("queues", &queue.name)?;
        self.call("PUT", path, body)
            .await
            .map_err(|error| error.with_context("queue", queue.name.clone()))?;
        if queue.exclusive {
            self.connection.own_queues().note(&queue.name);
        }
        Ok(())
    }

    pub(crate) async fn bind(&self, binding: &Binding) -> Result<()> {
        let (destination, name) = destination(binding);
        let body = map(vec![
            ("source", Value::from(binding.exchange.to_string())),
            (destination, Value::from(name.to_owned())),
            ("binding_key", Value::from(binding.key.to_string())),
            ("arguments", binding_arguments(binding)),
        ]);
        self.call("POST", "/bindings".to_owned(), body)
            .await
            .map(drop)
            .map_err(|error| error.with_context("binding", binding.to_string()))
    }

    async fn unbind(&self, binding: &Binding) -> Result<()> {
        let (short, name) = match &binding.target {
            Target::Queue(name) => ("dstq", name),
            Target::Exchange(name) => ("dste", name),
        };
        let (source, name, key) =
            (encoded(&binding.exchange), encoded(name), encoded(&binding.key));
        let in_context = |error: Error| error.with_context("binding", binding.to_string());
        if binding.arguments.is_empty() {
            let path = format!("/bindings/src={source};{short}={name};key={key};args=");
            return gone_is_fine(self.call("DELETE", path, Value::Null).await).map_err(in_context);
        }
        // The path of a binding with arguments has a hash that only the broker computes.
        let path = format!("/bindings?src={source}&{short}={name}&key={key}");
        let listed = match self.call("GET", path, Value::Null).await {
            Ok(response) => response.body,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(in_context(error)),
        };
        let Value::List(listed) = listed else { return Ok(()) };
        let wanted = binding_arguments(binding);
        for found in &listed {
            let same = field(found, "arguments").is_some_and(|found| are_equal(found, &wanted));
            if let Some(location) = field(found, "location").and_then(text).filter(|_| same) {
                let removed = self.call("DELETE", location.to_owned(), Value::Null).await;
                gone_is_fine(removed).map_err(in_context)?;
            }
        }
        Ok(())
    }

    /// What declaring a queue would do. A queue that is there is declared again with what is
    /// wanted: an equal declaration changes nothing, and another is refused with the argument.
    async fn plan_queue(&self, queue: &Queue) -> Result<Action> {
        if self.queue(&queue.name).await?.is_none() {
            return Ok(Action::Create);
        }
        match self.declare_queue(queue).await {
            // Another connection's exclusive queue would have been locked to the question too: this
            // one is nobody's, and the broker has no other word for it.
            Err(error) if error.kind() == ErrorKind::Locked => {
                let difference =
                    Difference::between("exclusive", &queue.exclusive, &!queue.exclusive);
                difference.map(Action::Conflict).ok_or(error)
            }
            declared => conflict_of(declared),
        }
    }

    async fn plan_exchange(&self, exchange: &Exchange) -> Result<Action> {
        if !self.has_exchange(&exchange.name).await? {
            return Ok(Action::Create);
        }
        conflict_of(self.declare_exchange(exchange).await)
    }

    pub(crate) async fn plan(&self, topology: &Topology) -> Result<Plan> {
        topology.check()?;
        let mut steps = Vec::new();
        for exchange in &topology.exchanges {
            let action = self.plan_exchange(exchange).await?;
            steps.push(Step { entity: Entity::Exchange(exchange.clone()), action });
        }
        for queue in &topology.queues {
            let action = self.plan_queue(queue).await?;
            steps.push(Step { entity: Entity::Queue(Box::new(queue.clone())), action });
        }
        for binding in &topology.bindings {
            let entity = Entity::Binding(binding.clone());
            steps.push(Step { entity, action: Action::Ensure });
        }
        Ok(Plan { steps })
    }

    pub(crate) async fn declare(&self, topology: &Topology) -> Result<()> {
        // The plan tells of whatever stands against it before anything is changed.
        let plan = self.plan(topology).await?;
        if let Some((entity, difference)) = plan.differences().next() {
            return Err(difference.clone().into_error(entity));
        }
        for step in &plan.steps {
            match (&step.entity, &step.action) {
                (Entity::Exchange(exchange), Action::Create) => {
                    self.declare_exchange(exchange).await?;
                }
                (Entity::Queue(queue), Action::Create) => self.declare_queue(queue).await?,
                (Entity::Binding(binding), _) => self.bind(binding).await?,
                _ => {}
            }
        }
        Ok(())
    }

    pub(crate) async fn remove(&self, topology: &Topology) -> Result<()> {
        // A queue that is locked keeps anything from being removed.
        for queue in &topology.queues {
            self.queue(&queue.name).await?;
        }
        for binding in &topology.bindings {
            binding.check()?;
            if !matches!(&binding.target, Target::Queue(queue) if queue.is_empty()) {
                self.unbind(binding).await?;
            }
        }
        for queue in topology.queues.iter().filter(|queue| !queue.name.is_empty()) {
            let path = self.path("queues", &queue.name)?;
            let own = self.connection.own_queues();
            let before = own.now();
            let deleted = gone_is_fine(self.call("DELETE", path, Value::Null).await);
            deleted.map_err(|error| error.with_context("queue", queue.name.clone()))?;
            own.forget(&queue.name, before);
        }
        for exchange in &topology.exchanges {
            exchange.check()?;
            let path = self.path("exchanges", &exchange.name)?;
            let deleted = gone_is_fine(self.call("DELETE", path, Value::Null).await);
            deleted.map_err(|error| error.with_context("exchange", exchange.name.clone()))?;
        }
        Ok(())
    }
}

fn destination(binding: &Binding) -> (&'static str, &str) {
    match &binding.target {
        Target::Queue(name) => ("destination_queue", name),
        Target::Exchange(name) => ("destination_exchange", name),
    }
}

fn binding_arguments(binding: &Binding) -> Value {
    map(binding.arguments.iter().map(|(name, value)| (name, any_value(value))).collect())
}

/// Whether two maps of arguments say the same; the broker has numbers in its own types.
fn are_equal(found: &Value, wanted: &Value) -> bool {
    let (Value::Map(found), Value::Map(wanted)) = (found, wanted) else { return false };
    let plain = |value: &Value| match value {
        Value::Symbol(symbol) => Value::String(symbol.0.clone()),
        Value::Ubyte(_) | Value::Ushort(_) | Value::Uint(_) | Value::Ulong(_) => {
            Value::Long(i64::try_from(unsigned(value)).unwrap_or(i64::MAX))
        }
        Value::Byte(number) => Value::Long((*number).into()),
        Value::Short(number) => Value::Long((*number).into()),
        Value::Int(number) => Value::Long((*number).into()),
        other => other.clone(),
    };
    let sorted = |map: &fe2o3_amqp_types::primitives::OrderedMap<Value, Value>| {
        let mut pairs: Vec<_> = map.iter().map(|(key, value)| (plain(key), plain(value))).collect();
        pairs.sort();
        pairs
    };
    sorted(found) == sorted(wanted)
}

fn unsigned(value: &Value) -> u64 {
    match value {
        Value::Ubyte(number) => (*number).into(),
        Value::Ushort(number) => (*number).into(),
        other => number(Some(other)),
    }
}

fn gone_is_fine(outcome: Result<Response>) -> Result<()> {
    match outcome {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        other => other.map(drop),
    }
}

fn conflict_of(declared: Result<()>) -> Result<Action> {
    match declared {
        Ok(()) => Ok(Action::Keep),
        Err(error) if error.kind() == ErrorKind::Mismatch => match difference(error.message()) {
            Some(difference) => Ok(Action::Conflict(difference)),
            None => Err(error),
        },
        Err(error) => Err(error),
    }
}

#[cfg(all(test, feature = "live-broker"))]
mod tests {
    use std::{env, time::Duration};

    use postrider_core::{ConsumerOptions, Transport};

    use super::*;
    use crate::Amqp10;

    const PATIENCE: Duration = Duration::from_secs(30);

    #[tokio::test]
    async fn names_that_are_steps_in_a_path_are_refused() {
        let url = env::var("POSTRIDER_AMQP10_URL");
        let url = url.expect("run eval \"$(scripts/brokers up --all)\" first");
        let transport = Amqp10::connect(&url).await.unwrap();
        let refused = |outcome: Result<()>| {
            assert_eq!(outcome.unwrap_err().kind(), ErrorKind::Unsupported);
        };
        for name in [".", ".."] {
            let queue = Topology::new().queue(Queue::classic(name));
            let exchange = Topology::new().exchange(Exchange::topic(name));
            for topology in [queue, exchange] {
                refused(transport.declare(&topology).await);
                refused(transport.remove(&topology).await);
            }
            refused(transport.queue_info(name).await.map(drop));
            refused(transport.purge(name).await.map(drop));
            refused(transport.consumer(name, ConsumerOptions::default()).await.map(drop));
        }
        transport.close(PATIENCE).await.unwrap();
    }
}
