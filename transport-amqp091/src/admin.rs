//! Topology and questions about it, each on a channel that may die of the answer.

use std::{sync::Arc, time::Duration};

use lapin::{
    Channel,
    options::{
        ExchangeBindOptions, ExchangeDeclareOptions, ExchangeDeleteOptions, ExchangeUnbindOptions,
        QueueBindOptions, QueueDeclareOptions, QueueDeleteOptions, QueuePurgeOptions,
    },
    types::FieldTable,
};
use postrider_core::{
    Action, Binding, Difference, Entity, Error, ErrorKind, Exchange, Plan, Queue, QueueInfo,
    Result, Step, Target, Topology, TransportEvent, check_name,
};
use postrider_rabbitmq::{
    Argument, delay, difference, exchange_arguments, exchange_goes_by_itself, queue_arguments,
    queue_goes_by_itself,
};
use tokio::time::{Instant, sleep};

use crate::{arguments, link::Link, properties, session::Session};

/// How long the broker may take to see that the old owner of an exclusive queue is gone.
const LOCK_TIMEOUT: Duration = Duration::from_secs(20);

/// How long to wait before an exclusive queue is tried again.
const LOCK_PAUSE: Duration = Duration::from_millis(100);

/// How long the broker may take to forget the routes of a queue that is gone. It does so a moment after
/// the queue may be declared again, and takes a route that was made meanwhile for the old one: on
/// RabbitMQ 4.0 with a topic exchange, in one of a hundred losses without this pause and in none with it.
const UNBINDING: Duration = Duration::from_millis(100);

/// Administration on one session, until a deadline.
pub(crate) struct Admin<'a> {
    session: &'a Session,
    operation: &'static str,
    deadline: Instant,
}

impl<'a> Admin<'a> {
    pub(crate) const fn new(
        session: &'a Session,
        operation: &'static str,
        deadline: Instant,
    ) -> Self {
        Self { session, operation, deadline }
    }

    /// Makes one call on a channel, which is kept for the next if the call left it open.
    async fn call<T>(&self, call: impl AsyncFnOnce(&Channel) -> lapin::Result<T>) -> Result<T> {
        let channel = self.session.admin_channel(self.operation, self.deadline).await?;
        let outcome = self.session.by(self.deadline, self.operation, call(&channel)).await;
        if outcome.is_ok() {
            self.session.give_back(channel);
        }
        outcome
    }

    // Questions

    /// What a queue holds; `None` when it is not there.
    pub(crate) async fn queue_info(&self, name: &str) -> Result<Option<QueueInfo>> {
        check_name(self.operation, name)?;
        if name.is_empty() {
            // The protocol's word for the channel's last queue.
            return Ok(None);
        }
        let options = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
        let asked = self
            .call(async |channel| {
                channel.queue_declare(name.into(), options, FieldTable::default()).await
            })
            .await;
        match asked {
            Ok(queue) => {
                Ok(Some(QueueInfo::new(queue.message_count().into(), queue.consumer_count())))
            }
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error.with_context("queue", name)),
        }
    }

    pub(crate) async fn has_exchange(&self, name: &str) -> Result<bool> {
        check_name(self.operation, name)?;
        let options = ExchangeDeclareOptions { passive: true, ..ExchangeDeclareOptions::default() };
        let asked = self
            .call(async |channel| {
                let kind = lapin::ExchangeKind::Direct;
                channel.exchange_declare(name.into(), kind, options, FieldTable::default()).await
            })
            .await;
        match asked {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error.with_context("exchange", name)),
        }
    }

    pub(crate) async fn purge(&self, name: &str) -> Result<u64> {
        check_name(self.operation, name)?;
        if name.is_empty() {
            // The protocol's word for the channel's last queue.
            return Err(Error::new(
                ErrorKind::NotFound,
                self.operation,
                "no queue has an empty name",
            ));
        }
        self.call(async |channel| {
            channel.queue_purge(name.into(), QueuePurgeOptions::default()).await
        })
        .await
        .map(u64::from)
        .map_err(|error| error.with_context("queue", name))
    }

    // Declaring

    async fn declare_exchange(&self, exchange: &Exchange) -> Result<()> {
        self.call(async |channel| {
            channel
                .exchange_declare(
                    (&*exchange.name).into(),
                    arguments::exchange_kind(exchange),
                    arguments::exchange_options(exchange),
                    arguments::table(exchange_arguments(exchange)),
                )
                .await
        })
        .await
        .map_err(|error| error.with_context("exchange", exchange.name.clone()))
    }

    pub(crate) async fn declare_queue(&self, queue: &Queue) -> Result<()> {
        self.declare_queue_with(queue, queue_arguments(queue, self.session.version())).await
    }

    /// Declares a rung of the ladder of delays.
    pub(crate) async fn declare_rung(&self, rung: &Queue) -> Result<()> {
        let mut arguments = queue_arguments(rung, self.session.version());
        arguments.push(delay::STRATEGY);
        self.declare_queue_with(rung, arguments).await
    }

    async fn declare_queue_with(
        &self,
        queue: &Queue,
        arguments: Vec<(&'static str, Argument)>,
    ) -> Result<()> {
        let table = arguments::table(arguments);
        let options = arguments::queue_options(queue);
        self.call(async |channel| {
            channel.queue_declare((&*queue.name).into(), options, table).await
        })
        .await
        .map(drop)
        .map_err(|error| error.with_context("queue", queue.name.clone()))
    }

    async fn bind(&self, binding: &Binding) -> Result<()> {
        let (source, key) = (&*binding.exchange, &*binding.key);
        let table = properties::write_headers(&binding.arguments);
        self.call(async |channel| match &binding.target {
            Target::Queue(queue) => {
                let options = QueueBindOptions::default();
                channel
                    .queue_bind((&**queue).into(), source.into(), key.into(), options, table)
                    .await
            }
            Target::Exchange(target) => {
                let options = ExchangeBindOptions::default();
                channel
                    .exchange_bind((&**target).into(), source.into(), key.into(), options, table)
                    .await
            }
        })
        .await
        .map_err(|error| error.with_context("binding", binding.to_string()))
    }

    async fn unbind(&self, binding: &Binding) -> Result<()> {
        let (source, key) = (&*binding.exchange, &*binding.key);
        let table = properties::write_headers(&binding.arguments);
        let unbound = self
            .call(async |channel| match &binding.target {
                Target::Queue(queue) => {
                    channel.queue_unbind((&**queue).into(), source.into(), key.into(), table).await
                }
                Target::Exchange(target) => {
                    let options = ExchangeUnbindOptions::default();
                    channel
                        .exchange_unbind(
                            (&**target).into(),
                            source.into(),
                            key.into(),
                            options,
                            table,
                        )
                        .await
                }
            })
            .await;
        gone_is_fine(unbound.map_err(|error| error.with_context("binding", binding.to_string())))
    }

    /// What declaring a queue would do. A queue that is there is declared again with what is
    /// wanted: an equal declaration changes nothing, and another is refused with the argument.
    async fn plan_queue(&self, queue: &Queue) -> Result<Action> {
        if self.queue_info(&queue.name).await?.is_none() {
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
            self.queue_info(&queue.name).await?;
        }
        for binding in &topology.bindings {
            binding.check()?;
            if !matches!(&binding.target, Target::Queue(queue) if queue.is_empty()) {
                self.unbind(binding).await?;
            }
        }
        // An empty name is the protocol's word for the channel's last queue.
        for queue in topology.queues.iter().filter(|queue| !queue.name.is_empty()) {
            let options = QueueDeleteOptions::default();
            let deleted = self
                .call(async |channel| channel.queue_delete((&*queue.name).into(), options).await)
                .await
                .map(drop);
            gone_is_fine(deleted.map_err(|error| error.with_context("queue", queue.name.clone())))?;
        }
        for exchange in &topology.exchanges {
            exchange.check()?;
            let options = ExchangeDeleteOptions::default();
            let deleted = self
                .call(async |channel| {
                    channel.exchange_delete((&*exchange.name).into(), options).await
                })
                .await;
            gone_is_fine(
                deleted.map_err(|error| error.with_context("exchange", exchange.name.clone())),
            )?;
        }
        Ok(())
    }
}

fn gone_is_fine(outcome: Result<()>) -> Result<()> {
    match outcome {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        other => other,
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

/// Forgets in the record what is not there any more, so that what others deleted does not reappear
/// after a loss.
pub(crate) async fn prune(link: &Link, session: &Session, deadline: Instant) -> Result<()> {
    let admin = Admin::new(session, "declare", deadline);
    let known = link.record().topology().clone();
    for exchange in &known.exchanges {
        if !admin.has_exchange(&exchange.name).await? {
            link.record().forget_exchange(&exchange.name);
        }
    }
    for queue in &known.queues {
        if admin.queue_info(&queue.name).await?.is_none() {
            link.record().forget_queue(&queue.name);
        }
    }
    link.record().note_pruned();
    Ok(())
}

/// Declares anew what went with the lost session: what is durable outlives it, and where that is
/// missing somebody took it away.
///
/// What goes by itself with the lost connection may still be there, and go after it was declared
/// anew; so it is `false` when a binding has lost an end, unless this is the `last` attempt.
pub(crate) async fn restore(link: &Arc<Link>, session: &Session, last: bool) -> Result<bool> {
    let mut whole = true;
    // Each call has its time: how long all of them take depends on how much was declared.
    let admin = || Admin::new(session, "reconnect", link.operation_deadline());
    let unlocked_by = link.env().now() + LOCK_TIMEOUT;
    let known = link.record().topology().clone();
    for exchange in &known.exchanges {
        let entity = || format!("exchange '{}'", exchange.name);
        if exchange_goes_by_itself(exchange) {
            tell(link, entity, admin().declare_exchange(exchange).await)?;
        } else {
            match admin().has_exchange(&exchange.name).await {
                Ok(false) => link.record().forget_exchange(&exchange.name),
                other => tell(link, entity, other.map(drop))?,
            }
        }
    }
    for queue in &known.queues {
        let entity = || format!("queue '{}'", queue.name);
        if queue_goes_by_itself(queue) {
            let declared = loop {
                match admin().declare_queue(queue).await {
                    // Until the broker has seen its last owner go, it is locked.
                    Err(error)
                        if error.kind() == ErrorKind::Locked && link.env().now() < unlocked_by =>
                    {
                        sleep(LOCK_PAUSE).await;
                    }
                    outcome => break outcome,
                }
            };
            tell(link, entity, declared)?;
        } else {
            match admin().queue_info(&queue.name).await {
                Ok(None) => link.record().forget_queue(&queue.name),
                other => tell(link, entity, other.map(drop))?,
            }
        }
    }
    let bindings = link.record().topology().bindings.clone();
    if known.queues.iter().any(queue_goes_by_itself) && !bindings.is_empty() {
        sleep(UNBINDING).await;
    }
    for binding in &bindings {
        // A durable binding between durable ends outlives the session, or was taken away.
        let anew = known.queues.iter().any(|queue| {
            queue_goes_by_itself(queue) && binding.target == Target::Queue(queue.name.clone())
        }) || known.exchanges.iter().any(|exchange| {
            exchange_goes_by_itself(exchange)
                && (binding.exchange == exchange.name
                    || binding.target == Target::Exchange(exchange.name.clone()))
        });
        if anew {
            match admin().bind(binding).await {
                Err(error) if error.kind() == ErrorKind::NotFound && !last => whole = false,
                bound => tell(link, || format!("binding {binding}"), bound)?,
            }
        }
    }
    Ok(whole)
}

/// Whether what goes by itself is there, now that its consumers are.
pub(crate) async fn is_whole(link: &Link, session: &Session) -> Result<bool> {
    let admin = || Admin::new(session, "reconnect", link.operation_deadline());
    let known = link.record().topology().clone();
    for queue in known.queues.iter().filter(|queue| queue.auto_delete) {
        if admin().queue_info(&queue.name).await.is_ok_and(|info| info.is_none()) {
            return Ok(false);
        }
    }
    for exchange in known.exchanges.iter().filter(|exchange| exchange.auto_delete) {
        if !admin().has_exchange(&exchange.name).await? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// What cannot be restored is told and left out; only a broken connection begins anew.
fn tell(link: &Link, entity: impl Fn() -> String, outcome: Result<()>) -> Result<(), Error> {
    match outcome {
        Err(error) if error.is_retryable() => Err(error),
        Err(error) => {
            tracing::error!(%error, url = link.url(), "a part of the topology is not restored");
            let (entity, cause) = (entity(), error.to_string());
            link.events().send(TransportEvent::NotRestored { entity, cause });
            Ok(())
        }
        Ok(()) => Ok(()),
    }
}
