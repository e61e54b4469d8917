//! What was declared, after a loss: what is made anew, and what is forgotten.

use std::{sync::Arc, time::Duration};

use postrider_core::{Error, ErrorKind, Result, Target, TransportEvent};
use postrider_rabbitmq::{exchange_goes_by_itself, queue_goes_by_itself};
use tokio::time::{Instant, sleep};

use crate::{admin::Admin, connection::Connection, link::Link};

/// How long to wait before an exclusive queue is tried again.
const LOCK_PAUSE: Duration = Duration::from_millis(100);

/// How long the broker may take to forget the routes of a queue that is gone. It does so a moment after
/// the queue may be declared again, and takes a route that was made meanwhile for the old one: on
/// RabbitMQ 4.0 with a topic exchange, in one of a hundred losses without this pause and in none with it.
const UNBINDING: Duration = Duration::from_millis(100);

/// Forgets in the record what is not there any more, so that what others deleted does not reappear
/// after a loss.
pub(crate) async fn prune(link: &Link, connection: &Connection, deadline: Instant) -> Result<()> {
    let admin = Admin::new(connection, "declare", deadline);
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
pub(crate) async fn restore(link: &Arc<Link>, connection: &Connection, last: bool) -> Result<bool> {
    let mut whole = true;
    // Each call has its time: how long all of them take depends on how much was declared.
    let admin = || Admin::new(connection, "reconnect", link.operation_deadline());
    let unlocked_by = link.env().now() + connection.lock_timeout();
    let known = link.record().topology().clone();
    for exchange in &known.exchanges {
        let entity = || format!("exchange '{}'", exchange.name);
        if exchange_goes_by_itself(exchange) {
            tell(link, entity, admin().declare_exchange(exchange).await)?;
        } else {
            match admin().has_exchange(&exchange.name).await {
                Ok(false) => link.record().forget_exchange(&exchange.name),
                // Under an alarm the management answers nothing, and nothing is missing by that.
                Err(_) if connection.is_blocked() => {}
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
                Err(_) if connection.is_blocked() => {}
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
pub(crate) async fn is_whole(link: &Link, connection: &Connection) -> Result<bool> {
    let admin = || Admin::new(connection, "reconnect", link.operation_deadline());
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

#[cfg(all(test, feature = "live-broker"))]
mod tests {
    use std::env;

    use postrider_core::{ConsumerOptions, Queue, Topology, Transport};
    use tokio::time::timeout;

    use super::*;
    use crate::Amqp10;

    const PATIENCE: Duration = Duration::from_secs(30);

    /// As many as callers with a reply queue of their own that come and go. Of those that go by
    /// themselves nobody tells the connection: it asks when it has declared many.
    #[tokio::test]
    async fn exclusive_queues_that_are_gone_are_forgotten() {
        const QUEUES: usize = 800;
        let url = env::var("POSTRIDER_AMQP10_URL");
        let url = url.expect("run eval \"$(scripts/brokers up --all)\" first");
        let transport = Amqp10::connect(&url).await.unwrap();
        let connection = transport.link().open_connection().unwrap();
        let known = || connection.own_queues().len();
        let mut most = 0;
        for number in 0..QUEUES {
            let name = format!("test-own-{}", transport.env().new_id().simple());
            let queue = Queue::exclusive(name.clone());
            if number % 2 == 0 {
                let topology = Topology::new().queue(queue);
                transport.declare(&topology).await.unwrap();
                assert!(connection.own_queues().contains(&name));
                transport.remove(&topology).await.unwrap();
                assert!(!connection.own_queues().contains(&name));
            } else {
                let topology = Topology::new().queue(queue.auto_delete());
                transport.declare(&topology).await.unwrap();
                let options = ConsumerOptions::default().with_prefetch(1);
                drop(transport.consumer(&name, options).await.unwrap());
            }
            most = most.max(known());
        }
        assert!(most < QUEUES / 2, "{most} names of queues that come and go");
        let gone = async {
            while known() > 0 {
                prune(transport.link(), &connection, transport.env().deadline(PATIENCE))
                    .await
                    .unwrap();
            }
        };
        timeout(PATIENCE, gone).await.unwrap();
        transport.close(PATIENCE).await.unwrap();
    }
}
