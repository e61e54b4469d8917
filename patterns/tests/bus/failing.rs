//! Events that cannot be handled, and their neighbours.

use std::{future::pending, time::Duration};

use postrider_core::Message;
use postrider_patterns::{
    Context, DeadReason, ErrorClass, HandlerError, Subscription, UnknownEvents, codes,
};

use super::world::{Created, Log, SOON, World, durable, quick, seeing, until};

pub(crate) async fn unknown_events_go_where_the_policy_says(world: &World) {
    let (connection, bus) = world.connected().await;
    for policy in [UnknownEvents::Ignore, UnknownEvents::DeadLetter] {
        let log = Log::default();
        let subscription = seeing(durable("orders").concurrency(1).unknown_events(policy), &log);
        let running = bus.subscribe(subscription).await.unwrap();
        // It comes by this subscription's binding, but is of another type.
        let odd = Message::new(r#"{"event_type":"order.renamed","data":{"order":1}}"#);
        world.publish(&connection.transport, "order.created", odd).await;
        bus.publish(&Created { order: 2 }).await.unwrap();
        until(|| log.items() == [2], || format!("{:?}", running.stats())).await;
        let kept = u64::from(policy == UnknownEvents::DeadLetter);
        let letters = world.letters(&connection.transport, &world.queue("orders"), kept).await;
        assert!(letters.iter().all(|letter| letter.code() == Some(codes::UNKNOWN_EVENT)));
        assert_eq!(running.stats().ignored, 1 - kept);
        running.stop(SOON).await;
    }
}

pub(crate) async fn what_cannot_be_read_is_kept_with_the_reason(world: &World) {
    let (connection, bus) = world.connected().await;
    let log = Log::default();
    let running = bus.subscribe(seeing(durable("orders"), &log)).await.unwrap();
    for body in [&b"no JSON"[..], b"", br#"{"data":{"order":"seven"}}"#] {
        let message = Message::new(body.to_vec()).with_content_type("application/json");
        world.publish(&connection.transport, "order.created", message).await;
    }
    bus.publish(&Created { order: 2 }).await.unwrap();
    let letters = world.letters(&connection.transport, &world.queue("orders"), 3).await;
    assert!(letters.iter().all(|letter| letter.code() == Some("UNDECODABLE")), "{letters:?}");
    assert!(letters.iter().any(|letter| letter.message().body == b"no JSON"[..]));
    until(|| log.items() == [2], || format!("{:?}", running.stats())).await;
    assert_eq!(running.stats().retried, 0, "it will never be readable");
}

pub(crate) async fn a_poison_event_takes_the_steps_of_its_policy_and_harms_no_other(world: &World) {
    const ORDERS: u64 = 50;
    let (connection, bus) = world.connected().await;
    let (tries, handled) = (Log::default(), Log::default());
    let (trying, log) = (tries.clone(), handled.clone());
    let subscription = durable("orders")
        .handler_timeout(Duration::from_millis(200))
        .concurrency(4)
        .prefetch(8)
        .on(move |event: Created, context: Context| {
            let (trying, log) = (trying.clone(), log.clone());
            async move {
                if event.order < 3 {
                    trying.push((event.order, context.attempt()));
                }
                match event.order {
                    0 => return Err(HandlerError::transient("never")),
                    1 => panic!("a bug"),
                    2 => pending().await,
                    order => log.push(order),
                }
                Ok(())
            }
        });
    let running = bus.subscribe(subscription).await.unwrap();
    let began = connection.transport.env().now();
    let orders: Vec<_> = (0..ORDERS).map(|order| Created { order }).collect();
    bus.publish_all(&orders).await.unwrap();
    until(|| running.stats().acked == ORDERS - 3, || format!("{:?}", running.stats())).await;
    let took = connection.transport.env().now() - began;
    // Three of four places are taken for three times 200 ms at most; the rest is the broker's.
    assert!(took < Duration::from_secs(5), "the others waited for {took:?}");
    let letters = world.letters(&connection.transport, &world.queue("orders"), 3).await;
    let mut codes: Vec<_> = letters.iter().map(|letter| letter.code().unwrap()).collect();
    codes.sort_unstable();
    assert_eq!(codes, [codes::HANDLER_TIMEOUT, codes::PANIC, "TRANSIENT"]);
    assert!(letters.iter().all(|letter| letter.reason() == DeadReason::Failed));
    assert!(letters.iter().all(|letter| letter.attempts() == Some(3)), "{letters:?}");
    let mut tries = tries.items();
    tries.sort_unstable();
    let three = |order| [(order, 1), (order, 2), (order, 3)];
    assert_eq!(tries, [three(0), three(1), three(2)].concat());
    let mut handled = handled.items();
    handled.sort_unstable();
    assert_eq!(handled, (3..ORDERS).collect::<Vec<_>>(), "no other is lost or repeated");
}

pub(crate) async fn an_ephemeral_subscription_tries_in_its_process_and_keeps_what_it_gives_up(
    world: &World,
) {
    let (connection, bus) = world.connected().await;
    let handled = Log::default();
    let log = handled.clone();
    let subscription = Subscription::ephemeral(world.dashboard()).retry(quick()).on(
        move |event: Created, _context| {
            let log = log.clone();
            async move {
                log.push(event.order);
                match event.order {
                    1 => Err(HandlerError::transient("never")),
                    _ => Ok(()),
                }
            }
        },
    );
    let running = bus.subscribe(subscription).await.unwrap();
    for order in [1, 2] {
        bus.publish(&Created { order }).await.unwrap();
    }
    let letters = world.letters(&connection.transport, &world.dashboard(), 1).await;
    assert_eq!(letters[0].class(), Some(ErrorClass::Transient));
    until(|| running.stats().acked == 1, || format!("{:?}", running.stats())).await;
    let mut handled = handled.items();
    handled.sort_unstable();
    assert_eq!(handled, [1, 1, 1, 2]);
}
