//! Which events come, and to whom.

use postrider_patterns::{Context, RawEvent, Subscription};

use super::world::{Created, Log, Paid, World, durable, seeing, until};

pub(crate) async fn instances_of_a_durable_subscription_share_and_ephemeral_ones_get_copies(
    world: &World,
) {
    const ORDERS: u64 = 40;
    let (shared, mut copies, mut running) = (Log::default(), Vec::new(), Vec::new());
    let (one, other) = (world.connected().await, world.connected().await);
    for (_connection, bus) in [&one, &other] {
        let share = durable("orders").concurrency(1).prefetch(1);
        running.push(bus.subscribe(seeing(share, &shared)).await.unwrap());
        let copy = Log::default();
        let ephemeral = Subscription::ephemeral(world.dashboard()).concurrency(1);
        running.push(bus.subscribe(seeing(ephemeral, &copy)).await.unwrap());
        copies.push(copy);
    }
    let orders: Vec<_> = (0..ORDERS).map(|order| Created { order }).collect();
    one.1.publish_all(&orders).await.unwrap();
    let all: Vec<_> = (0..ORDERS).collect();
    let are_all = || copies.iter().all(|copy| copy.items() == all);
    until(are_all, || format!("{copies:?}")).await;
    until(|| shared.items().len() >= all.len(), || format!("{shared:?}")).await;
    let mut handled = shared.items();
    handled.sort_unstable();
    assert_eq!(handled, all, "each is handled by one of them, once");
    let shares = [&running[0], &running[2]].map(|instance| instance.stats().acked);
    assert!(shares.iter().all(|share| *share > 0), "{shares:?}");
}

pub(crate) async fn patterns_and_types_come_to_their_handlers_in_their_order(world: &World) {
    let (_connection, bus) = world.connected().await;
    let log = Log::default();
    let (first, second, raw) = (log.clone(), log.clone(), log.clone());
    let subscription = durable("all")
        .concurrency(1)
        .on(move |event: Created, _context| {
            first.push(format!("first {}", event.order));
            async { Ok(()) }
        })
        .on(move |event: Created, _context| {
            second.push(format!("second {}", event.order));
            async { Ok(()) }
        })
        .on_pattern("order.#", move |event: RawEvent, _context| {
            raw.push(format!("{} {:?}", event.event_type(), event.aggregate_id()));
            async { Ok(()) }
        });
    let running = bus.subscribe(subscription).await.unwrap();
    bus.publish(&Created { order: 1 }).await.unwrap();
    bus.publish(&Paid { order: 2 }).await.unwrap();
    until(|| running.stats().acked == 2, || format!("{:?}", running.stats())).await;
    assert_eq!(
        log.items(),
        ["first 1", "second 1", "order.created Some(\"1\")", "order.paid None"]
    );
}

pub(crate) async fn causes_and_conversations_flow_from_event_to_event(world: &World) {
    let (_connection, bus) = world.connected().await;
    let next = bus.clone();
    let chain = durable("orders").on(move |event: Created, context: Context| {
        let next = next.clone();
        async move {
            next.publish_from(&context, &Paid { order: event.order }).await?;
            Ok(())
        }
    });
    let _chain = bus.subscribe(chain).await.unwrap();
    let seen = Log::default();
    let log = seen.clone();
    let last = durable("paid").on(move |_event: Paid, context: Context| {
        log.push(context.message().clone());
        async { Ok(()) }
    });
    let _last = bus.subscribe(last).await.unwrap();
    let id = bus.publish(&Created { order: 1 }).await.unwrap();
    until(|| !seen.items().is_empty(), || "nothing".to_owned()).await;
    let paid = &seen.items()[0];
    assert_eq!(paid.causation_id.as_deref(), Some(id.as_str()));
    assert_eq!(paid.correlation_id.as_deref(), Some(id.as_str()));
    assert_ne!(paid.message_id.as_deref(), Some(id.as_str()));
}
