//! Topology on brokers that cannot be declared to over AMQP 1.0: it was made by other means, and can be
//! checked, or it cannot be spoken of at all.

use std::time::Duration;

use fe2o3_amqp::{Receiver, Sender, link::CreditMode};
use postrider_core::{
    Action, Address, Entity, Error, ErrorKind, Plan, QueueInfo, Result, Step, Topology, check_name,
};
use postrider_rabbitmq::exchange_goes_by_itself;
use tokio::time::{Instant, timeout};

use crate::{
    admin::Known,
    connection::Connection,
    dialect::Foreign,
    error::{of_receiver, of_sender},
    sessions::Seat,
};

/// How long ending a link may take.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(2);

/// Why nothing can be asked of the broker.
pub(crate) fn unsupported(operation: &'static str) -> Error {
    let why = "this broker has no way over AMQP 1.0 to declare or inspect queues; make them by its own \
               means, and say so in the profile (`topology=provisioned` in the URL) to have them checked";
    Error::new(ErrorKind::Unsupported, operation, why)
}

/// Checks that all of a topology is there; bindings are taken for granted.
pub(crate) async fn plan(
    connection: &Connection,
    foreign: &Foreign,
    operation: &'static str,
    topology: &Topology,
    deadline: Instant,
) -> Result<Plan> {
    if !foreign.provisioned {
        return Err(unsupported(operation));
    }
    topology.check()?;
    let goes = |name: &str| {
        let why = "what goes with the connection cannot have been made by other means";
        let error = Error::new(ErrorKind::Unsupported, operation, why);
        Err(error.with_context("name", name.to_owned()))
    };
    let dialect = connection.dialect();
    let mut steps = Vec::new();
    for exchange in &topology.exchanges {
        if exchange_goes_by_itself(exchange) {
            return goes(&exchange.name);
        }
        let there = Address::exchange(exchange.name.clone(), "");
        dialect.check(operation, &there)?;
        ask(connection, operation, &dialect.target(&there), deadline).await?;
        steps.push(Step { entity: Entity::Exchange(exchange.clone()), action: Action::Keep });
    }
    for queue in &topology.queues {
        if queue.exclusive || queue.auto_delete {
            return goes(&queue.name);
        }
        let there = Address::queue(queue.name.clone());
        check_name(operation, &queue.name)?;
        dialect.check(operation, &there)?;
        ask(connection, operation, &dialect.target(&there), deadline).await?;
        steps.push(Step { entity: Entity::Queue(Box::new(queue.clone())), action: Action::Keep });
    }
    for binding in &topology.bindings {
        steps.push(Step { entity: Entity::Binding(binding.clone()), action: Action::Keep });
    }
    Ok(Plan { steps })
}

/// What is known of a queue before it is consumed.
///
/// # Errors
///
/// When it is known that it cannot be.
pub(crate) async fn known(
    connection: &Connection,
    queue: &str,
    deadline: Instant,
) -> Result<Known> {
    if connection.dialect().ends_sessions() {
        let target = connection.dialect().queue(queue);
        ask(connection, "consume", &target, deadline).await?;
    }
    Ok(Known { info: QueueInfo::new(0, 0), kind: None })
}

/// Whether an address is there: a link is attached, over which nothing passes. It is a sender's where
/// that tells, so that no queue has another consumer even for a moment.
///
/// # Errors
///
/// [`ErrorKind::NotFound`] when it is not, and as attaching a link.
pub(crate) async fn ask(
    connection: &Connection,
    operation: &'static str,
    target: &str,
    deadline: Instant,
) -> Result<()> {
    let in_context = |error: Error| error.with_context("address", target.to_owned());
    let seat = connection.seat_to_ask(operation, deadline).await.map_err(in_context)?;
    let name = format!("postrider {}", connection.env().new_id().simple());
    let asked = async {
        // That it can be left says nothing of what was asked.
        if connection.dialect().hides_missing(target) {
            let receiver =
                Receiver::builder().name(name).source(target).credit_mode(CreditMode::Manual);
            let attached = seat.attach(operation, |session| Box::pin(receiver.attach(session)));
            let receiver = attached.await?.map_err(|error| of_receiver(operation, &error))?;
            leave(&seat, receiver.close()).await;
        } else {
            let sender = Sender::builder().name(name).target(target);
            let attached = seat.attach(operation, |session| Box::pin(sender.attach(session)));
            let sender = attached.await?.map_err(|error| of_sender(operation, &error))?;
            leave(&seat, sender.close()).await;
        }
        Ok(())
    };
    let there = connection.by(deadline, operation, asked).await.and_then(|there| there);
    there.map_err(in_context)
}

async fn leave<T>(seat: &Seat, left: impl Future<Output = T>) {
    if timeout(LEAVE_TIMEOUT, left).await.is_err() {
        seat.spoil();
    }
}
