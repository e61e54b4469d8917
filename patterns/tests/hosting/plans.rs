//! What a service shows before it starts.

use std::{collections::BTreeSet, sync::Arc};

use postrider_core::{Action, Topology, Transport};
use postrider_patterns::{
    RetryPolicy, StreamReceiver, Subscription,
    routing::{Aggregator, Completion, Condition, Field, Route, Router, Splitter},
};

use super::{
    recording::Recording,
    world::{Email, PARTITIONS, Registered, SECOND, World, service, welcome},
};

/// Its entities as texts, once each, an id in a name as a plan has it.
fn entities(topology: &Topology) -> BTreeSet<String> {
    let Topology { exchanges, queues, bindings } = topology;
    let exchanges = exchanges.iter().map(|exchange| format!("{exchange:?}"));
    let queues = queues.iter().map(|queue| format!("{queue:?}"));
    let bindings = bindings.iter().map(|binding| format!("{binding:?}"));
    exchanges.chain(queues).chain(bindings).map(|text| without_ids(&text)).collect()
}

/// An id is 36 characters of hexadecimal digits and dashes. That of the test's own names stays.
fn without_ids(text: &str) -> String {
    const LENGTH: usize = 36;
    let mut clean = String::new();
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let is_id = rest.len() >= LENGTH
            && rest.is_char_boundary(LENGTH)
            && rest[..LENGTH].chars().all(|c| c.is_ascii_hexdigit() || c == '-')
            && rest[..LENGTH].matches('-').count() == 4;
        if is_id && !clean.ends_with("service-") {
            clean.push_str("{id}");
            rest = &rest[LENGTH..];
        } else {
            let length = if is_id { LENGTH } else { first.len_utf8() };
            clean.push_str(&rest[..length]);
            rest = &rest[length..];
        }
    }
    clean
}

pub(crate) async fn a_plan_is_what_is_declared(world: &World) {
    let recording = Recording::new(world.transport().await);
    let transport: Arc<dyn Transport> = recording.clone();
    let bus = world.bus(&transport).await;
    let email = |_: Email, _| async { Ok(()) };
    let registered = |_: Registered, _| async { Ok(()) };
    let route = || Route::queue(world.name("elsewhere"));
    let rules = Router::filter(world.intake("inbox"), Condition::is_type("x"), route());
    let splitter = Splitter::list(world.intake("batches"), Field::body("/items"), route());
    let parts = Aggregator::new(world.intake("parts"), Completion::Parts, route());
    let receiver = StreamReceiver::new("mail").naming(world.naming.clone());
    let planned = service(&transport)
        .worker(world.worker().on(email).ttl(3_600 * SECOND).delivery_limit(30).concurrency(4))
        .subscription(&bus, welcome().handler_timeout(5 * SECOND))
        .subscription(
            &bus,
            Subscription::durable("mail", "ordered").on(registered).ordered_by_key(PARTITIONS),
        )
        .subscription(&bus, Subscription::ephemeral(world.name("news")).on(registered))
        .rpc(world.calls().max_waiting(100))
        .router(rules.controlled("rules"))
        .splitter(splitter)
        .aggregator(parts)
        .receiver(receiver.on(|_, _| async { Ok(()) }))
        .announce(world.announcement());
    let plan = planned.plan().unwrap();
    let before = transport.plan(&plan.parts[0].topology).await.unwrap();
    assert!(!before.is_settled(), "a plan declares nothing");
    for queue in plan.parts.iter().flat_map(|part| &part.queues) {
        assert_eq!(transport.queue_info(queue).await.unwrap(), None);
    }
    assert_eq!((plan.parts[0].concurrency, plan.parts[0].prefetch), (4, 12));
    assert_eq!(plan.parts[0].retry, Some(RetryPolicy::default()));
    assert_eq!(plan.parts[1].handler_timeout, Some(5 * SECOND));
    assert_eq!(plan.parts[4].retry, None);

    let running = planned.start().await.unwrap();
    let (wanted, declared) = (entities(&plan.topology()), entities(&recording.declared()));
    let missing: Vec<_> = declared.difference(&wanted).collect();
    let idle: Vec<_> = wanted.difference(&declared).collect();
    assert!(missing.is_empty() && idle.is_empty(), "not in it: {missing:?}, only in it: {idle:?}");
    // The broker has it as it was shown.
    let mut topology = plan.topology();
    topology.queues.retain(|queue| !queue.name.contains("{id}"));
    topology.bindings.retain(|binding| !format!("{binding:?}").contains("{id}"));
    let after = transport.plan(&topology).await.unwrap();
    assert!(after.is_settled(), "{after}");
    assert!(after.steps.iter().all(|step| step.action != Action::Create));
    for queue in plan.parts.iter().flat_map(|part| &part.queues) {
        if !queue.contains("{id}") {
            let name = queue.strip_prefix(&world.name("")).unwrap();
            world.queue_comes_to(&transport, name, |_, consumers| consumers == 1).await;
        }
    }
    assert!(running.stop().await.is_clean());
}

pub(crate) async fn a_plan_is_a_table_for_people(world: &World) {
    let transport = world.transport().await;
    let bus = world.bus(&transport).await;
    let worker = world.worker().on(|_: Email, _| async { Ok(()) }).concurrency(4);
    let planned = service(&transport)
        .worker(worker.handler_timeout(10 * SECOND))
        .subscription(&bus, welcome().retry(RetryPolicy::never()));
    let text = planned.plan().unwrap().to_string().replace(&world.name(""), "");
    let wanted = "\
service mail: 2 parts, drained within 30s

worker email
  takes from   email
  concurrency  4, prefetch 12
  time limit   10s
  retries      3 at once, 5 after 1s × 2 up to 300s, spread; then dead-lettered
  queue        email.dead_letters: quorum, no delivery limit
  queue        email: quorum, delivery limit 20, dead letters to exchange 'dead_letter_exchange' with key 'email.dead_letters'
  queue        email.control.{id}: classic, transient, exclusive, goes with its consumer, messages at most 10000, drop-head
  exchange     dead_letter_exchange: direct
  exchange     email.control: fanout
  binding      dead_letter_exchange -> queue email.dead_letters by email.dead_letters
  binding      email.control -> queue email.control.{id}

subscription mail.welcome
  takes from   mail.welcome
  concurrency  16, prefetch 48
  time limit   none
  retries      0 at once; then dead-lettered
  queue        mail.welcome.dead_letters: quorum, no delivery limit
  queue        mail.welcome: quorum, delivery limit 20, dead letters to exchange 'dead_letter_exchange' with key 'mail.welcome.dead_letters'
  exchange     dead_letter_exchange: direct
  exchange     event_bus: topic
  binding      dead_letter_exchange -> queue mail.welcome.dead_letters by mail.welcome.dead_letters
  binding      event_bus -> queue mail.welcome by user.registered
";
    assert_eq!(text, wanted);
}
