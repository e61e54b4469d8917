//! Events over the in-memory broker.

mod common;

use std::{borrow::Cow, sync::Arc, time::Duration};

use common::{Log, SECOND, publish, take, text, transport, two_transports};
use postrider_core::{Address, ErrorKind, HeaderValue, Message, Queue, Topology, Transport};
use postrider_patterns::{
    Codec, CodecError, Context, ErrorClass, Event, EventBus, EventSet, EventVariant, HandlerError,
    Jitter, RawEvent, RetryPolicy, Running, Subscription, UnknownEvents, headers,
};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct OrderCreated {
    order: u64,
}

impl Event for OrderCreated {
    const TYPE: &'static str = "order.created";

    fn aggregate_id(&self) -> Option<Cow<'_, str>> {
        Some(self.order.to_string().into())
    }
}

#[derive(Serialize, Deserialize)]
struct OrderPaid {
    order: u64,
}

impl Event for OrderPaid {
    const TYPE: &'static str = "order.paid";
}

/// A subscription that hands the orders it sees to the test.
fn seeing(subscription: Subscription) -> (Subscription, mpsc::Receiver<u64>) {
    let (sender, receiver) = mpsc::channel(100);
    let subscription = subscription.on(move |event: OrderCreated, _context| {
        let sender = sender.clone();
        async move { Ok(sender.send(event.order).await?) }
    });
    (subscription, receiver)
}

fn billing() -> Subscription {
    Subscription::durable("billing", "orders")
}

async fn bus(transport: &Arc<dyn Transport>) -> EventBus {
    EventBus::new(transport).await.unwrap()
}

#[tokio::test(start_paused = true)]
async fn an_event_that_nobody_wants_is_no_error() {
    let bus = bus(&transport()).await;
    bus.publish(&OrderCreated { order: 1 }).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_durable_subscription_collects_while_its_subscriber_is_away() {
    let bus = bus(&transport()).await;
    let (subscription, mut seen) = seeing(billing());
    let running = bus.subscribe(subscription).await.unwrap();
    bus.publish(&OrderCreated { order: 1 }).await.unwrap();
    assert_eq!(seen.recv().await, Some(1));
    let report = running.stop(SECOND).await;
    assert_eq!(report.released, 0);

    let orders: Vec<_> = (2..5).map(|order| OrderCreated { order }).collect();
    assert_eq!(bus.publish_all(&orders).await.unwrap().len(), 3);
    let (subscription, mut seen) = seeing(billing().concurrency(1));
    let _running = bus.subscribe(subscription).await.unwrap();
    for order in 2..5 {
        assert_eq!(seen.recv().await, Some(order));
    }
}

#[tokio::test(start_paused = true)]
async fn instances_of_a_durable_subscription_share_and_ephemeral_ones_get_copies() {
    let (one, other) = two_transports();
    let (one, other): (Arc<dyn Transport>, Arc<dyn Transport>) = (one, other);
    let (one, other) = (bus(&one).await, bus(&other).await);
    let mut durable = Vec::new();
    let mut copies = Vec::new();
    let mut running: Vec<Running> = Vec::new();
    for bus in [&one, &other] {
        // A full channel of 100 never blocks here; a prefetch of 1 makes the two take turns.
        let (subscription, seen) = seeing(billing().concurrency(1).prefetch(1));
        running.push(bus.subscribe(subscription).await.unwrap());
        durable.push(seen);
        let (subscription, seen) = seeing(Subscription::ephemeral("dashboard").concurrency(1));
        running.push(bus.subscribe(subscription).await.unwrap());
        copies.push(seen);
    }
    for order in 0..20 {
        one.publish(&OrderCreated { order }).await.unwrap();
    }
    for copy in &mut copies {
        for order in 0..20 {
            assert_eq!(copy.recv().await, Some(order));
        }
    }
    let [ours, theirs] = &mut durable[..] else { panic!("there are two") };
    let (mut all, mut shares) = (Vec::new(), [0, 0]);
    while all.len() < 20 {
        let (share, order) = tokio::select! {
            order = ours.recv() => (0, order),
            order = theirs.recv() => (1, order),
        };
        shares[share] += 1;
        all.push(order.unwrap());
    }
    assert!(shares.iter().all(|share| *share > 0), "{shares:?}");
    all.sort_unstable();
    assert_eq!(all, (0..20).collect::<Vec<_>>());
}

#[tokio::test(start_paused = true)]
async fn an_ephemeral_subscription_is_told_of_each_gap_and_goes_on() {
    let (one, other) = two_transports();
    let dropping = Arc::clone(&one);
    let (one, other): (Arc<dyn Transport>, Arc<dyn Transport>) = (one, other);
    let (subscription, mut seen) = seeing(Subscription::ephemeral("dashboard"));
    let (tell, mut gaps) = mpsc::channel(8);
    let subscription = subscription.on_gap(move |gap| {
        let tell = tell.clone();
        async move { Ok(tell.send(gap).await?) }
    });
    let _running = bus(&one).await.subscribe(subscription).await.unwrap();
    let other = bus(&other).await;
    for order in 1..4 {
        other.publish(&OrderCreated { order }).await.unwrap();
        assert_eq!(seen.recv().await, Some(order));
        assert!(gaps.try_recv().is_err(), "no gap without a loss");
        dropping.drop_connection();
        let gap = gaps.recv().await.unwrap();
        assert!(!gap.cause.is_empty() && gap.restored_at >= gap.lost_at, "{gap:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_handler_of_gaps_that_fails_is_told_of_the_next_one() {
    let (transport, _) = two_transports();
    let dropping = Arc::clone(&transport);
    let transport: Arc<dyn Transport> = transport;
    let (subscription, _seen) = seeing(Subscription::ephemeral("dashboard"));
    let (tell, mut gaps) = mpsc::unbounded_channel();
    let subscription = subscription.on_gap(move |gap| {
        tell.send(gap).unwrap();
        async { panic!("a bug in the handler") }
    });
    let running = bus(&transport).await.subscribe(subscription).await.unwrap();
    for _ in 0..2 {
        dropping.drop_connection();
        gaps.recv().await.unwrap();
    }
    running.stop(SECOND).await;
    assert!(gaps.recv().await.is_none(), "its task ends with the subscription");
}

#[tokio::test(start_paused = true)]
async fn a_durable_subscription_that_waits_for_gaps_is_refused() {
    let bus = bus(&transport()).await;
    let subscription = seeing(billing()).0.on_gap(|_| async { Ok(()) });
    let error = bus.subscribe(subscription).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_failing_event_takes_the_steps_of_its_policy_and_is_kept_with_the_reason() {
    let transport = transport();
    let bus = bus(&transport).await;
    let log = Log::default();
    let tries = log.clone();
    let policy = RetryPolicy::default().with_jitter(Jitter::None);
    let subscription = billing()
        .on(move |_event: OrderCreated, context: Context| {
            let elapsed = context.env().timestamp().timestamp_millis();
            tries.push((context.attempt(), elapsed));
            async { Err(HandlerError::transient("the ledger is locked").with_code("LOCKED")) }
        })
        .retry(policy);
    let running = bus.subscribe(subscription).await.unwrap();
    let start = transport.env().timestamp().timestamp_millis();
    let id = bus.publish(&OrderCreated { order: 7 }).await.unwrap();

    let dead = take(&*transport, "dead_letter_billing.orders").await;
    let seconds: Vec<_> =
        log.items().into_iter().map(|(attempt, at)| (attempt, (at - start) / 1_000)).collect();
    assert_eq!(seconds, [(1, 0), (2, 0), (3, 0), (4, 0), (5, 1), (6, 3), (7, 7), (8, 15), (9, 31)]);
    assert_eq!(dead.message_id.as_deref(), Some(id.as_str()));
    assert_eq!(dead.content_type.as_deref(), Some("application/msgpack"));
    assert_eq!(text(&dead, "postrider-error-class"), Some("TRANSIENT"));
    assert_eq!(text(&dead, "postrider-error-code"), Some("LOCKED"));
    assert_eq!(text(&dead, "postrider-error-message"), Some("the ledger is locked"));
    assert_eq!(text(&dead, "postrider-origin-exchange"), Some("event_bus"));
    assert_eq!(text(&dead, "postrider-origin-key"), Some("order.created"));
    let attempts = dead.headers.get("postrider-attempts");
    assert_eq!(attempts.and_then(HeaderValue::as_int), Some(9));
    assert_eq!(running.stats().dead_lettered, 1);
    assert_eq!(running.stats().retried, 8);
}

#[tokio::test(start_paused = true)]
async fn a_dead_letter_keeps_body_and_headers() {
    let transport = transport();
    let bus = bus(&transport).await;
    let (subscription, _seen) = seeing(billing());
    let _running = bus.subscribe(subscription).await.unwrap();
    let poison = Message::new("\u{1}not json")
        .with_content_type("application/json")
        .with_type("order.created")
        .with_ttl(Duration::from_secs(3_600))
        .with_header("tenant", "north")
        .with_header("tries", 3)
        .with_header("raw", bytes::Bytes::from_static(&[0, 255]));
    let address = Address::exchange("event_bus", "order.created");
    publish(&*transport, address, poison.clone()).await;
    let dead = take(&*transport, "dead_letter_billing.orders").await;
    assert_eq!(dead.body, poison.body);
    for (name, value) in poison.headers.iter() {
        assert_eq!(dead.headers.get(name), Some(value));
    }
    assert_eq!(text(&dead, "postrider-error-code"), Some("UNDECODABLE"));
    // It waits for a person, however long that takes.
    assert_eq!(dead.ttl, None);
}

#[tokio::test(start_paused = true)]
async fn what_can_never_succeed_is_not_tried_again() {
    let transport = transport();
    let bus = bus(&transport).await;
    for class in [
        ErrorClass::Invalid,
        ErrorClass::Rejected,
        ErrorClass::NotFound,
        ErrorClass::Unauthorized,
        ErrorClass::Unsupported,
    ] {
        let subscription = billing().on(move |_event: OrderCreated, _context| async move {
            Err(HandlerError::new(class, "never"))
        });
        let running = bus.subscribe(subscription).await.unwrap();
        bus.publish(&OrderCreated { order: 1 }).await.unwrap();
        let dead = take(&*transport, "dead_letter_billing.orders").await;
        assert_eq!(text(&dead, "postrider-error-class"), Some(class.as_str()));
        let attempts = dead.headers.get("postrider-attempts");
        assert_eq!(attempts.and_then(HeaderValue::as_int), Some(1));
        running.stop(SECOND).await;
    }
}

#[tokio::test(start_paused = true)]
async fn an_ephemeral_subscription_retries_in_the_process() {
    let transport = transport();
    let bus = bus(&transport).await;
    let log = Log::default();
    let tries = log.clone();
    let subscription = Subscription::ephemeral("dashboard")
        .on(move |_event: OrderCreated, _context| {
            tries.push(());
            async { Err(HandlerError::transient("no")) }
        })
        .retry(RetryPolicy::default().with_immediate(1).with_delayed(2));
    let _running = bus.subscribe(subscription).await.unwrap();
    bus.publish(&OrderCreated { order: 1 }).await.unwrap();
    take(&*transport, "dead_letter_dashboard").await;
    assert_eq!(log.items().len(), 4);
}

#[tokio::test(start_paused = true)]
async fn unknown_events_go_where_the_policy_says() {
    let transport = transport();
    let bus = bus(&transport).await;
    for policy in [UnknownEvents::Ignore, UnknownEvents::DeadLetter] {
        let (subscription, mut seen) = seeing(billing().concurrency(1).unknown_events(policy));
        let running = bus.subscribe(subscription).await.unwrap();
        // It comes by this subscription's binding, but is of another type.
        let odd = Message::new(r#"{"event_type":"order.renamed","data":{"order":1}}"#);
        let address = Address::exchange("event_bus", "order.created");
        publish(&*transport, address, odd).await;
        bus.publish(&OrderCreated { order: 2 }).await.unwrap();
        assert_eq!(seen.recv().await, Some(2));
        match policy {
            UnknownEvents::DeadLetter => {
                let dead = take(&*transport, "dead_letter_billing.orders").await;
                assert_eq!(text(&dead, "postrider-error-code"), Some("UNKNOWN_EVENT"));
            }
            _ => assert_eq!(running.stats().dead_lettered, 0),
        }
        let ignored = u64::from(policy == UnknownEvents::Ignore);
        assert_eq!(running.stats().ignored, ignored, "it is counted, whatever is done with it");
        running.stop(SECOND).await;
        assert_eq!(common::ready(&*transport, "billing.orders").await, 0);
    }
}

#[tokio::test(start_paused = true)]
async fn both_codecs_and_plain_clients_meet_on_one_queue() {
    let transport = transport();
    let (subscription, mut seen) = seeing(billing().concurrency(1));
    let _running = bus(&transport).await.subscribe(subscription).await.unwrap();
    for (order, codec) in [(1, Codec::Json), (2, Codec::MessagePack)] {
        let bus = EventBus::builder(&transport).codec(codec);
        let bus = bus.connect().await.unwrap();
        bus.publish(&OrderCreated { order }).await.unwrap();
        assert_eq!(seen.recv().await, Some(order));
    }
    for plain in [
        r#"{"event_id":17,"event_type":"order.created","aggregate_id":3,"data":{"order":3},"timestamp":1767225600,"version":1,"metadata":{"a":[1]}}"#,
        r#"{"data":{"order":3}}"#,
    ] {
        let address = Address::exchange("event_bus", "order.created");
        publish(&*transport, address, Message::new(plain)).await;
        assert_eq!(seen.recv().await, Some(3));
    }
}

#[tokio::test(start_paused = true)]
async fn several_handlers_take_one_event_in_their_order() {
    let bus = bus(&transport()).await;
    let log = Log::default();
    let (first, second, raw) = (log.clone(), log.clone(), log.clone());
    let (done, mut finished) = mpsc::channel(1);
    let subscription = Subscription::durable("audit", "all")
        .on(move |event: OrderCreated, _context| {
            first.push(format!("first {}", event.order));
            async { Ok(()) }
        })
        .on(move |event: OrderCreated, _context| {
            second.push(format!("second {}", event.order));
            async { Ok(()) }
        })
        .on_pattern("order.#", move |event: RawEvent, _context| {
            raw.push(format!(
                "{} {:?} v{}",
                event.event_type(),
                event.aggregate_id(),
                event.version()
            ));
            let done = done.clone();
            async move {
                let paid = event.data::<OrderPaid>()?;
                Ok(done.send(paid.order).await?)
            }
        });
    let _running = bus.subscribe(subscription).await.unwrap();
    bus.publish(&OrderCreated { order: 1 }).await.unwrap();
    assert_eq!(finished.recv().await, Some(1));
    bus.publish(&OrderPaid { order: 2 }).await.unwrap();
    assert_eq!(finished.recv().await, Some(2));
    assert_eq!(
        log.items(),
        ["first 1", "second 1", "order.created Some(\"1\") v1", "order.paid None v1"]
    );
}

#[tokio::test(start_paused = true)]
async fn causes_and_conversations_flow_from_event_to_event() {
    let transport = transport();
    let bus = bus(&transport).await;
    let next = bus.clone();
    let chain = billing().on(move |event: OrderCreated, context: Context| {
        let next = next.clone();
        async move {
            let paid = OrderPaid { order: event.order };
            next.publish_from(&context, &paid).await?;
            Ok(())
        }
    });
    let _chain = bus.subscribe(chain).await.unwrap();
    let (sender, mut seen) = mpsc::channel(1);
    let last =
        Subscription::durable("shipping", "paid").on(move |_event: OrderPaid, context: Context| {
            let sender = sender.clone();
            async move { Ok(sender.send(context.message().clone()).await?) }
        });
    let _last = bus.subscribe(last).await.unwrap();
    let id = bus.publish(&OrderCreated { order: 1 }).await.unwrap();
    let paid = seen.recv().await.unwrap();
    assert_eq!(paid.causation_id.as_deref(), Some(id.as_str()));
    assert_eq!(paid.correlation_id.as_deref(), Some(id.as_str()));
    assert_ne!(paid.message_id.as_deref(), Some(id.as_str()));
}

#[tokio::test(start_paused = true)]
async fn subscriptions_that_cannot_work_are_refused() {
    let bus = bus(&transport()).await;
    let kind = |subscription| async { bus.subscribe(subscription).await.unwrap_err().kind() };
    assert_eq!(kind(billing()).await, ErrorKind::Invalid);
    let (subscription, _) = seeing(billing().retry(RetryPolicy::default().with_delayed(100)));
    assert_eq!(kind(subscription).await, ErrorKind::Invalid);
    let (subscription, _) = seeing(billing().concurrency(0));
    assert_eq!(kind(subscription).await, ErrorKind::Invalid);
    // Its queue would be that of the subscription 'eu.orders' of the service 'shop'.
    let (subscription, _) = seeing(Subscription::durable("shop.eu", "orders"));
    assert_eq!(kind(subscription).await, ErrorKind::Invalid);
}

#[tokio::test(start_paused = true)]
async fn a_subscription_goes_on_over_a_lost_connection_and_tells_when_it_ends() {
    let (ours, _other) = two_transports();
    let transport: Arc<dyn Transport> = ours.clone();
    let bus = bus(&transport).await;
    let (subscription, mut seen) = seeing(billing());
    let running = bus.subscribe(subscription).await.unwrap();
    ours.drop_connection();
    bus.publish(&OrderCreated { order: 1 }).await.unwrap();
    assert_eq!(seen.recv().await, Some(1));
    assert!(running.is_running());

    let queue = Topology::new().queue(Queue::durable("billing.orders"));
    transport.remove(&queue).await.unwrap();
    let why = running.ended().await.unwrap_err();
    assert_eq!(why.kind(), ErrorKind::NotFound);
    assert!(!running.is_running());
}

#[tokio::test(start_paused = true)]
async fn a_subscription_ends_with_its_transport() {
    let transport = transport();
    let bus = bus(&transport).await;
    let (subscription, _seen) = seeing(billing());
    let running = bus.subscribe(subscription).await.unwrap();
    let (ended, closed) = tokio::join!(
        tokio::time::timeout(SECOND, running.ended()),
        transport.close(Duration::from_secs(5)),
    );
    closed.unwrap();
    ended.unwrap().unwrap();
    assert!(!running.is_running());
}

#[tokio::test(start_paused = true)]
async fn a_subscription_with_an_event_in_hand_finishes_it_and_ends_with_its_transport() {
    let (ours, theirs) = two_transports();
    let (transport, other): (Arc<dyn Transport>, Arc<dyn Transport>) = (ours, theirs);
    let bus = bus(&transport).await;
    let next = bus.clone();
    let (begun, mut beginning) = mpsc::channel(1);
    let subscription = billing().on(move |event: OrderCreated, _context| {
        let (begun, next) = (begun.clone(), next.clone());
        async move {
            begun.send(()).await?;
            tokio::time::sleep(SECOND).await;
            next.publish(&OrderPaid { order: event.order }).await?;
            Ok(())
        }
    });
    let running = bus.subscribe(subscription).await.unwrap();
    bus.publish(&OrderCreated { order: 1 }).await.unwrap();
    beginning.recv().await.unwrap();
    transport.close(5 * SECOND).await.unwrap();
    let ended = tokio::time::timeout(SECOND, running.ended()).await;
    ended.unwrap().unwrap();
    assert_eq!(running.stats().acked, 1);
    assert_eq!(common::ready(&*other, "billing.orders").await, 0);
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Renamed {
    name: String,
}

impl Event for Renamed {
    const TYPE: &'static str = "order.renamed";
    const VERSION: u32 = 3;
}

#[derive(Debug, PartialEq)]
enum OrderEvent {
    Created(OrderCreated),
    Renamed(Renamed),
}

impl EventSet for OrderEvent {
    const TYPES: &'static [&'static str] = &[OrderCreated::TYPE, Renamed::TYPE, "order.odd"];

    fn decode(event: &RawEvent) -> Result<Option<Self>, CodecError> {
        Ok(match event.event_type() {
            OrderCreated::TYPE => Some(Self::Created(event.data()?)),
            Renamed::TYPE => Some(Self::Renamed(event.data()?)),
            _ => None,
        })
    }

    fn variant(&self) -> EventVariant<'_> {
        match self {
            Self::Created(event) => EventVariant::of(event),
            Self::Renamed(event) => EventVariant::of(event),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_enum_is_published_as_its_variant_and_comes_back_as_itself() {
    let transport = transport();
    let bus = bus(&transport).await;
    let (all, single) = (Log::default(), Log::default());
    let log = all.clone();
    let any = Subscription::durable("ledger", "all").on_any(move |event: OrderEvent, context| {
        let caused = context.message().causation_id.is_some();
        log.push(match event {
            OrderEvent::Created(_) => ("created", caused),
            OrderEvent::Renamed(_) => ("renamed", caused),
        });
        async { Ok(()) }
    });
    let (log, again) = (single.clone(), bus.clone());
    let one =
        Subscription::durable("ledger", "one").on_pattern("order.renamed", move |raw, context| {
            let (log, bus) = (log.clone(), again.clone());
            async move {
                let Renamed { name } = raw.data().unwrap();
                log.push((raw.version(), name.clone()));
                if name == "first" {
                    let next = OrderEvent::Renamed(Renamed { name: "second".to_owned() });
                    bus.publish_any_from(&context, &next).await?;
                }
                Ok(())
            }
        });
    let running = [bus.subscribe(any).await.unwrap(), bus.subscribe(one).await.unwrap()];
    bus.publish(&OrderCreated { order: 7 }).await.unwrap();
    let first = OrderEvent::Renamed(Renamed { name: "first".to_owned() });
    bus.publish_any(&first).await.unwrap();
    while all.items().len() < 3 || single.items().len() < 2 {
        tokio::time::sleep(SECOND).await;
    }
    let mut seen = all.items();
    seen.sort_unstable();
    assert_eq!(seen, [("created", false), ("renamed", false), ("renamed", true)]);
    assert_eq!(single.items(), [(3, "first".to_owned()), (3, "second".to_owned())]);
    for running in running {
        running.stop(SECOND).await;
    }
}

#[tokio::test(start_paused = true)]
async fn what_an_enum_cannot_read_is_kept_with_the_reason() {
    let transport = transport();
    let bus = bus(&transport).await;
    let subscription = Subscription::durable("ledger", "all")
        .on_any(|event: OrderEvent, _context| async move { panic!("{event:?} was read") });
    let running = bus.subscribe(subscription).await.unwrap();
    for (event_type, code) in [("order.odd", "UNKNOWN_EVENT"), ("order.renamed", "UNDECODABLE")] {
        let message =
            Message::new(r#"{"data":{"no":"such"}}"#).with_content_type("application/json");
        let address = Address::exchange("event_bus", event_type);
        publish(&*transport, address, message).await;
        let dead = take(&*transport, "dead_letter_ledger.all").await;
        assert_eq!(text(&dead, headers::ERROR_CODE), Some(code));
    }
    running.stop(SECOND).await;
}
